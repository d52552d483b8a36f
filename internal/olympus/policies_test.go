package olympus_test

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/tartarus-sandbox/tartarus/api"
)

func policyBody(t *testing.T, doc string, expect int64) string {
	t.Helper()
	raw, err := json.Marshal(api.PolicyChange{Body: doc, Expect: expect})
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func bounded(name string, most int, effect string) string {
	return fmt.Sprintf("apiVersion: tartarus.io/v1\nname: %s\nscope: global\nrules:\n  - {name: size, on: [create], when: request.vcpu > %d, effect: %s, code: too_big, message: smaller please}\ntests:\n  - {name: big, input: {request: {vcpu: 9}}, want: %s}\n", name, most, effect, effect)
}

func TestPoliciesOverTheAPI(t *testing.T) {
	r := newRig(t, nil)
	r.create(`{"templateID":"base","cpuCount":4}`)
	put := func(doc string, expect int64) answer {
		return r.call("operator", "PUT", "/policies/size", policyBody(t, doc, expect))
	}
	first := decode[api.PolicyApplied](put(bounded("size", 2, "deny"), 0).want(200))
	if first.Policy.Version != 1 || first.Policy.Author != "operator" || len(first.Tests) != 1 {
		t.Fatalf("applied %+v", first)
	}
	// It is in force at once, and whoever is refused learns every reason and its version.
	for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
		var e api.Error
		a := r.call("developer", "POST", path, `{"templateID":"base","cpuCount":4}`).want(403, "smaller please")
		if err := json.Unmarshal([]byte(a.body), &e); err != nil || e.ErrorCode != "too_big" || len(e.Reasons) != 1 ||
			e.Reasons[0] != (api.Reason{Code: "too_big", Message: "smaller please", Judge: "rhadamanthus", Rule: "size", Policy: "size@1"}) {
			t.Fatalf("refused with %s", a.body)
		}
	}
	// What is wrong with a document is said, and it changes nothing.
	put("apiVersion: tartarus.io/v1\nname: size\nscope: global\nrules: [{name: r, when: 'request.vcpu >', effect: deny, message: m}]\n", 1).want(400, "line 1, column")
	put(bounded("other", 2, "deny"), 1).want(400, "is policy other")
	put(bounded("size", 20, "deny"), 1).want(400, "test \\\"big\\\" of the policy fails")
	put(bounded("size", 1, "deny"), 7).want(409)
	put(bounded("size", 3, "deny"), 1).want(200, `"version":2`)
	r.create(`{"templateID":"base","cpuCount":3}`)
	if h := decode[[]api.Policy](r.call("operator", "GET", "/policies/size/versions", "").want(200)); len(h) != 2 || h[0].Version != 2 {
		t.Fatalf("history is %+v", h)
	}
	explain := `{"request":{"vcpu":4}}`
	if e := decode[api.PolicyRuling](r.call("operator", "POST", "/policies/explain", explain).want(200)); e.Verdict != "deny" || e.Policies != 1 || e.Reasons[0].Policy != "size@2" {
		t.Fatalf("explained %+v", e)
	}
	r.call("operator", "POST", "/policies/explain", `{"request":{"cpus":4}}`).want(400)
	r.call("operator", "POST", "/policies/size/rollbacks", `{"version":9}`).want(404)
	r.call("operator", "POST", "/policies/size/rollbacks", `{"version":1}`).want(200, `"version":3`)
	r.call("developer", "POST", "/sandboxes", `{"templateID":"base","cpuCount":3}`).want(403, "size@3")
	r.call("operator", "DELETE", "/policies/size", "").want(204)
	r.create(`{"templateID":"base","cpuCount":4}`)
	r.call("operator", "GET", "/policies/size", "").want(404)
	r.call("operator", "GET", "/policies/size?version=1", "").want(200)
	// Both the changes and what they led to are on record, with the versions.
	found := map[string]bool{}
	for _, rec := range r.records("") {
		found[rec.Action+" "+string(rec.Verdict)] = true
		for _, why := range rec.Reasons {
			found[rec.Action+" "+string(rec.Verdict)+" by "+why.Judge+" "+why.Policy] = rec.Policy != ""
		}
	}
	for _, want := range []string{"policy.apply allow", "policy.rollback allow", "policy.remove allow", "sandbox.create deny by rhadamanthus size@1", "sandbox.create deny by rhadamanthus size@3"} {
		if !found[want] {
			t.Errorf("no record of %q", want)
		}
	}
	r.call("developer", "PUT", "/policies/size", policyBody(t, bounded("size", 2, "deny"), 0)).want(403)
}

// A running sandbox's network is held against policies too, those of its tenant and template among them.
func TestPoliciesOfNetworkTenantAndTemplate(t *testing.T) {
	r := newRig(t, nil)
	sb := r.create(`{"templateID":"base","allow_internet_access":false}`)
	for _, name := range []string{"no-internet-for-untrusted", "pinned-images", "strikes", "risk"} {
		body, err := os.ReadFile("../../deploy/policies/" + name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		r.call("operator", "PUT", "/policies/"+name, policyBody(t, string(body), 0)).want(200)
	}
	r.call("developer", "PUT", "/sandboxes/"+sb.SandboxID+"/network", `{"allow_internet_access":true}`).want(403, "no-internet-for-untrusted@1")
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base"}`).want(403, "no-internet-for-untrusted@1", "untrusted-template")
	r.create(`{"templateID":"base","allow_internet_access":false}`)
}
