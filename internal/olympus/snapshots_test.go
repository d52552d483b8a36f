package olympus_test

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

func TestSnapshots(t *testing.T) {
	r := newRig(t, nil)
	id := r.create(`{"templateID":"base"}`).SandboxID
	path := "/sandboxes/" + id + "/snapshots"
	r.call("reader", "POST", path, `{}`).want(403)
	plain := decode[api.Snapshot](r.call("developer", "POST", path, `{}`).want(201))
	if plain.SnapshotID != plain.ID+":default" || len(plain.Names) != 0 || plain.SandboxID != id || !plain.Memory {
		t.Errorf("got %+v", plain)
	}
	named := decode[api.Snapshot](r.call("developer", "POST", path, `{"name":"ready:v1","memory":false}`).want(201))
	if !strings.HasSuffix(named.SnapshotID, "/ready:v1") || len(named.Names) != 1 || named.Names[0] != named.SnapshotID || named.Memory {
		t.Errorf("got %+v", named)
	}
	for _, bad := range []string{`{"name":"Ready"}`, `{"name":"a/b/c"}`, `{"name":":x"}`, `{"name":7}`, `{"memory":"no"}`} {
		r.call("developer", "POST", path, bad).want(400)
	}
	tenant, _, _ := strings.Cut(named.SnapshotID, "/")
	for _, ref := range []string{plain.SnapshotID, plain.ID, named.SnapshotID, "ready:v1", tenant + "/ready:v1", named.ID} {
		made := r.create(fmt.Sprintf(`{"templateID":%q}`, ref))
		found := false
		for _, sb := range r.Node.Held() {
			if sb.ID == made.SandboxID {
				found = sb.SnapshotID == plain.ID || sb.SnapshotID == named.ID
			}
		}
		if !found {
			t.Errorf("%s: the node was not told of the snapshot", ref)
		}
	}
	for _, ref := range []string{"ready", "ready:v2", "another/ready:v1", "nothing"} {
		r.call("developer", "POST", "/v2/sandboxes", fmt.Sprintf(`{"templateID":%q}`, ref)).want(404, "not found")
	}
	r.call("developer", "POST", "/v2/sandboxes", fmt.Sprintf(`{"templateID":%q,"memoryMB":4096}`, plain.ID)).want(400, "memoryMB")
	r.call("developer", "POST", "/v2/sandboxes", fmt.Sprintf(`{"templateID":%q,"runtime":"gvisor"}`, plain.ID)).want(400, "runtime")

	newer := decode[api.Snapshot](r.call("developer", "POST", path, `{"name":"ready:v1"}`).want(201))
	if got := decode[api.Snapshot](r.call("reader", "GET", "/snapshots/"+url.PathEscape(named.SnapshotID), "").want(200)); got.ID != newer.ID {
		t.Errorf("the name means %s, want the newest", got.ID)
	}
	r.call("developer", "POST", "/snapshots/"+plain.ID+"/verify", "").want(200)
	for _, bad := range []string{"/snapshots/none", "/snapshots/%00", "/snapshots/a%2Fb%2Fc"} {
		r.call("developer", "GET", bad, "").want(404)
	}
	r.call("developer", "DELETE", "/templates/"+url.PathEscape(named.SnapshotID), "").want(204)
	r.call("developer", "DELETE", "/templates/"+url.PathEscape(named.SnapshotID), "").want(404)
	r.call("developer", "DELETE", "/templates/"+plain.SnapshotID, "").want(204)
	r.call("developer", "DELETE", "/templates/base", "").want(404, "template rm")
}

func TestListSnapshots(t *testing.T) {
	r := newRig(t, nil)
	first, second := r.create(`{"templateID":"base"}`).SandboxID, r.create(`{"templateID":"base"}`).SandboxID
	var made []string
	for i := range 5 {
		s := decode[api.Snapshot](r.call("developer", "POST", "/sandboxes/"+first+"/snapshots", fmt.Sprintf(`{"name":"n%d"}`, i)).want(201))
		made = append([]string{s.ID}, made...)
	}
	r.call("developer", "POST", "/sandboxes/"+second+"/snapshots", `{}`).want(201)
	list := func(query string) (ids []string, next string) {
		a := r.call("reader", "GET", "/snapshots?"+query, "").want(200)
		for _, s := range decode[[]api.Snapshot](a) {
			ids = append(ids, s.ID)
		}
		return ids, a.header.Get(api.HeaderNextToken)
	}
	var got []string
	for token, pages := "", 0; ; pages++ {
		ids, next := list("limit=2&sandboxID=" + first + "&nextToken=" + token)
		got = append(got, ids...)
		if token = next; token == "" || pages > 5 {
			break
		}
	}
	if strings.Join(got, " ") != strings.Join(made, " ") {
		t.Errorf("pages gave %v, want %v", got, made)
	}
	if ids, _ := list("name=n3"); len(ids) != 1 || ids[0] != made[1] {
		t.Errorf("by name: %v", ids)
	}
	if ids, _ := list(""); len(ids) != 6 {
		t.Errorf("all: %v", ids)
	}
	for _, bad := range []string{"limit=0", "limit=101", "limit=x", "nextToken=x", "nextToken=AAAA"} {
		r.call("reader", "GET", "/snapshots?"+bad, "").want(400)
	}
}

func TestFork(t *testing.T) {
	r := newRig(t, nil)
	source := r.create(`{"templateID":"base","metadata":{"a":"b"},"envVars":{"X":"1"},"network":{"allowPublicTraffic":false}}`)
	path := "/sandboxes/" + source.SandboxID + "/fork"
	r.call("reader", "POST", path, `{}`).want(403)
	for _, bad := range []string{`{"count":0}`, `{"count":101}`, `{"count":-1}`, `{"count":"2"}`, `{"timeout":-1}`, `{"timeout":999999}`} {
		r.call("developer", "POST", path, bad).want(400)
	}
	if got := decode[[]api.ForkResult](r.call("developer", "POST", path, "").want(201)); len(got) != 1 || got[0].Sandbox == nil {
		t.Fatalf("without a body: %+v", got)
	}
	results := decode[[]api.ForkResult](r.call("developer", "POST", path, `{"count":3,"timeout":60}`).want(201))
	if len(results) != 3 {
		t.Fatalf("got %d", len(results))
	}
	held := map[string]tartarus.Sandbox{}
	for _, sb := range r.Node.Held() {
		held[sb.ID] = sb
	}
	tokens := map[string]bool{source.EnvdAccessToken: true, source.TrafficAccessToken: true}
	for _, one := range results {
		sb := one.Sandbox
		if sb == nil || one.Error != nil || sb.EnvdAccessToken == "" || sb.TrafficAccessToken == "" || tokens[sb.EnvdAccessToken] || tokens[sb.TrafficAccessToken] {
			t.Fatalf("clone %+v, %+v", sb, one.Error)
		}
		tokens[sb.EnvdAccessToken], tokens[sb.TrafficAccessToken] = true, true
		got := held[sb.SandboxID]
		if got.SnapshotID == "" || got.Metadata["a"] != "b" || got.Env["X"] != "1" || got.Network.PublicTraffic || got.Timeout.Seconds() != 60 {
			t.Errorf("the node got %+v", got.Spec)
		}
	}
	if n := r.Node.Kept(); n != 0 {
		t.Errorf("%d snapshots are left", n)
	}
	if d := r.detail(source.SandboxID); d.State != "running" {
		t.Errorf("the source is %s", d.State)
	}
	r.call("developer", "POST", "/sandboxes/"+source.SandboxID+"/pause", "").want(204)
	r.call("developer", "POST", path, `{}`).want(409)
	r.call("developer", "DELETE", "/sandboxes/"+source.SandboxID, "").want(204)
	r.call("developer", "POST", path, `{}`).want(404)
}

// A clone that cannot be started is an error in its place; the others are there.
func TestForkThatFails(t *testing.T) {
	r := newRig(t, nil)
	id := r.create(`{"templateID":"base"}`).SandboxID
	var starts atomic.Int32
	r.Node.Start = func(context.Context, tartarus.Spec) error {
		if starts.Add(1) <= 2 {
			return tartarus.Errorf(tartarus.Corrupt, "chunk 1 is damaged")
		}
		return nil
	}
	var failed int
	for _, one := range decode[[]api.ForkResult](r.call("developer", "POST", "/sandboxes/"+id+"/fork", `{"count":4}`).want(201)) {
		if one.Error != nil && one.Sandbox == nil && one.Error.Code == 409 && strings.Contains(one.Error.Message, "damaged") {
			failed++
		}
	}
	if failed != 2 {
		t.Errorf("%d failed, want 2", failed)
	}
}

// Where its snapshot is does not make a sandbox go where it must not.
func TestSnapshotsKeepApart(t *testing.T) {
	r := newRig(t, func(_ *olympus.Config, n *olympustest.Node) {
		n.Self.Runtimes = map[string]hades.Runtime{"fake": {Tier: tartarus.TierUserKernel}} // quarantine demands as much
	})
	snap := decode[api.Snapshot](r.call("developer", "POST", "/sandboxes/"+r.create(`{"templateID":"base"}`).SandboxID+"/snapshots", `{}`).want(201))
	r.call("operator", "PUT", "/policies/strangers", policyBody(t, strangers, 0)).want(200)
	plain, stranger := `{"templateID":"`+snap.SnapshotID+`"}`, `{"templateID":"`+snap.SnapshotID+`","metadata":{"stranger":"yes"}}`
	refused := func(what, body string, code int) {
		t.Helper()
		r.call("developer", "POST", "/v2/sandboxes", body).want(code)
		if p := decode[api.Placement](r.call("operator", "POST", "/placements", body).want(200)); p.Refused == "" {
			t.Errorf("%s: explained as going to %q", what, p.Node)
		}
	}
	r.call("developer", "POST", "/v2/sandboxes", plain).want(201)
	refused("quarantine on a node for anything else", stranger, 403)
	r.call("admin", "POST", "/nodes/one/cordon", "").want(204)
	refused("a cordoned node", plain, 503)
	r.call("admin", "POST", "/nodes/one/uncordon", "").want(204)
	r.call("admin", "PATCH", "/nodes/one/labels", `{"`+tartarus.LabelTyphon+`":"true"}`).want(204)
	refused("an ordinary one on a node for quarantine", plain, 503)
	r.call("developer", "POST", "/v2/sandboxes", stranger).want(201)
}

const strangers = `apiVersion: tartarus.io/v1
name: strangers
scope: global
rules:
  - name: strangers
    on: [create]
    when: '"stranger" in request.metadata'
    effect: quarantine
    message: nobody knows it
`

// What is made from a snapshot that only one node has is made there, however free others are.
func TestSnapshotsArePlacedWhereTheyAre(t *testing.T) {
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) { c.CreateTime = 5 * time.Second })
	snap := decode[api.Snapshot](r.call("developer", "POST", "/sandboxes/"+r.create(`{"templateID":"base"}`).SandboxID+"/snapshots", `{}`).want(201))
	idle := r.Node.Self // nobody works there
	idle.Name = "two"
	if err := r.DB.Registry().PutNode(t.Context(), idle, time.Minute); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // by now the list of nodes is read again
	for range 8 {
		r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"`+snap.SnapshotID+`"}`).want(201)
	}
}
