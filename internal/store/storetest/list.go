package storetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// population is sandboxes of several tenants, nodes and phases, with times that collide.
func population(n int) []tartarus.Sandbox {
	rnd := rand.New(rand.NewPCG(1, 2))
	all := make([]tartarus.Sandbox, n)
	for i := range all {
		sb := sandbox(fmt.Sprintf("s%04d", rnd.IntN(1000)*1000+i))
		sb.Tenant = []string{"acme", "acme", "beta"}[rnd.IntN(3)]
		sb.Phase = tartarus.Phases[rnd.IntN(len(tartarus.Phases))]
		sb.Node = []string{"", "n1", "n2"}[rnd.IntN(3)]
		sb.TemplateID, sb.Template = []string{"tpl0", "tpl1"}[rnd.IntN(2)], []string{"tiny", "base", "tpl1"}[rnd.IntN(3)]
		sb.CreatedAt = epoch.Add(time.Duration(rnd.IntN(20)) * time.Second)
		if rnd.IntN(2) == 0 {
			sb.StartedAt = sb.CreatedAt.Add(time.Duration(rnd.IntN(5)))
		}
		if sb.Phase.Ended() {
			sb.EndedAt = sb.CreatedAt.Add(time.Duration(rnd.IntN(60)) * time.Second)
		}
		switch rnd.IntN(3) {
		case 0:
			sb.Metadata = map[string]string{"team": "red"}
		case 1:
			sb.Metadata = map[string]string{"team": []string{"red", "blue"}[rnd.IntN(2)], "run": fmt.Sprint(rnd.IntN(3))}
		}
		all[i] = sb
	}
	return all
}

func byListing(a, b tartarus.Sandbox) int {
	if c := hades.ListedAt(a).Compare(hades.ListedAt(b)); c != 0 {
		return c
	}
	return strings.Compare(a.ID, b.ID)
}

// expected is what q has to list in all.
func expected(all []tartarus.Sandbox, q hades.Query) []string {
	var ids []string
	sorted := slices.SortedFunc(slices.Values(all), byListing)
	if !q.Ascending {
		slices.Reverse(sorted)
	}
	for _, sb := range sorted {
		if q.Selects(sb) {
			ids = append(ids, sb.ID)
		}
	}
	return ids
}

// walk joins the pages of q and checks each.
func walk(t *testing.T, r hades.Registry, q hades.Query) []string {
	t.Helper()
	ctx := patient(t)
	var ids []string
	for range 1000 {
		page, err := r.ListSandboxes(ctx, q)
		must(t, err)
		if q.Limit > 0 && len(page.Sandboxes) > q.Limit {
			t.Fatalf("a page of %d where %d was the limit", len(page.Sandboxes), q.Limit)
		}
		for _, sb := range page.Sandboxes {
			ids = append(ids, sb.ID)
		}
		if page.Next == (hades.Cursor{}) {
			return ids
		}
		if len(page.Sandboxes) == 0 {
			t.Fatal("an empty page says that another follows")
		}
		q.After = page.Next
	}
	t.Fatal("pages do not end")
	return nil
}

func listPages(t *testing.T, s Subject[hades.Registry]) {
	all := populate(t, s.Store, 120)
	for _, asc := range []bool{false, true} {
		for _, limit := range []int{0, 1, 7, 119, 120, 1000} {
			for _, tenant := range []string{"acme", hades.AnyTenant} {
				q := hades.Query{Tenant: tenant, Ascending: asc, Limit: limit}
				if got, want := walk(t, s.Store, q), expected(all, q); !slices.Equal(got, want) {
					t.Fatalf("%+v: got %d, want %d sandboxes\ngot  %v\nwant %v", q, len(got), len(want), got, want)
				}
			}
		}
	}
}

func populate(t *testing.T, r hades.Registry, n int) []tartarus.Sandbox {
	t.Helper()
	ctx := patient(t)
	all := population(n)
	each(n, func(i int) {
		rev, err := r.PutSandbox(ctx, all[i])
		if err != nil {
			t.Error(err)
		}
		all[i].Revision = rev
	})
	if t.Failed() {
		t.FailNow()
	}
	return all
}

// filters are one query for each field, and the ones where fields meet.
func filters() []hades.Query {
	red, redRun := map[string]string{"team": "red"}, map[string]string{"team": "red", "run": "1"}
	running := []tartarus.Phase{tartarus.Running}
	ended := []tartarus.Phase{tartarus.Stopped, tartarus.Failed, tartarus.Stopped}
	return []hades.Query{
		{Phases: running},
		{Phases: []tartarus.Phase{tartarus.Running, tartarus.Paused, tartarus.Starting}},
		{Node: "n1"},
		{Node: "n1", Phases: running},
		{Node: "nobody"},
		{Template: "tpl1"}, // an id of some and the name of others
		{Template: "base", Phases: running},
		{Metadata: red},
		{Metadata: redRun},
		{Metadata: redRun, Phases: running, Node: "n2", Template: "tpl0"},
		{Metadata: map[string]string{"team": "green"}},
		{Metadata: map[string]string{"colour": "red"}},
		{StartedAfter: epoch.Add(10 * time.Second)},
		{StartedAfter: epoch.Add(10*time.Second + 2)},
		{EndedBefore: epoch.Add(30 * time.Second)},
		{EndedBefore: epoch.Add(30 * time.Second), Phases: ended, Ascending: true},
		{StartedAfter: epoch.Add(5 * time.Second), EndedBefore: epoch.Add(30 * time.Second), Node: "n2", Metadata: red},
	}
}

func checkFilters(t *testing.T, r hades.Registry, all []tartarus.Sandbox) {
	t.Helper()
	for _, q := range filters() {
		for _, tenant := range []string{"acme", "beta", "nobody", hades.AnyTenant} {
			for _, limit := range []int{0, 11} {
				q.Tenant, q.Limit = tenant, limit
				if got, want := walk(t, r, q), expected(all, q); !slices.Equal(got, want) {
					t.Fatalf("%+v\ngot  %v\nwant %v", q, got, want)
				}
			}
		}
	}
}

func listFilters(t *testing.T, s Subject[hades.Registry]) {
	checkFilters(t, s.Store, populate(t, s.Store, 150))
}

func listAfterChange(t *testing.T, s Subject[hades.Registry]) {
	ctx := patient(t)
	all := populate(t, s.Store, 120)
	changes := []func(*tartarus.Sandbox){
		func(sb *tartarus.Sandbox) { sb.Phase = tartarus.Running },
		func(sb *tartarus.Sandbox) { sb.StartedAt = epoch.Add(7 * time.Second) },
		func(sb *tartarus.Sandbox) { sb.Node = "n2" },
		func(sb *tartarus.Sandbox) { sb.Phase, sb.EndedAt = tartarus.Stopped, epoch.Add(3*time.Second) },
		func(sb *tartarus.Sandbox) { sb.Metadata = map[string]string{"team": "red", "run": "2"} },
		func(sb *tartarus.Sandbox) { sb.Metadata = nil },
		func(sb *tartarus.Sandbox) { sb.Template = "base" },
		func(sb *tartarus.Sandbox) { sb.Message = "only words" },
	}
	for i := range all {
		changes[i%len(changes)](&all[i])
		rev, err := s.Store.PutSandbox(ctx, all[i])
		must(t, err)
		all[i].Revision = rev
	}
	for _, sb := range all[:20] {
		must(t, s.Store.RemoveSandbox(ctx, sb.ID))
	}
	checkFilters(t, s.Store, all[20:])
}

func listInvalid(t *testing.T, s Subject[hades.Registry]) {
	for _, q := range []hades.Query{{}, {Tenant: "a", Limit: -1}, {Tenant: "a", Limit: 1001}, {Tenant: "a", Phases: []tartarus.Phase{"dancing"}}} {
		_, err := s.Store.ListSandboxes(patient(t), q)
		wantKind(t, err, tartarus.Invalid)
	}
}

// listWhileWriting pages through what was there before others began to insert, change and remove around it.
func listWhileWriting(t *testing.T, s Subject[hades.Registry]) {
	ctx := patient(t)
	all := populate(t, s.Store, 200)
	var stop atomic.Bool
	var wg = make(chan struct{}, 4)
	for w := range cap(wg) {
		go func() {
			defer func() { wg <- struct{}{} }()
			for i := 0; !stop.Load() && i < 2000; i++ {
				sb := sandbox(fmt.Sprintf("w%d-%d", w, i))
				sb.CreatedAt = epoch.Add(time.Duration(i%20) * time.Second)
				rev, err := s.Store.PutSandbox(ctx, sb)
				if err == nil && i%2 == 0 {
					sb.Revision, sb.Phase = rev, tartarus.Running
					_, err = s.Store.PutSandbox(ctx, sb)
				}
				if err == nil && i%3 == 0 {
					err = s.Store.RemoveSandbox(ctx, sb.ID)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	for _, asc := range []bool{false, true} {
		q := hades.Query{Tenant: "acme", Ascending: asc, Limit: 9}
		seen := map[string]int{}
		var got []string
		for _, id := range walk(t, s.Store, q) {
			seen[id]++
			if id[0] == 's' {
				got = append(got, id)
			}
		}
		for id, n := range seen {
			// A sandbox that moves while it is listed may be seen twice; these never move.
			if n > 1 {
				t.Errorf("%s was listed %d times", id, n)
			}
		}
		if want := expected(all, q); !slices.Equal(got, want) {
			t.Errorf("of those that did not change: got %d, want %d", len(got), len(want))
		}
	}
	stop.Store(true)
	for range cap(wg) {
		<-wg
	}
}
