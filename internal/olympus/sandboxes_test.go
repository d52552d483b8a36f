package olympus_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
)

// Another tenant's sandbox is not there, whatever is done with it.
func TestTenancy(t *testing.T) {
	r := newRig(t, nil)
	id := r.create(`{"templateID":"base"}`).SandboxID
	for _, c := range [][3]string{
		{"GET", "/sandboxes/" + id, ""}, {"GET", "/sandboxes/" + id + "?ended=true", ""}, {"DELETE", "/sandboxes/" + id, ""}, {"POST", "/sandboxes/" + id + "/connect", "{}"},
		{"POST", "/v2/sandboxes/" + id + "/connect", "{}"}, {"POST", "/sandboxes/" + id + "/resume", "{}"}, {"POST", "/sandboxes/" + id + "/timeout", `{"timeout":0}`},
		{"POST", "/sandboxes/" + id + "/refreshes", "{}"}, {"PUT", "/sandboxes/" + id + "/network", "{}"}, {"GET", "/sandboxes/" + id + "/metrics", ""},
		{"GET", "/sandboxes/" + id + "/logs", ""}, {"GET", "/v2/sandboxes/" + id + "/logs", ""},
	} {
		r.call("other", c[0], c[1], c[2]).want(404)
	}
	for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
		if a := r.call("other", "GET", path, "").want(200); a.body != "[]" {
			t.Errorf("%s shows %s", path, a.body)
		}
	}
	if a := r.call("other", "GET", "/v2/sandboxes", ""); a.header.Get("X-Total-Running") != "0" {
		t.Error("another's sandboxes are counted")
	}
	r.Node.Measure(id, tartarus.Sample{Time: time.Now()})
	if a := r.call("other", "GET", "/sandboxes/metrics?sandbox_ids="+id, "").want(200); a.body != `{"sandboxes":{}}` {
		t.Errorf("metrics show %s", a.body)
	}
	if a := r.call("other", "GET", "/teams", ""); !strings.Contains(a.body, `"teamID":"other"`) {
		t.Errorf("teams: %s", a.body)
	}
	r.held(1)
}

func TestKill(t *testing.T) {
	r := newRig(t, nil)
	id := r.create(`{"templateID":"base"}`).SandboxID
	// Older clients write the client id behind the sandbox's.
	r.call("developer", "DELETE", "/sandboxes/"+id+"-tartarus", "").want(204)
	r.held(0)
	r.call("developer", "DELETE", "/sandboxes/"+id, "").want(404)
	r.call("developer", "GET", "/sandboxes/"+id, "").want(404, "ended (user)")
	d := decode[api.SandboxDetail](r.call("developer", "GET", "/sandboxes/"+id+"?ended=true", "").want(200))
	if d.Phase != "stopped" || d.Reason != "user" || d.State != "stopped" {
		t.Errorf("got %+v", d)
	}
	r.call("developer", "POST", "/v2/sandboxes/"+id+"/connect", "{}").want(404)
	r.call("developer", "GET", "/sandboxes/"+id+"/metrics", "").want(404)
}

// The node is the truth: what it does not have is gone, whatever the registry says.
func TestKillWhatTheNodeLost(t *testing.T) {
	r := newRig(t, nil)
	id := r.create(`{"templateID":"base"}`).SandboxID
	if err := r.Node.Stop(t.Context(), id, tartarus.ReasonCrashed); err != nil {
		t.Fatal(err)
	}
	sb, err := r.DB.Registry().Sandbox(t.Context(), hades.AnyTenant, id)
	if err != nil {
		t.Fatal(err)
	}
	sb.Phase = tartarus.Running // as if the report had not come yet
	if _, err := r.DB.Registry().PutSandbox(t.Context(), sb); err != nil {
		t.Fatal(err)
	}
	r.call("developer", "POST", "/sandboxes/"+id+"/timeout", `{"timeout":5}`).want(404)
	r.call("developer", "DELETE", "/sandboxes/"+id, "").want(404)
	r.call("developer", "GET", "/sandboxes/"+id, "").want(404)
}

func TestNodeAway(t *testing.T) {
	r := newRig(t, nil)
	id := r.create(`{"templateID":"base"}`).SandboxID
	delete(r.Fleet, "one")
	for _, c := range [][3]string{
		{"DELETE", "", ""}, {"POST", "/connect", "{}"}, {"POST", "/timeout", `{"timeout":5}`}, {"PUT", "/network", "{}"}, {"GET", "/metrics", ""}, {"GET", "/logs", ""},
	} {
		r.call("developer", c[0], "/sandboxes/"+id+c[1], c[2]).want(503, "cannot be reached")
	}
	r.call("developer", "GET", "/sandboxes/"+id, "").want(200)
	r.call("developer", "GET", "/sandboxes/metrics?sandbox_ids="+id, "").want(200)
	r.Fleet["one"] = r.Node
}

func TestTimes(t *testing.T) {
	r := newRig(t, nil)
	id := r.create(`{"templateID":"base","timeout":100}`).SandboxID
	left := func() time.Duration { return time.Until(r.detail(id).EndAt).Round(time.Second) }
	for _, step := range []struct {
		path, body string
		status     int
		want       time.Duration
	}{
		{"/sandboxes/" + id + "/connect", `{"timeout":50}`, 200, 100 * time.Second}, // only ever extends
		{"/sandboxes/" + id + "/connect", `{"timeout":200}`, 200, 200 * time.Second},
		{"/sandboxes/" + id + "/connect", ``, 200, 200 * time.Second},
		{"/v2/sandboxes/" + id + "/connect", `{}`, 200, 300 * time.Second},
		{"/sandboxes/" + id + "/timeout", `{"timeout":60}`, 204, 60 * time.Second}, // shortens
		{"/sandboxes/" + id + "/refreshes", `{"duration":30}`, 204, 60 * time.Second},
		{"/sandboxes/" + id + "/refreshes", `{"duration":90}`, 204, 90 * time.Second},
		{"/sandboxes/" + id + "/refreshes", ``, 204, 90 * time.Second},
		{"/sandboxes/" + id + "/timeout", `{"timeout":86400}`, 204, 24 * time.Hour},
	} {
		r.call("developer", "POST", step.path, step.body).want(step.status)
		if got := left(); got != step.want {
			t.Fatalf("%s %s leaves %s, want %s", step.path, step.body, got, step.want)
		}
	}
	r.call("developer", "POST", "/sandboxes/"+id+"/resume", `{}`).want(409, "not paused")
	r.call("developer", "POST", "/sandboxes/"+id+"/timeout", `{"timeout":0}`).want(204)
	r.held(0)
	eventually(t, "it has ended", func() bool {
		return strings.Contains(r.call("developer", "GET", "/sandboxes/"+id, "").body, "ended (timeout)")
	})
}

func TestListFilters(t *testing.T) {
	r := newRig(t, nil)
	a := r.create(`{"templateID":"base","metadata":{"n":"a"}}`).SandboxID
	b := r.create(`{"templateID":"tiny","metadata":{"n":"b","x":"1"}}`).SandboxID
	c := r.create(`{"templateID":"base","metadata":{"n":"c","x":"1"}}`).SandboxID
	r.call("developer", "DELETE", "/sandboxes/"+c, "").want(204)
	names := map[string]string{a: "a", b: "b", c: "c"}
	middle := r.detail(b).StartedAt.Format(time.RFC3339Nano)
	for query, want := range map[string]string{
		"":                                    "b a",
		"order=desc":                          "b a",
		"order=asc":                           "a b",
		"template=tiny":                       "b",
		"template=basetemplateid000000":       "a",
		"template=none":                       "",
		"metadata=x%3D1":                      "b",
		"metadata=n%3Da":                      "a",
		"metadata=n%3Da%26x%3D1":              "",
		"metadata=":                           "b a",
		"state=paused":                        "",
		"state=running":                       "b a",
		"state=running&state=paused":          "b a",
		"state=stopped":                       "c",
		"state=stopped,running":               "c b a",
		"startedAfter=2999-01-01T00:00:00Z":   "",
		"startedAfter=" + middle + "&limit=1": "",
		"unknown=1":                           "b a",
	} {
		var got []string
		for _, sb := range decode[[]api.ListedSandbox](r.call("reader", "GET", "/v2/sandboxes?"+query, "").want(200)) {
			got = append(got, names[sb.SandboxID])
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: got %q, want %q", query, got, want)
		}
	}
	if a := r.call("reader", "GET", "/v2/sandboxes?state=paused", ""); a.header.Get("X-Total-Running") != "" {
		t.Error("running ones are counted although nobody asked for them")
	}
	if got := decode[[]api.ListedSandbox](r.call("reader", "GET", "/sandboxes?metadata=n%3Db", "").want(200)); len(got) != 1 || got[0].SandboxID != b {
		t.Errorf("the old list gives %+v", got)
	}
	if got := decode[[]api.ListedSandbox](r.call("reader", "GET", "/sandboxes?state=stopped", "").want(200)); len(got) != 1 {
		t.Errorf("the old list by state gives %+v", got)
	}
}

// Pages cover everything once, also when sandboxes come and go between them.
func TestPaging(t *testing.T) {
	r := newRig(t, nil)
	for range 7 {
		r.create(`{"templateID":"base"}`)
	}
	seen, token := map[string]bool{}, ""
	for page := 0; ; page++ {
		a := r.call("developer", "GET", "/v2/sandboxes?limit=3&nextToken="+token, "").want(200)
		for _, sb := range decode[[]api.ListedSandbox](a) {
			if seen[sb.SandboxID] {
				t.Fatalf("%s is on two pages", sb.SandboxID)
			}
			seen[sb.SandboxID] = true
		}
		if page == 0 {
			r.create(`{"templateID":"base"}`) // newer than the cursor: not part of this walk
		}
		if token = a.header.Get("X-Next-Token"); token == "" {
			break
		}
		if page > 5 {
			t.Fatal("the pages do not end")
		}
	}
	if len(seen) != 7 {
		t.Errorf("saw %d, want 7", len(seen))
	}
}

func TestLogs(t *testing.T) {
	r := newRig(t, nil)
	id := r.create(`{"templateID":"base"}`).SandboxID
	at := time.UnixMilli(1_700_000_000_123).UTC()
	r.Node.Log(id,
		tartarus.LogEntry{Time: at, Level: "info", Message: "one"},
		tartarus.LogEntry{Time: at.Add(time.Nanosecond), Level: "error", Message: "two", Fields: map[string]string{"a": "b"}},
		tartarus.LogEntry{Time: at.Add(time.Second), Level: "info", Message: "three"})
	texts := func(query string) string {
		t.Helper()
		var out []string
		for _, e := range decode[api.Logs](r.call("reader", "GET", "/v2/sandboxes/"+id+"/logs?"+query, "").want(200)).Logs {
			out = append(out, e.Message)
		}
		return strings.Join(out, " ")
	}
	for query, want := range map[string]string{
		"":                                      "one two three",
		"limit=2":                               "one two",
		"direction=backward":                    "three two one",
		"level=error":                           "two",
		"search=thr":                            "three",
		"cursor=1700000000124":                  "three",
		"cursor=1700000000123":                  "one two three",
		"cursor=2023-11-14T22:13:20.123000001Z": "two three",
		"direction=backward&cursor=1700000000123": "one",
	} {
		if got := texts(query); got != want {
			t.Errorf("%q: got %q, want %q", query, got, want)
		}
	}
	v1 := decode[api.LogsV1](r.call("reader", "GET", "/sandboxes/"+id+"/logs?start=1700000000124&limit=5", "").want(200))
	if len(v1.Logs) != 1 || v1.Logs[0].Line != `{"level":"info","logger":"agent","message":"three"}` || len(v1.LogEntries) != 1 || v1.LogEntries[0].Fields == nil {
		t.Errorf("got %+v", v1)
	}
	r.call("developer", "DELETE", "/sandboxes/"+id, "").want(204)
	if got := texts(""); got != "one two three" {
		t.Errorf("after the end: %q", got)
	}
}

func TestMetrics(t *testing.T) {
	r := newRig(t, nil)
	a, b := r.create(`{"templateID":"base"}`).SandboxID, r.create(`{"templateID":"base"}`).SandboxID
	now := time.Now().Truncate(time.Second)
	r.Node.Measure(a, tartarus.Sample{Time: now.Add(-time.Hour), MemUsed: 1}, tartarus.Sample{Time: now.Add(-time.Second), MemUsed: 2}, tartarus.Sample{Time: now, MemUsed: 3, CPUPercent: 12.5})
	got := decode[[]api.Metric](r.call("reader", "GET", "/sandboxes/"+a+"/metrics", "").want(200))
	if len(got) != 3 || got[2].MemUsed != 3 || got[2].CPUUsedPct != 12.5 || got[2].TimestampUnix != now.Unix() {
		t.Errorf("got %+v", got)
	}
	around := fmt.Sprintf("?start=%d&end=%d", now.Unix()-1, now.Unix()-1)
	if got := decode[[]api.Metric](r.call("reader", "GET", "/sandboxes/"+a+"/metrics"+around, "")); len(got) != 1 || got[0].MemUsed != 2 {
		t.Errorf("between: %+v", got)
	}
	batch := decode[api.SandboxesMetrics](r.call("reader", "GET", "/sandboxes/metrics?sandbox_ids="+a+","+b+",iunknown", "").want(200))
	if len(batch.Sandboxes) != 1 || batch.Sandboxes[a].MemUsed != 3 {
		t.Errorf("got %+v", batch)
	}
}

func TestNodes(t *testing.T) {
	r := newRig(t, nil)
	nodes := decode[[]api.Node](r.call("admin", "GET", "/nodes", "").want(200))
	if len(nodes) != 1 || nodes[0].Name != "one" || nodes[0].Status != "ready" || nodes[0].Runtimes["fake"].Tier != "none" {
		t.Errorf("got %+v", nodes)
	}
}

func TestJanitor(t *testing.T) {
	r := newRig(t, nil)
	reg, now := r.DB.Registry(), time.Now()
	put := func(sb tartarus.Sandbox) {
		sb.Tenant, sb.CreatedAt = "default", now.Add(-26*time.Hour)
		if _, err := reg.PutSandbox(t.Context(), sb); err != nil {
			t.Fatal(err)
		}
	}
	running := r.create(`{"templateID":"base"}`).SandboxID
	put(tartarus.Sandbox{Spec: tartarus.Spec{ID: "iold"}, Phase: tartarus.Stopped, EndedAt: now.Add(-25 * time.Hour)})
	put(tartarus.Sandbox{Spec: tartarus.Spec{ID: "iyoung"}, Phase: tartarus.Stopped, EndedAt: now.Add(-time.Hour)})
	put(tartarus.Sandbox{Spec: tartarus.Spec{ID: "istranded"}, Phase: tartarus.Queued, Node: "one"})
	put(tartarus.Sandbox{Spec: tartarus.Spec{ID: "ilost"}, Phase: tartarus.Running, Node: "dead"})
	if err := reg.PutNode(t.Context(), hades.Node{Name: "dead"}, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := olympus.Sweep(r.Server, t.Context(), now.Add(10*time.Minute+30*time.Second)); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]tartarus.Phase{running: tartarus.Running, "iyoung": tartarus.Stopped, "istranded": tartarus.Failed, "ilost": tartarus.Failed} {
		if sb, err := reg.Sandbox(t.Context(), hades.AnyTenant, id); err != nil || sb.Phase != want {
			t.Errorf("%s: %s, %v; want %s", id, sb.Phase, err, want)
		}
	}
	if _, err := reg.Sandbox(t.Context(), hades.AnyTenant, "iold"); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("the old one is still there: %v", err)
	}
	if sb, _ := reg.Sandbox(t.Context(), hades.AnyTenant, "ilost"); sb.Reason != tartarus.ReasonNodeLost {
		t.Errorf("lost: %+v", sb)
	}
}
