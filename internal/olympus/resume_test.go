package olympus_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/audit"
)

// rule is a policy of one rule.
func rule(name, rest string) string {
	return "apiVersion: tartarus.io/v1\nname: " + name + "\nscope: global\nrules:\n  - {name: r, " + rest + "}\n"
}

// A policy that came into force while a sandbox slept says whether it may come back. Where it may not, it sleeps on, whoever asks how, and all
// reasons are told and on record.
func TestPoliciesOnResume(t *testing.T) {
	for name, tt := range map[string]struct{ rule, why string }{
		"denied":     {"on: [resume], when: 'request.timeout > duration(\"30s\")', effect: deny, code: too_long, message: half a minute is enough", "half a minute is enough"},
		"any action": {"when: 'request.action == \"resume\" && key.role != \"admin\"', effect: deny, message: only admins", "only admins"},
		"quarantine": {"on: [resume], effect: quarantine, when: 'true', message: it may be bad", "may only run in quarantine"},
		"tier":       {"when: 'true', effect: require, tier: hardware-vm, message: stronger please", "stronger please"},
		"runtime":    {"when: 'true', effect: require, runtime: firecracker, message: on firecracker", "policies require runtime firecracker"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			id := r.create(`{"templateID":"base","timeout":600}`).SandboxID
			r.call("developer", "POST", "/sandboxes/"+id+"/pause", "").want(204)
			r.call("operator", "PUT", "/policies/later", policyBody(t, rule("later", tt.rule), 0)).want(200)
			for _, path := range []string{"/sandboxes/" + id + "/resume", "/sandboxes/" + id + "/connect", "/v2/sandboxes/" + id + "/connect"} {
				r.call("developer", "POST", path, `{"timeout":60}`).want(403, tt.why)
			}
			if d := r.detail(id); d.Phase != "paused" {
				t.Fatalf("it is %s", d.Phase)
			}
			seen := map[string]int{}
			for _, rec := range r.records("object=" + id) {
				if rec.Verdict == audit.Deny && rec.Actor.Name == "developer" && len(rec.Reasons) > 0 && rec.Policy != "" {
					seen[rec.Action]++
				}
			}
			if seen["sandbox.resume"] != 1 || seen["sandbox.connect"] != 2 {
				t.Errorf("on record: %v", seen)
			}
			r.call("operator", "DELETE", "/policies/later", "").want(204)
			r.call("developer", "POST", "/sandboxes/"+id+"/resume", `{"timeout":60}`).want(201)
			if d := r.detail(id); d.Phase != "running" {
				t.Fatalf("it is %s", d.Phase)
			}
		})
	}
}

// The reasons are those of the policy, with its version; traffic is not let in either, and that is on record.
func TestPoliciesOnResumeTellWhy(t *testing.T) {
	r := newRig(t, nil)
	id := r.create(`{"templateID":"base","timeout":600}`).SandboxID
	r.call("developer", "POST", "/sandboxes/"+id+"/pause", "").want(204)
	r.call("operator", "PUT", "/policies/later", policyBody(t, rule("later", "on: [resume], when: 'true', effect: deny, code: closed, message: closed for now"), 0)).want(200)
	var e api.Error
	a := r.call("developer", "POST", "/sandboxes/"+id+"/resume", "").want(403)
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || len(e.Reasons) != 1 ||
		e.Reasons[0] != (api.Reason{Code: "closed", Message: "closed for now", Judge: "rhadamanthus", Rule: "r", Policy: "later@1"}) {
		t.Fatalf("refused with %s", a.body)
	}
	sb, err := r.DB.Registry().Sandbox(t.Context(), "default", id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Server.Wake(t.Context(), sb); !tartarus.Is(err, tartarus.Denied) {
		t.Fatalf("woken by traffic: %v", err)
	}
	found := false
	for _, rec := range r.records("object=" + id) {
		found = found || rec.Action == "sandbox.resume" && rec.Actor.Kind == audit.BySystem && rec.Actor.Name == "traffic" && rec.Verdict == audit.Deny
	}
	if !found {
		t.Error("what traffic was refused is not on record")
	}
	// Nothing of the quota stays taken by what was refused.
	r.call("operator", "DELETE", "/policies/later", "").want(204)
	if _, err := r.Server.Wake(t.Context(), sb); err != nil {
		t.Fatal(err)
	}
	if d := r.detail(id); d.Phase != "running" || time.Until(d.EndAt) < time.Minute {
		t.Errorf("it is %s until %s", d.Phase, d.EndAt)
	}
	r.call("operator", "PUT", "/policies/later", policyBody(t, rule("later", "on: [sleep], when: 'true', effect: deny, message: m"), 0)).want(400, "create, network, resume")
}
