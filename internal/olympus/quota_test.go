package olympus_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
	"github.com/tartarus-sandbox/tartarus/internal/quota"
)

// replicas are servers beside each other on the same stores, the rig's own first.
func replicas(r *rig, n int, cfg olympus.Config) []http.Handler {
	r.t.Helper()
	out := []http.Handler{r.Server.Handler()}
	for len(out) < n {
		c := cfg
		c.Quotas = quota.New(quota.Config{Store: c.Shelf, Registry: c.Registry})
		chain, err := judges.New(judges.Config{Limits: judges.DefaultLimits(), Policies: c.Themis, Ledger: c.Quotas})
		if err != nil {
			r.t.Fatal(err)
		}
		c.Judges = chain
		s, err := olympus.New(c)
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, s.Handler())
	}
	return out
}

// A quota of ten under a thousand creates at once, through three replicas, ends with exactly ten; and what ends makes room once.
func TestQuotaIsExactAcrossReplicas(t *testing.T) {
	var cfg olympus.Config
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) { c.Rate = -1; cfg = *c })
	r.call("admin", "POST", "/tenants", `{"name":"default","quota":{"sandboxes":10}}`).want(201)
	servers := replicas(r, 3, cfg)
	create := func(i int) *httptest.ResponseRecorder {
		req := httptest.NewRequest("POST", "/v2/sandboxes", strings.NewReader(`{"templateID":"tiny","timeout":600}`))
		req.Header.Set("X-API-KEY", r.Keys["developer"])
		w := httptest.NewRecorder()
		servers[i%len(servers)].ServeHTTP(w, req)
		return w
	}
	var made, refused atomic.Int64
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			switch w := create(i); {
			case w.Code == 201:
				made.Add(1)
			case w.Code == 429 && strings.Contains(w.Body.String(), "quota_exceeded"):
				refused.Add(1)
			default:
				t.Errorf("got %d %s", w.Code, w.Body)
			}
		})
	}
	wg.Wait()
	t.Logf("quota of 10 under 1000 creates through 3 replicas: %d made, %d refused", made.Load(), refused.Load())
	if made.Load() != 10 || refused.Load() != 990 {
		t.Fatalf("%d made, %d refused", made.Load(), refused.Load())
	}
	list := decode[[]api.ListedSandbox](r.call("developer", "GET", "/v2/sandboxes?limit=100", "").want(200))
	if len(list) != 10 {
		t.Fatalf("%d sandboxes are there", len(list))
	}
	if u := decode[api.Tenant](r.call("operator", "GET", "/tenants/default", "").want(200)).Usage; u == nil || u.Sandboxes != 10 || u.VCPU != 20 {
		t.Fatalf("usage is %+v", u)
	}
	r.call("developer", "DELETE", "/sandboxes/"+list[0].SandboxID, "").want(204)
	r.call("developer", "POST", "/sandboxes/"+list[1].SandboxID+"/pause", "").want(204)
	for i, want := range []int{201, 201, 429} {
		if w := create(i); w.Code != want {
			t.Fatalf("create %d after two places came free: got %d %s, want %d", i, w.Code, w.Body, want)
		}
	}
	r.call("developer", "POST", "/sandboxes/"+list[1].SandboxID+"/connect", `{"timeout":60}`).want(429, "quota_exceeded")
}

// A client that did not hear the answer asks again with its key. What was made for it the first time fills the quota, and is the answer all the same.
func TestQuotaAndIdempotencyKeys(t *testing.T) {
	r := newRig(t, nil)
	r.call("admin", "POST", "/tenants", `{"name":"default","quota":{"sandboxes":1}}`).want(201)
	create := func(key, body string) answer {
		return r.call("developer", "POST", "/v2/sandboxes", body, "Idempotency-Key", key)
	}
	const body = `{"templateID":"base","timeout":600}`
	first := decode[api.Sandbox](create("one", body).want(201))
	for range 3 {
		if again := decode[api.Sandbox](create("one", body).want(201)); again.SandboxID != first.SandboxID || again.EnvdAccessToken != first.EnvdAccessToken {
			t.Fatalf("got %+v, and first %+v", again, first)
		}
	}
	create("one", `{"templateID":"base","timeout":60}`).want(422)
	create("two", body).want(429, "quota_exceeded")
	r.call("other", "POST", "/v2/sandboxes", body, "Idempotency-Key", "one").want(201) // is another tenant's key, and has no quota
	r.held(2)
	if u := decode[api.Tenant](r.call("operator", "GET", "/tenants/default", "").want(200)).Usage; u == nil || u.Sandboxes != 1 {
		t.Errorf("usage is %+v", u)
	}
	// A policy that forbids it by now takes nothing back either.
	r.call("operator", "PUT", "/policies/size", policyBody(t, bounded("size", 1, "deny"), 0)).want(200)
	if again := decode[api.Sandbox](create("one", body).want(201)); again.SandboxID != first.SandboxID {
		t.Errorf("got %+v", again)
	}
	create("three", body).want(403, "smaller please")
	allowed := 0
	for _, rec := range r.records("action=sandbox.create&object=" + first.SandboxID) {
		if rec.Verdict == "allow" {
			allowed++
		}
	}
	if allowed != 5 {
		t.Errorf("%d of 5 requests about it are on record as allowed", allowed)
	}
}

// A start that comes to nothing gives back what it claimed, and the reasons of a refusal say which part of the quota it is about.
func TestQuotaOfFailedCreates(t *testing.T) {
	r := newRig(t, nil)
	r.call("admin", "POST", "/tenants", `{"name":"default","quota":{"sandboxes":1,"vcpu":3}}`).want(201)
	for range 3 {
		r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"absent"}`).want(404)
		r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base","timeout":999999999}`).want(400)
	}
	sb := r.create(`{"templateID":"base"}`)
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base"}`).want(429, "quota_exceeded", "at most 1 sandboxes")
	// The same request again, under the same key, is no second sandbox; here it is another one.
	r.call("admin", "PATCH", "/tenants/default", `{"quota":{"vcpu":3}}`).want(200)
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base"}`).want(429, "processors")
	r.call("developer", "DELETE", "/sandboxes/"+sb.SandboxID, "").want(204)
	r.create(`{"templateID":"base"}`)
	found := false
	for _, rec := range r.records("verdict=deny") {
		for _, why := range rec.Reasons {
			found = found || why.Judge == "minos" && why.Rule == "quota.vcpu" && why.Code == "quota_exceeded"
		}
	}
	if !found {
		t.Fatal("no record tells of the quota")
	}
}
