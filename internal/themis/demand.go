package themis

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/tartarus-sandbox/tartarus"
)

// Demand is what policies require of whatever runs a sandbox.
type Demand struct {
	Tier    tartarus.Tier `json:"tier,omitempty"`    // the weakest isolation that will do; empty is any
	Runtime string        `json:"runtime,omitempty"` // the only runtime that will do; empty is any
	Reasons []Reason      `json:"reasons,omitempty"` // of every rule that requires something
}

var runtimeName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// validDemand reports what is wrong with the demand of a rule.
func (r Rule) validDemand() error {
	none := r.Tier == "" && r.Runtime == ""
	switch {
	case r.Effect != Require && !none:
		return tartarus.Errorf(tartarus.Invalid, "tier and runtime go with effect require")
	case r.Effect == Require && none:
		return tartarus.Errorf(tartarus.Invalid, "effect require needs a tier or a runtime")
	case r.Tier != "" && (!tartarus.Tier(r.Tier).AtLeast(tartarus.TierUserKernel)):
		return tartarus.Errorf(tartarus.Invalid, "tier %.20q is none of user-kernel, emulated-vm, hardware-vm", r.Tier)
	case r.Runtime != "" && (r.Runtime == "auto" || !runtimeName.MatchString(r.Runtime)):
		return tartarus.Errorf(tartarus.Invalid, "runtime %.20q cannot be the name of one", r.Runtime)
	case len(r.On) > 0 && r.Effect == Require && !slices.Contains(r.On, "create"):
		return tartarus.Errorf(tartarus.Invalid, "what a sandbox runs on is decided when it is created: on must have create")
	}
	return nil
}

// require adds the demand of a rule. Of several tiers the strongest counts. Two runtimes cannot both be the only one: then why is not empty,
// and the request must be denied.
func (d *Demand) require(r Rule, policy string) (why string) {
	d.Reasons = append(d.Reasons, Reason{Code: r.Code, Message: r.Message, Rule: r.Name, Policy: policy})
	if t := tartarus.Tier(r.Tier); r.Tier != "" && (d.Tier == "" || t.AtLeast(d.Tier)) {
		d.Tier = t
	}
	if r.Runtime != "" && d.Runtime != "" && r.Runtime != d.Runtime {
		return fmt.Sprintf("policies require the runtimes %s and %s, and a sandbox has one", d.Runtime, r.Runtime)
	}
	if r.Runtime != "" {
		d.Runtime = r.Runtime
	}
	return ""
}
