package themis

import (
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
)

func requires(name, what, on string) []byte {
	return []byte("apiVersion: tartarus.io/v1\nname: " + name + "\nscope: global\nrules:\n  - {name: r, on: [" + on + "], when: request.vcpu > 0, effect: require, " + what + "message: by " + name + "}\n")
}

// Demands of several policies are one: the strongest tier, and one runtime.
func TestDemandsAreMerged(t *testing.T) {
	m := &memory{}
	m.put("a", 1, requires("a", "tier: user-kernel, ", "create"))
	m.put("b", 2, requires("b", "tier: hardware-vm, ", "create"))
	m.put("c", 3, requires("c", "tier: emulated-vm, runtime: qemu, ", "create"))
	e := engine(t, m, "")
	load := func() {
		t.Helper()
		if err := e.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	load()
	in := Input{Request: RequestInput{VCPU: 1}}
	r := ask(t, e, in)
	if r.Verdict() != "allow" || r.Demand.Tier != tartarus.TierHardware || r.Demand.Runtime != "qemu" || len(r.Demand.Reasons) != 3 || len(r.Reasons) != 0 {
		t.Fatalf("%+v", r)
	}
	if r := ask(t, e, Input{}); r.Demand.Tier != "" || len(r.Demand.Reasons) != 0 {
		t.Errorf("of what they are not about: %+v", r)
	}
	in.Request.Action = "network"
	if r, err := e.Rule(t.Context(), &in); err != nil || r.Demand.Tier != "" {
		t.Errorf("of a sandbox that runs: %+v, %v", r, err)
	}
	m.put("d", 4, requires("d", "runtime: firecracker, ", "create"))
	load()
	if r := ask(t, e, in); r.Verdict() != "deny" || len(r.Reasons) != 1 || r.Reasons[0].Code != "runtimes_differ" || !strings.Contains(r.Reasons[0].Message, "qemu and firecracker") {
		t.Errorf("two runtimes: %+v", r)
	}
}

func TestDemandsThatCannotBe(t *testing.T) {
	for what, rule := range map[string]string{
		"needs a tier or a runtime": "effect: require",
		"go with effect require":    "effect: deny, tier: hardware-vm",
		"tier \"none\"":             "effect: require, tier: none",
		"tier \"iron\"":             "effect: require, tier: iron",
		"runtime \"auto\"":          "effect: require, runtime: auto",
		"runtime \"../x\"":          "effect: require, runtime: ../x",
		"on must have create":       "effect: require, tier: hardware-vm, on: [network]",
	} {
		body := "apiVersion: tartarus.io/v1\nname: p\nscope: global\nrules:\n  - {name: r, when: 'true', message: m, " + rule + "}\n"
		if _, err := Compile([]byte(body), 1); !tartarus.Is(err, tartarus.Invalid) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", rule, err)
		}
	}
}
