package storetest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// ListPages measures pages of a registry that holds n sandboxes of ten tenants on a hundred nodes; nine in ten have ended.
func ListPages(b *testing.B, r hades.Registry, n int) {
	began := time.Now()
	const writers = 64
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := w; i < n; i += writers {
				if _, err := r.PutSandbox(b.Context(), crowd(i)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		return
	}
	b.Logf("%d sandboxes put in %s", n, time.Since(began).Round(time.Second))
	middle := hades.Cursor{StartedAt: epoch.Add(time.Duration(n/2) * time.Millisecond), ID: "i"}
	for _, bb := range []struct {
		name string
		q    hades.Query
	}{
		{"tenant", hades.Query{Tenant: "t3"}},
		{"tenant, 1000", hades.Query{Tenant: "t3", Limit: 1000}},
		{"running", hades.Query{Tenant: "t3", Phases: []tartarus.Phase{tartarus.Running, tartarus.Paused}}},
		{"rare phase", hades.Query{Tenant: "t3", Phases: []tartarus.Phase{tartarus.Quarantined}}},
		{"middle", hades.Query{Tenant: "t3", After: middle}},
		{"oldest first", hades.Query{Tenant: "t3", Ascending: true}},
		{"everybody", hades.Query{Tenant: hades.AnyTenant}},
		{"node", hades.Query{Tenant: hades.AnyTenant, Node: "n42"}},
		{"common metadata", hades.Query{Tenant: "t3", Metadata: map[string]string{"team": "red"}}},
		{"rare metadata", hades.Query{Tenant: "t3", Metadata: map[string]string{"run": fmt.Sprint(n / 3), "team": "red"}}},
		{"rare template", hades.Query{Tenant: "t3", Template: "rare"}},
		{"ended long ago", hades.Query{Tenant: hades.AnyTenant, Phases: []tartarus.Phase{tartarus.Stopped, tartarus.Failed}, EndedBefore: epoch.Add(time.Duration(n/4) * time.Millisecond)}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			took := make([]time.Duration, 0, b.N)
			got := 0
			for range b.N {
				began := time.Now()
				page, err := r.ListSandboxes(b.Context(), bb.q)
				if err != nil {
					b.Fatal(err)
				}
				took, got = append(took, time.Since(began)), len(page.Sandboxes)
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
			b.ReportMetric(float64(got), "sandboxes")
		})
	}
}

func crowd(i int) tartarus.Sandbox {
	sb := fullSandbox(tartarus.NewID())
	sb.Tenant, sb.Node = fmt.Sprint("t", i%10), fmt.Sprint("n", i%97)
	sb.CreatedAt = epoch.Add(time.Duration(i) * time.Millisecond)
	sb.StartedAt = sb.CreatedAt.Add(time.Millisecond)
	sb.Phase, sb.EndedAt, sb.Metadata = tartarus.Stopped, sb.StartedAt.Add(time.Hour), nil
	if i%10 == i/10%10 {
		sb.Phase, sb.EndedAt = tartarus.Running, time.Time{}
	}
	if i%100_000 == 3 {
		sb.Phase, sb.Template = tartarus.Quarantined, "rare"
	}
	if i%5 == 3 {
		sb.Metadata = map[string]string{"team": "red", "run": fmt.Sprint(i / 3)}
	}
	return sb
}
