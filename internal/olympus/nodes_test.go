package olympus_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

// joins is a fleet that anybody may join.
type joins struct{ banned []string }

func (j *joins) Token(node string, life time.Duration) (string, time.Time, error) {
	return "ttj_" + node, time.Now().Add(life), nil
}

func (j *joins) Ban(_ context.Context, node string) error {
	j.banned = append(j.banned, node)
	return nil
}

func decoded[T any](t *testing.T, body string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return v
}

// A cordoned node gets nothing new until it is uncordoned, whatever it says of itself; labels are an operator's to set.
func TestCordonAndLabels(t *testing.T) {
	r := newRig(t, nil)
	r.call("admin", "POST", "/nodes/one/cordon", "").want(204)
	n := decoded[api.Node](t, string(r.call("admin", "GET", "/nodes/one", "").want(200).body))
	if n.Status != "cordoned" {
		t.Fatalf("status is %q", n.Status)
	}
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"tiny"}`).want(503, "cordoned")
	r.call("admin", "POST", "/nodes/one/uncordon", "").want(204)
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"tiny"}`).want(201)

	r.call("admin", "PATCH", "/nodes/one/labels", `{"tartarus.io/phlegethon":"hot","zone":"a"}`).want(204)
	r.call("admin", "PATCH", "/nodes/one/labels", `{"zone":null}`).want(204)
	n = decoded[api.Node](t, string(r.call("admin", "GET", "/nodes/one", "").want(200).body))
	if len(n.Labels) != 1 || n.Labels["tartarus.io/phlegethon"] != "hot" {
		t.Fatalf("labels are %v", n.Labels)
	}
	for _, bad := range []string{`{"":"x"}`, `{"a b":"x"}`, `{"a":"x y"}`, `{"a":1}`, `[]`, `{"../a":"x"}`} {
		r.call("admin", "PATCH", "/nodes/one/labels", bad).want(400)
	}
	for _, query := range []string{"lose=maybe", "lose=", "lose=%zz"} {
		r.call("admin", "DELETE", "/nodes/one?"+query, "").want(400)
	}
	for _, path := range []string{"/nodes/two/cordon", "/nodes/two/uncordon", "/nodes/two/drain", "/nodes/UPPER/cordon"} {
		r.call("admin", "POST", path, "").want(404)
	}
}

// A drain cordons, tells what is left across tenants, and ends it when asked.
func TestDrain(t *testing.T) {
	r := newRig(t, nil)
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"tiny"}`).want(201)
	r.call("other", "POST", "/v2/sandboxes", `{"templateID":"tiny"}`).want(201)
	d := decoded[api.Drain](t, string(r.call("admin", "POST", "/nodes/one/drain", "").want(200).body))
	if len(d.Left) != 2 || d.Ended != 0 || d.Left[0].EndAt == nil || d.Left[0].Tenant == d.Left[1].Tenant {
		t.Fatalf("got %+v", d)
	}
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"tiny"}`).want(503, "cordoned")
	d = decoded[api.Drain](t, string(r.call("admin", "POST", "/nodes/one/drain", `{"end":true}`).want(200).body))
	if d.Ended != 2 || len(d.Left) != 0 {
		t.Fatalf("got %+v", d)
	}
}

// A node that takes work is not removed, nor one on which sandboxes are paused unless they may be lost; one that is removed takes what it held with it.
func TestRemoveNode(t *testing.T) {
	fleet := &joins{}
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) { c.Joins = fleet })
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"tiny"}`).want(201)
	r.call("admin", "DELETE", "/nodes/one", "").want(409, "drain")
	r.call("admin", "POST", "/nodes/one/cordon", "").want(204)
	paused := tartarus.Sandbox{Spec: tartarus.Spec{ID: "ipaused", Tenant: "default"}, Phase: tartarus.Paused, Node: "one", CreatedAt: time.Now(), Saved: "s1"}
	if _, err := r.DB.Registry().PutSandbox(t.Context(), paused); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/nodes/one", "/nodes/one?lose=false"} {
		r.call("admin", "DELETE", path, "").want(409, "node one has paused sandboxes (1); `tartarus node drain one`")
	}
	if n := decoded[api.Node](t, string(r.call("admin", "GET", "/nodes/one", "").want(200).body)); len(fleet.banned) > 0 || n.Name != "one" {
		t.Fatalf("banned: %v, node %+v", fleet.banned, n)
	}
	r.call("admin", "DELETE", "/nodes/one?lose=maybe", "").want(400)
	r.call("admin", "DELETE", "/nodes/one?lose=true", "").want(204)
	if len(fleet.banned) != 1 || fleet.banned[0] != "one" {
		t.Fatalf("banned: %v", fleet.banned)
	}
	page, err := r.DB.Registry().ListSandboxes(t.Context(), hades.Query{Tenant: hades.AnyTenant})
	if err != nil || len(page.Sandboxes) != 2 || page.Sandboxes[0].Reason != tartarus.ReasonNodeLost || page.Sandboxes[1].Reason != tartarus.ReasonNodeLost {
		t.Fatalf("got %+v, %v", page.Sandboxes, err)
	}
	token := decoded[api.Token](t, string(r.call("admin", "POST", "/fleet/tokens", `{"node":"n2","seconds":60}`).want(201).body))
	if token.Token != "ttj_n2" || time.Until(token.ExpiresAt) > time.Minute {
		t.Fatalf("got %+v", token)
	}
	for _, bad := range []string{`{"node":"N"}`, `{"seconds":-1}`, `{"seconds":100000}`, `{"what":1}`} {
		r.call("admin", "POST", "/fleet/tokens", bad).want(400)
	}
}

// Operators see jobs without what they carry, and requeue, cancel and purge them.
func TestQueueRoutes(t *testing.T) {
	r := newRig(t, nil)
	q := r.DB.Queue()
	add := func(id string) {
		t.Helper()
		_, err := q.Enqueue(t.Context(), acheron.Job{
			ID: id, Tenant: "acme", Node: "away", Kind: acheron.Create, Payload: []byte("secret"), MaxAttempts: 1, Deadline: time.Now().Add(time.Hour),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	add("j1")
	add("j2")
	jobs := decoded[[]api.Job](t, string(r.call("admin", "GET", "/queue", "").want(200).body))
	if len(jobs) != 2 || jobs[0].ID != "j1" || jobs[0].Tenant != "acme" || jobs[0].Node != "away" {
		t.Fatalf("got %+v", jobs)
	}
	j := decoded[api.Job](t, string(r.call("admin", "GET", "/queue/j2", "").want(200).body))
	if j.State != "waiting" || j.Position != 2 {
		t.Fatalf("got %+v", j)
	}
	r.call("admin", "POST", "/queue/j2/requeue", "").want(409)
	r.call("admin", "POST", "/queue/j2/cancel", "").want(204)
	r.call("admin", "POST", "/queue/j2/cancel", "").want(409)
	leases, err := q.Lease(t.Context(), "away", 1, time.Minute)
	if err := errors.Join(err, q.Fail(t.Context(), leases[0], "internal: no luck", false)); err != nil {
		t.Fatal(err)
	}
	jobs = decoded[[]api.Job](t, string(r.call("admin", "GET", "/queue?state=dead", "").want(200).body))
	if len(jobs) != 1 || jobs[0].Reason != "internal: no luck" || jobs[0].EndedAt == nil {
		t.Fatalf("got %+v", jobs)
	}
	r.call("admin", "POST", "/queue/j1/requeue", "").want(204)
	r.call("admin", "GET", "/queue/j1", "").want(200, `"waiting"`)
	if p := decoded[api.Purged](t, string(r.call("admin", "POST", "/queue/purge", `{"olderThanSeconds":0}`).want(200).body)); p.Purged != 1 {
		t.Fatalf("purged %d, want the cancelled one", p.Purged)
	}
	r.call("admin", "POST", "/queue/purge", `{}`).want(400)
	r.call("admin", "GET", "/queue?state=x", "").want(400)
	r.call("admin", "GET", "/queue?limit=0", "").want(400)
	r.call("admin", "GET", "/queue/j2", "").want(404)
}
