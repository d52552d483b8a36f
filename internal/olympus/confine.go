package olympus

import (
	"strings"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
)

// What a confined sandbox may have at most, whatever was asked for. It reaches nothing, so that what it does is computing.
var confinedLimits = tartarus.Resources{VCPU: 1, MemoryMB: 512, DiskMB: 2048, PIDs: 256}

// confine makes a sandbox one that runs in quarantine, where a judge said so: apart from everything else, as strongly isolated as there is, with
// nothing to reach and lower limits.
func confine(spec *tartarus.Spec, tier *tartarus.Tier, out judges.Outcome) {
	if spec.Confined == "" && !out.Quarantine() {
		return
	}
	if spec.Confined == "" {
		var why []string
		for _, v := range out.Verdicts {
			if v.Quarantine {
				why = append(why, v.Reason)
			}
		}
		spec.Confined = strings.Join(why, "; ")
	}
	if spec.Confined == "" {
		spec.Confined = "a judge said so"
	}
	spec.Resources = tartarus.Resources{
		VCPU: min(spec.Resources.VCPU, confinedLimits.VCPU), MemoryMB: min(spec.Resources.MemoryMB, confinedLimits.MemoryMB),
		DiskMB: min(spec.Resources.DiskMB, confinedLimits.DiskMB), PIDs: min(spec.Resources.PIDs, confinedLimits.PIDs),
	}
	spec.Network = tartarus.Network{PublicTraffic: false}
	if *tier == "" {
		*tier = tartarus.TierUserKernel // a demand for any tier has the strongest chosen that the node has
	}
}
