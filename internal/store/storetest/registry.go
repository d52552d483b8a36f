package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// Registry is the suite of hades.Registry.
func Registry(t *testing.T, open Factory[hades.Registry]) {
	tests := []struct {
		name string
		run  func(*testing.T, Subject[hades.Registry])
	}{
		{"a sandbox comes back whole", sandboxWhole},
		{"revisions are compared before they are set", sandboxRevisions},
		{"of many writers of a revision one wins", sandboxContention},
		{"another tenant's sandbox is absent", sandboxTenancy},
		{"a removed sandbox is gone and may come again", sandboxRemoved},
		{"a sandbox without id, tenant or phase is invalid", sandboxInvalid},
		{"nodes come back whole and by name", nodesWhole},
		{"a node's lease ends and it stays listed", nodeLease},
		{"pages join to the whole list, both ways", listPages},
		{"every filter selects what it says", listFilters},
		{"filters hold after a sandbox changed", listAfterChange},
		{"a listing checks its query", listInvalid},
		{"pages stay whole while others write", listWhileWriting},
		{"histories are linearizable", registryHistories},
		{"what was acknowledged survives a crash", registryCrash},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, open(t)) })
	}
}

// epoch keeps times readable in failures; nothing depends on it.
var epoch = time.Date(2026, 5, 4, 12, 0, 0, 123456789, time.UTC)

func sandbox(id string) tartarus.Sandbox {
	return tartarus.Sandbox{
		Spec:  tartarus.Spec{ID: id, Tenant: "acme", TemplateID: "tpl0", Template: "tiny"},
		Phase: tartarus.Queued, CreatedAt: epoch,
	}
}

func fullSandbox(id string) tartarus.Sandbox {
	return tartarus.Sandbox{
		Spec: tartarus.Spec{
			ID: id, Tenant: "acme", TemplateID: "tpl0", Template: "tiny",
			Resources: tartarus.Resources{VCPU: 2, MemoryMB: 512, DiskMB: 1024, PIDs: 99},
			Metadata:  map[string]string{"user": "päivi", "empty": "", "q'\"\\": "\x00\n\t%_*"},
			Env:       map[string]string{"A": "b"},
			Network:   tartarus.Network{Internet: true, Allow: []string{"example.org"}, Deny: []string{"8.8.8.8"}, HTTPSPorts: []int{8443}},
			Lifecycle: tartarus.Lifecycle{AutoResume: true}, Timeout: 5 * time.Minute, Runtime: "gvisor",
			Secrets: tartarus.Secrets{AgentToken: "a-token", TrafficToken: "t-token"}, RequestID: "r-1",
		},
		Node: "n1", Phase: tartarus.Stopped, Reason: tartarus.ReasonUser, Message: "asked to", Driver: "gvisor", Tier: tartarus.TierUserKernel,
		CreatedAt: epoch, StartedAt: epoch.Add(1), Deadline: epoch.Add(time.Hour), EndedAt: epoch.Add(time.Minute),
	}
}

func sandboxWhole(t *testing.T, s Subject[hades.Registry]) {
	ctx := patient(t)
	for _, sb := range []tartarus.Sandbox{sandbox("bare"), fullSandbox("full")} {
		rev, err := s.Store.PutSandbox(ctx, sb)
		must(t, err)
		if sb.Revision = rev; rev < 1 {
			t.Fatalf("first revision is %d", rev)
		}
		got, err := s.Store.Sandbox(ctx, sb.Tenant, sb.ID)
		must(t, err)
		wantSame(t, got, sb)
	}
}

func sandboxRevisions(t *testing.T, s Subject[hades.Registry]) {
	ctx := patient(t)
	sb := sandbox("a")
	sb.Revision = 3
	_, err := s.Store.PutSandbox(ctx, sb)
	wantKind(t, err, tartarus.Conflict) // it is not there, so no revision but 0 fits
	_, err = s.Store.Sandbox(ctx, "acme", "a")
	wantKind(t, err, tartarus.NotFound)

	sb.Revision = 0
	first, err := s.Store.PutSandbox(ctx, sb)
	must(t, err)
	_, err = s.Store.PutSandbox(ctx, sb)
	wantKind(t, err, tartarus.Conflict)

	sb.Revision, sb.Phase, sb.Node = first, tartarus.Starting, "n1"
	second, err := s.Store.PutSandbox(ctx, sb)
	must(t, err)
	if second <= first {
		t.Fatalf("revision went from %d to %d", first, second)
	}
	stale := sandbox("a")
	stale.Revision, stale.Phase = first, tartarus.Failed
	_, err = s.Store.PutSandbox(ctx, stale)
	wantKind(t, err, tartarus.Conflict)
	got, err := s.Store.Sandbox(ctx, "acme", "a")
	must(t, err)
	sb.Revision = second
	wantSame(t, got, sb)
}

func sandboxContention(t *testing.T, s Subject[hades.Registry]) {
	ctx := patient(t)
	rev, err := s.Store.PutSandbox(ctx, sandbox("a"))
	must(t, err)
	const writers, rounds = 16, 5
	for range rounds {
		won := make(chan tartarus.Sandbox, writers)
		each(writers, func(i int) {
			sb := sandbox("a")
			sb.Revision, sb.Message = rev, fmt.Sprint("writer ", i)
			switch next, err := s.Store.PutSandbox(ctx, sb); {
			case err == nil:
				sb.Revision = next
				won <- sb
			case !tartarus.Is(err, tartarus.Conflict):
				t.Errorf("writer %d: %v", i, err)
			}
		})
		if len(won) != 1 {
			t.Fatalf("%d writers won", len(won))
		}
		winner := <-won
		got, err := s.Store.Sandbox(ctx, "acme", "a")
		must(t, err)
		wantSame(t, got, winner)
		rev = winner.Revision
	}
}

func sandboxTenancy(t *testing.T, s Subject[hades.Registry]) {
	ctx := patient(t)
	_, err := s.Store.PutSandbox(ctx, sandbox("a"))
	must(t, err)
	for _, tenant := range []string{"other", "", "acm", "acme2"} {
		_, err = s.Store.Sandbox(ctx, tenant, "a")
		wantKind(t, err, tartarus.NotFound)
	}
	_, err = s.Store.Sandbox(ctx, "acme", "b")
	wantKind(t, err, tartarus.NotFound)
	_, err = s.Store.Sandbox(ctx, hades.AnyTenant, "a")
	must(t, err)
	page, err := s.Store.ListSandboxes(ctx, hades.Query{Tenant: "other"})
	must(t, err)
	if len(page.Sandboxes) != 0 {
		t.Fatalf("another tenant lists %d sandboxes", len(page.Sandboxes))
	}
}

func sandboxRemoved(t *testing.T, s Subject[hades.Registry]) {
	ctx := patient(t)
	must(t, s.Store.RemoveSandbox(ctx, "never-was"))
	_, err := s.Store.PutSandbox(ctx, fullSandbox("a"))
	must(t, err)
	must(t, s.Store.RemoveSandbox(ctx, "a"))
	must(t, s.Store.RemoveSandbox(ctx, "a"))
	_, err = s.Store.Sandbox(ctx, "acme", "a")
	wantKind(t, err, tartarus.NotFound)
	for _, q := range []hades.Query{{Tenant: "acme"}, {Tenant: hades.AnyTenant}, {Tenant: "acme", Node: "n1"}, {Tenant: "acme", Metadata: map[string]string{"empty": ""}}} {
		page, err := s.Store.ListSandboxes(ctx, q)
		must(t, err)
		if len(page.Sandboxes) != 0 {
			t.Fatalf("%+v still lists it", q)
		}
	}
	_, err = s.Store.PutSandbox(ctx, fullSandbox("a"))
	must(t, err)
}

func sandboxInvalid(t *testing.T, s Subject[hades.Registry]) {
	for name, spoil := range map[string]func(*tartarus.Sandbox){
		"no id":        func(sb *tartarus.Sandbox) { sb.ID = "" },
		"no tenant":    func(sb *tartarus.Sandbox) { sb.Tenant = "" },
		"every tenant": func(sb *tartarus.Sandbox) { sb.Tenant = hades.AnyTenant },
		"no phase":     func(sb *tartarus.Sandbox) { sb.Phase = "" },
		"odd phase":    func(sb *tartarus.Sandbox) { sb.Phase = "dancing" },
		"odd revision": func(sb *tartarus.Sandbox) { sb.Revision = -1 },
	} {
		sb := sandbox("a")
		spoil(&sb)
		if _, err := s.Store.PutSandbox(patient(t), sb); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func nodesWhole(t *testing.T, s Subject[hades.Registry]) {
	ctx := patient(t)
	nodes, err := s.Store.Nodes(ctx)
	must(t, err)
	if len(nodes) != 0 {
		t.Fatalf("an empty registry has %d nodes", len(nodes))
	}
	want := []hades.Node{
		{Name: "a", Version: "1"},
		{
			Name: "b", Labels: map[string]string{"tartarus.io/typhon": "true"}, Runtimes: map[string]hades.Runtime{"gvisor": {Tier: tartarus.TierUserKernel}},
			Capacity: tartarus.Resources{VCPU: 8, MemoryMB: 1 << 14}, Allocated: tartarus.Resources{VCPU: 1}, Sandboxes: 3, CPUModel: "x", Cordoned: true, Version: "1",
		},
		{Name: "c", Version: "1"},
	}
	for _, i := range []int{2, 0, 1, 1} {
		before := time.Now()
		must(t, s.Store.PutNode(ctx, want[i], time.Hour))
		nodes, err := s.Store.Nodes(ctx)
		must(t, err)
		for _, n := range nodes {
			// The registry's clock may be another machine's, but not by much.
			if n.Name == want[i].Name && (n.LeaseEnds.Before(before.Add(59*time.Minute)) || n.LeaseEnds.After(time.Now().Add(61*time.Minute))) {
				t.Fatalf("lease of an hour ends at %s, asked at %s", n.LeaseEnds, before)
			}
		}
	}
	nodes, err = s.Store.Nodes(ctx)
	must(t, err)
	for i := range nodes {
		nodes[i].LeaseEnds = time.Time{}
	}
	wantSame(t, nodes, want)

	must(t, s.Store.RemoveNode(ctx, "b"))
	must(t, s.Store.RemoveNode(ctx, "b"))
	nodes, err = s.Store.Nodes(ctx)
	must(t, err)
	if len(nodes) != 2 || nodes[0].Name != "a" || nodes[1].Name != "c" {
		t.Fatalf("after a removal: %+v", nodes)
	}
	wantKind(t, s.Store.PutNode(ctx, hades.Node{}, time.Hour), tartarus.Invalid)
	wantKind(t, s.Store.PutNode(ctx, want[0], 0), tartarus.Invalid)
}

func nodeLease(t *testing.T, s Subject[hades.Registry]) {
	ctx := patient(t)
	must(t, s.Store.PutNode(ctx, hades.Node{Name: "a"}, time.Hour))
	must(t, s.Store.PutNode(ctx, hades.Node{Name: "a"}, time.Millisecond)) // renewing may also shorten
	nodes, err := s.Store.Nodes(ctx)
	must(t, err)
	if len(nodes) != 1 || nodes[0].Live(time.Now().Add(time.Minute)) {
		t.Fatalf("a minute after its lease: %+v", nodes)
	}
	must(t, s.Store.PutNode(ctx, hades.Node{Name: "a"}, time.Hour))
	nodes, err = s.Store.Nodes(ctx)
	must(t, err)
	if len(nodes) != 1 || !nodes[0].Live(time.Now().Add(time.Minute)) {
		t.Fatalf("after renewal: %+v", nodes)
	}
}

func registryCrash(t *testing.T, s Subject[hades.Registry]) {
	if s.Crash == nil {
		t.Skip("this store outlives its clients")
	}
	ctx := patient(t)
	const n = 100
	want := make([]tartarus.Sandbox, n)
	each(n, func(i int) {
		sb := fullSandbox(fmt.Sprintf("s%03d", i))
		for range 3 {
			rev, err := s.Store.PutSandbox(ctx, sb)
			if err != nil {
				t.Error(err)
			}
			sb.Revision = rev
		}
		want[i] = sb
	})
	must(t, s.Store.RemoveSandbox(ctx, "s050"))
	must(t, s.Store.PutNode(ctx, hades.Node{Name: "a"}, time.Hour))
	again := s.Crash(t)
	for i, sb := range want {
		got, err := again.Sandbox(ctx, "acme", sb.ID)
		if i == 50 {
			wantKind(t, err, tartarus.NotFound)
			continue
		}
		must(t, err)
		wantSame(t, got, sb)
	}
	nodes, err := again.Nodes(ctx)
	must(t, err)
	if len(nodes) != 1 || nodes[0].LeaseEnds.Before(time.Now().Add(50*time.Minute)) {
		t.Fatalf("nodes: %+v", nodes)
	}
}
