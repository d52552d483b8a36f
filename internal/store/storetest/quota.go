package storetest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/quota"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// Counted is what quotas stand on.
type Counted struct {
	Shelf    shelf.Store
	Registry hades.Registry
}

// Quotas is the suite of quota.Ledger on a store that replicas share.
func Quotas(t *testing.T, open Factory[Counted]) {
	tests := []struct {
		name string
		run  func(*testing.T, Subject[Counted])
	}{
		{"of a thousand at once on three replicas ten are let in", quotaExact},
		{"every kind of end lets go once", quotaEnds},
		{"what a crashed replica claimed is let go in time", quotaCrash},
		{"a doubt leaves it to the registry", quotaDoubt},
		{"each kind of resource is bounded", quotaResources},
		{"creates within a minute", quotaRate},
		{"creates in the queue", quotaQueue},
		{"paused sandboxes give back what they do not hold", quotaPause},
		{"a quota that comes later counts what is there", quotaLater},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, open(t)) })
	}
}

// counter is one replica's ledger with what a server does around it.
type counter struct {
	t *testing.T
	*quota.Ledger
	registry hades.Registry
}

func counters(t *testing.T, s Subject[Counted], n int, grace time.Duration) []counter {
	out := make([]counter, n)
	for i := range out {
		out[i] = counter{t, quota.New(quota.Config{Store: s.Store.Shelf, Registry: s.Store.Registry, Grace: grace}), s.Store.Registry}
	}
	return out
}

var small = tartarus.Resources{VCPU: 1, MemoryMB: 128, DiskMB: 256, PIDs: 64}

func (c counter) claim(ctx context.Context, act quota.Act, q tenant.Quota, id string, revision int64) *quota.Refusal {
	c.t.Helper()
	why, err := c.Claim(ctx, quota.Claim{Act: act, Tenant: "acme", Quota: q, ID: id, Revision: revision, Resources: small, Now: time.Now()})
	if err != nil {
		c.t.Error(err)
		return &quota.Refusal{Rule: "error"}
	}
	return why
}

// put enters a sandbox, or what became of it.
func (c counter) put(ctx context.Context, id string, phase tartarus.Phase, reason tartarus.Reason, revision int64) int64 {
	c.t.Helper()
	sb := tartarus.Sandbox{
		Spec:  tartarus.Spec{ID: id, Tenant: "acme", TemplateID: "tpl", Resources: small, Timeout: time.Minute},
		Phase: phase, Reason: reason, CreatedAt: time.Now().UTC(), Revision: revision,
	}
	if phase.Ended() {
		sb.EndedAt = time.Now().UTC()
	}
	got, err := c.registry.PutSandbox(ctx, sb)
	if err != nil {
		c.t.Error(err)
	}
	return got
}

func (c counter) want(why *quota.Refusal, rule string) {
	c.t.Helper()
	switch {
	case why == nil && rule != "":
		c.t.Fatalf("it was granted, and should be over %s", rule)
	case why != nil && why.Rule != rule:
		c.t.Fatalf("refused by %s (%s), want %q", why.Rule, why.Message, rule)
	}
}

func quotaExact(t *testing.T, s Subject[Counted]) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	replicas := counters(t, s, 3, 0)
	var granted, refused atomic.Int64
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			c, id := replicas[i%3], fmt.Sprintf("i%d", i)
			switch why := c.claim(ctx, quota.Start, tenant.Quota{Sandboxes: 10}, id, 0); {
			case why == nil:
				granted.Add(1)
				c.put(ctx, id, tartarus.Running, "", 0)
			case why.Rule == "sandboxes":
				refused.Add(1)
			}
		})
	}
	wg.Wait()
	u, err := replicas[0].Usage(ctx, "acme", time.Now())
	must(t, err)
	t.Logf("quota of 10 under 1000 creates on 3 replicas: %d granted, %d refused, %d held", granted.Load(), refused.Load(), u.Sandboxes)
	if granted.Load() != 10 || refused.Load() != 990 || u.Sandboxes != 10 || u.VCPU != 10 || u.MemoryMB != 1280 {
		t.Fatalf("granted %d, refused %d, usage %+v", granted.Load(), refused.Load(), u)
	}
}

func quotaEnds(t *testing.T, s Subject[Counted]) {
	ctx := patient(t)
	c, q := counters(t, s, 1, 0)[0], tenant.Quota{Sandboxes: 1}
	ends := []struct {
		phase  tartarus.Phase
		reason tartarus.Reason
	}{
		{tartarus.Stopped, tartarus.ReasonUser}, {tartarus.Stopped, tartarus.ReasonTimeout}, {tartarus.Stopped, tartarus.ReasonIdle},
		{tartarus.Failed, tartarus.ReasonOOM}, {tartarus.Failed, tartarus.ReasonCrashed}, {tartarus.Stopped, tartarus.ReasonPolicy},
		{tartarus.Stopped, tartarus.ReasonDrained}, {tartarus.Failed, tartarus.ReasonNodeLost}, {tartarus.Failed, tartarus.ReasonStart},
		{tartarus.Rejected, tartarus.ReasonPolicy}, {"forgotten", ""},
	}
	for i, end := range ends {
		id := fmt.Sprintf("i%d", i)
		c.want(c.claim(ctx, quota.Start, q, id, 0), "")
		revision := c.put(ctx, id, tartarus.Running, "", 0)
		c.want(c.claim(ctx, quota.Start, q, "another", 0), "sandboxes")
		if end.phase == "forgotten" {
			c.put(ctx, id, tartarus.Stopped, tartarus.ReasonUser, revision)
			must(t, c.registry.RemoveSandbox(ctx, id))
			c.Doubt(ctx, "acme", id)
			continue
		}
		c.put(ctx, id, end.phase, end.reason, revision)
	}
	// One place came free each time, and not one more.
	c.want(c.claim(ctx, quota.Start, q, "last", 0), "")
	c.want(c.claim(ctx, quota.Start, q, "toomany", 0), "sandboxes")
}

func quotaCrash(t *testing.T, s Subject[Counted]) {
	ctx := patient(t)
	two, q := counters(t, s, 2, 2*time.Second), tenant.Quota{Sandboxes: 1}
	began := time.Now()
	two[0].want(two[0].claim(ctx, quota.Start, q, "lost", 0), "")
	for {
		why := two[1].claim(ctx, quota.Start, q, "next", 0)
		took := time.Since(began)
		if why == nil {
			if took < 1900*time.Millisecond {
				t.Fatalf("let go after %s", took)
			}
			return
		}
		if took > patience {
			t.Fatal("never let go: ", why.Message)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func quotaDoubt(t *testing.T, s Subject[Counted]) {
	ctx := patient(t)
	c, q := counters(t, s, 1, 0)[0], tenant.Quota{Sandboxes: 2}
	c.want(c.claim(ctx, quota.Start, q, "absent", 0), "")
	c.want(c.claim(ctx, quota.Start, q, "there", 0), "")
	c.put(ctx, "there", tartarus.Running, "", 0)
	c.Doubt(ctx, "acme", "absent")
	c.Doubt(ctx, "acme", "there")
	c.Doubt(ctx, "acme", "never")
	c.want(c.claim(ctx, quota.Start, q, "third", 0), "")
	c.want(c.claim(ctx, quota.Start, q, "fourth", 0), "sandboxes")
}

func quotaResources(t *testing.T, s Subject[Counted]) {
	ctx := patient(t)
	c := counters(t, s, 1, 0)[0]
	all := tenant.Quota{Sandboxes: 9, VCPU: 9, MemoryMB: 9 * 128, DiskMB: 9 * 256}
	c.want(c.claim(ctx, quota.Start, all, "one", 0), "")
	for rule, q := range map[string]tenant.Quota{
		"sandboxes": {Sandboxes: 1}, "vcpu": {VCPU: 1}, "memoryMB": {MemoryMB: 255}, "diskMB": {DiskMB: 511},
	} {
		c.want(c.claim(ctx, quota.Start, q, "two", 0), rule)
	}
	c.want(c.claim(ctx, quota.Start, tenant.Quota{Sandboxes: 2, VCPU: 2, MemoryMB: 256, DiskMB: 512}, "two", 0), "")
	c.want(c.claim(ctx, quota.Start, tenant.Quota{}, "unbounded", 0), "")
}

func quotaRate(t *testing.T, s Subject[Counted]) {
	ctx := patient(t)
	c, q := counters(t, s, 1, 0)[0], tenant.Quota{CreatesPerMinute: 3}
	for i := range 3 {
		id := fmt.Sprint("i", i)
		c.want(c.claim(ctx, quota.Start, q, id, 0), "")
		c.put(ctx, id, tartarus.Failed, tartarus.ReasonStart, 0)
	}
	why := c.claim(ctx, quota.Start, q, "fourth", 0)
	c.want(why, "createsPerMinute")
	if why.After <= 0 || why.After > 61*time.Second {
		t.Fatalf("to be tried again after %s", why.After)
	}
}

func quotaQueue(t *testing.T, s Subject[Counted]) {
	ctx := patient(t)
	c, q := counters(t, s, 1, 0)[0], tenant.Quota{Queue: 1}
	c.want(c.claim(ctx, quota.Start, q, "one", 0), "")
	c.want(c.claim(ctx, quota.Start, q, "two", 0), "queue")
	revision := c.put(ctx, "one", tartarus.Queued, "", 0)
	c.want(c.claim(ctx, quota.Start, q, "two", 0), "queue")
	c.put(ctx, "one", tartarus.Starting, "", revision)
	c.want(c.claim(ctx, quota.Start, q, "two", 0), "")
}

func quotaPause(t *testing.T, s Subject[Counted]) {
	ctx := patient(t)
	c, q := counters(t, s, 1, 0)[0], tenant.Quota{Sandboxes: 1, SnapshotMB: 400}
	c.want(c.claim(ctx, quota.Start, q, "one", 0), "")
	first := c.put(ctx, "one", tartarus.Running, "", 0)
	c.want(c.claim(ctx, quota.Sleep, q, "one", first), "")
	c.want(c.claim(ctx, quota.Start, q, "two", 0), "sandboxes") // it is not paused yet
	first = c.put(ctx, "one", tartarus.Paused, "", first)
	c.want(c.claim(ctx, quota.Start, q, "two", 0), "")
	second := c.put(ctx, "two", tartarus.Running, "", 0)
	c.want(c.claim(ctx, quota.Wake, q, "one", first), "sandboxes")
	c.want(c.claim(ctx, quota.Sleep, q, "two", second), "snapshotMB")
	c.want(c.claim(ctx, quota.Keep, q, "two", second), "snapshotMB")
	c.put(ctx, "two", tartarus.Stopped, tartarus.ReasonUser, second)
	c.want(c.claim(ctx, quota.Wake, q, "one", first), "")
	c.want(c.claim(ctx, quota.Start, q, "three", 0), "sandboxes") // although the registry still says that it is paused
	c.put(ctx, "one", tartarus.Running, "", first)
	c.want(c.claim(ctx, quota.Keep, q, "one", first+1), "")
	c.want(c.claim(ctx, quota.Keep, q, "one", first+1), "snapshotMB")
}

func quotaLater(t *testing.T, s Subject[Counted]) {
	ctx := patient(t)
	c, q := counters(t, s, 1, 0)[0], tenant.Quota{Sandboxes: 2}
	c.want(c.claim(ctx, quota.Start, q, "one", 0), "")
	c.put(ctx, "one", tartarus.Running, "", 0)
	c.put(ctx, "unclaimed", tartarus.Running, "", 0) // while another replica knew no quota
	must(t, c.Changed(ctx, "acme"))
	c.want(c.claim(ctx, quota.Start, q, "three", 0), "sandboxes")
}
