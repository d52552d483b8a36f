package olympus_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

func requiring(name, what string) string {
	return fmt.Sprintf("apiVersion: tartarus.io/v1\nname: %s\nscope: global\nrules:\n  - {name: strong, on: [create], when: 'request.metadata[?\"data\"].orValue(\"\") == \"secret\"', effect: require, %s, message: secrets need it}\n", name, what)
}

// A node that has only a kernel in user space: what a policy requires a virtual machine for is refused, with the rule, and nothing is left of it.
func TestPolicyRequiresATier(t *testing.T) {
	r := newRig(t, func(_ *olympus.Config, n *olympustest.Node) {
		n.Self.Runtimes = map[string]hades.Runtime{"gvisor": {Tier: tartarus.TierUserKernel}}
	})
	r.call("operator", "PUT", "/policies/strong", policyBody(t, requiring("strong", "tier: hardware-vm"), 0)).want(200)
	secret := `{"templateID":"base","metadata":{"data":"secret"}}`
	var e api.Error
	a := r.call("developer", "POST", "/v2/sandboxes", secret).want(400, "hardware-vm or better")
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || !strings.Contains(e.Message, "policy strong@1, rule strong: secrets need it") ||
		len(e.Reasons) != 1 || e.Reasons[0].Policy != "strong@1" || e.Reasons[0].Judge != "rhadamanthus" {
		t.Fatalf("refused with %s", a.body)
	}
	// To ask for less does not help, and nobody else is kept out.
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base","metadata":{"data":"secret"},"tier":"user-kernel"}`).want(400, "hardware-vm")
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base","metadata":{"data":"secret"},"runtime":"gvisor"}`).want(400, "runtime gvisor with isolation hardware-vm")
	r.create(`{"templateID":"base"}`)
	if held := r.Node.Held(); len(held) != 1 {
		t.Errorf("the node has %d sandboxes", len(held))
	}
	if p := decode[api.Placement](r.call("operator", "POST", "/placements", secret).want(200)); !strings.Contains(p.Refused, "hardware-vm") {
		t.Errorf("explained as %+v", p)
	}
	ruling := decode[api.PolicyRuling](r.call("operator", "POST", "/policies/explain", `{"request":{"metadata":{"data":"secret"}}}`).want(200))
	if ruling.Verdict != "allow" || ruling.Demand == nil || ruling.Demand.Tier != "hardware-vm" || len(ruling.Demand.Reasons) != 1 {
		t.Errorf("explained as %+v", ruling)
	}
}

// A node that has both: what a policy requires a virtual machine for runs in one, though the caller asked for nothing.
func TestPolicyPlacesOnVirtualMachines(t *testing.T) {
	r := newRig(t, func(_ *olympus.Config, n *olympustest.Node) {
		n.Self.Runtimes = map[string]hades.Runtime{
			"gvisor": {Tier: tartarus.TierUserKernel}, "firecracker": {Tier: tartarus.TierHardware}, "qemu": {Tier: tartarus.TierHardware},
		}
	})
	r.call("operator", "PUT", "/policies/strong", policyBody(t, requiring("strong", "tier: hardware-vm"), 0)).want(200)
	runtimeOf := func(body string) string {
		t.Helper()
		id := r.create(body).SandboxID
		for _, sb := range r.Node.Held() {
			if sb.ID == id {
				return sb.Spec.Runtime
			}
		}
		t.Fatalf("%s is not on the node", id)
		return ""
	}
	if got := runtimeOf(`{"templateID":"base","metadata":{"data":"secret"}}`); got != "firecracker" {
		t.Errorf("with the tier required it runs on %q", got)
	}
	if got := runtimeOf(`{"templateID":"base"}`); got != "" {
		t.Errorf("with nothing required it runs on %q", got)
	}
	r.call("operator", "PUT", "/policies/only", policyBody(t, requiring("only", "runtime: qemu"), 0)).want(200)
	if got := runtimeOf(`{"templateID":"base","metadata":{"data":"secret"}}`); got != "qemu" {
		t.Errorf("with the runtime required it runs on %q", got)
	}
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base","metadata":{"data":"secret"},"runtime":"firecracker"}`).want(403, "policies require runtime qemu")
}

// A clone runs on what its source runs on: a policy that came since is not got around by a fork.
func TestForkOfWhatIsTooWeakByNow(t *testing.T) {
	r := newRig(t, nil)
	id := r.create(`{"templateID":"base","metadata":{"data":"secret"}}`).SandboxID
	r.call("operator", "PUT", "/policies/strong", policyBody(t, requiring("strong", "tier: hardware-vm"), 0)).want(200)
	got := decode[[]api.ForkResult](r.call("developer", "POST", "/sandboxes/"+id+"/fork", `{"count":1}`).want(201))
	if len(got) != 1 || got[0].Error == nil || got[0].Error.Code != 403 || !strings.Contains(got[0].Error.Message, "rule strong") {
		t.Errorf("%+v", got)
	}
}

// A policy of a tenant keeps that tenant's callers from hinting their sandboxes into a hotter pool, and refuses nothing for it.
func TestPolicyBoundsHints(t *testing.T) {
	r := newRig(t, nil)
	hinted := `{"templateID":"base","timeout":300,"metadata":{"tartarus.io/phlegethon":"hot"}}`
	heatFor := func(key string) string {
		t.Helper()
		sb := decode[api.Sandbox](r.call(key, "POST", "/v2/sandboxes", hinted).want(201))
		return decode[api.SandboxDetail](r.call(key, "GET", "/sandboxes/"+sb.SandboxID, "").want(200)).Heat
	}
	if got := heatFor("developer"); got != "hot" {
		t.Fatalf("without a policy the hint makes it %s", got)
	}
	r.call("operator", "PUT", "/policies/cool", policyBody(t, "apiVersion: tartarus.io/v1\nname: cool\nscope: tenant\ntenant: default\nheat: {hottest: warm}\n", 0)).want(200)
	if got := heatFor("developer"); got != "warm" {
		t.Errorf("in spite of the policy it is %s", got)
	}
	if got := heatFor("other"); got != "hot" {
		t.Errorf("of a tenant that the policy is not about it is %s", got)
	}
	p := decode[api.Placement](r.call("operator", "POST", "/placements", hinted).want(200))
	if p.Heat != "warm" || !strings.Contains(p.HeatWhy, "a policy lets hints raise it to warm at the most") {
		t.Errorf("explained as %+v", p)
	}
	r.call("operator", "PUT", "/policies/cool", policyBody(t, "apiVersion: tartarus.io/v1\nname: cool\nscope: global\nheat: {hottest: tepid}\n", 1)).want(400, "tepid")
}
