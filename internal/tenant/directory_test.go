package tenant_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// store is a real shelf whose writes fail, or lose their race, when a test says so.
type store struct {
	shelf.Store
	away atomic.Bool
	lose atomic.Int32 // so many writes find that another one was quicker
}

func newStore(t *testing.T) *store {
	t.Helper()
	db, err := sqlite.Open(context.WithoutCancel(t.Context()), sqlite.Default(filepath.Join(t.TempDir(), "db")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return &store{Store: db.Shelf()}
}

func (s *store) Put(ctx context.Context, shelfName, name string, body []byte, expect int64) (int64, error) {
	switch {
	case s.away.Load():
		return 0, tartarus.Errorf(tartarus.Unavailable, "the store is away")
	case s.lose.Add(-1) >= 0:
		return 0, tartarus.Errorf(tartarus.Conflict, "another one was quicker")
	}
	return s.Store.Put(ctx, shelfName, name, body, expect)
}

func want(t *testing.T, err error, kind tartarus.Kind) {
	t.Helper()
	if !tartarus.Is(err, kind) {
		t.Errorf("got %v, want %s", err, kind)
	}
}

func TestDirectory(t *testing.T) {
	ctx, d := t.Context(), tenant.NewDirectory(newStore(t))
	in := tenant.Tenant{Name: "acme", Title: "Acme", Labels: map[string]string{"plan": "free"}, Quota: tenant.Quota{Sandboxes: 3}, CreatedAt: time.Now().UTC().Round(0)}
	if err := d.Create(ctx, in); err != nil {
		t.Fatal(err)
	}
	want(t, d.Create(ctx, tenant.Tenant{Name: "acme"}), tartarus.Conflict)
	got, err := d.Get(ctx, "acme")
	if err != nil || got.Title != "Acme" || got.Labels["plan"] != "free" || got.Quota != in.Quota || !got.CreatedAt.Equal(in.CreatedAt) || got.Disabled {
		t.Fatalf("got %+v, %v", got, err)
	}
	for _, none := range []string{"nobody", "", "../acme", "ACME", "*"} {
		_, err := d.Get(ctx, none)
		want(t, err, tartarus.NotFound)
	}
	if err := d.Create(ctx, tenant.Tenant{Name: "blue"}); err != nil {
		t.Fatal(err)
	}
	if all, err := d.List(ctx); err != nil || len(all) != 2 || all[0].Name != "acme" || all[1].Name != "blue" {
		t.Errorf("listed %+v, %v", all, err)
	}
	// A change cannot rename, and one that is not good changes nothing.
	got, err = d.Change(ctx, "acme", func(t *tenant.Tenant) { t.Name, t.Disabled = "blue", true })
	if err != nil || got.Name != "acme" || !got.Disabled {
		t.Errorf("got %+v, %v", got, err)
	}
	_, err = d.Change(ctx, "acme", func(t *tenant.Tenant) { t.Quota.VCPU, t.Disabled = -1, false })
	want(t, err, tartarus.Invalid)
	_, err = d.Change(ctx, "nobody", func(*tenant.Tenant) {})
	want(t, err, tartarus.NotFound)
	if got, err := d.Get(ctx, "acme"); err != nil || !got.Disabled || got.Quota.VCPU != 0 {
		t.Errorf("got %+v, %v", got, err)
	}
	for range 2 {
		if err := d.Remove(ctx, "acme"); err != nil {
			t.Fatal(err)
		}
	}
	_, err = d.Get(ctx, "acme")
	want(t, err, tartarus.NotFound)
}

func TestBadTenants(t *testing.T) {
	d := tenant.NewDirectory(newStore(t))
	many := map[string]string{}
	for i := range 65 {
		many[fmt.Sprint(i)] = ""
	}
	for name, bad := range map[string]tenant.Tenant{
		"no name": {}, "a path": {Name: "a/b"}, "a long title": {Name: "a", Title: strings.Repeat("x", 257)}, "many labels": {Name: "a", Labels: many},
		"a label without a name": {Name: "a", Labels: map[string]string{"": "x"}}, "a long label": {Name: "a", Labels: map[string]string{"x": strings.Repeat("x", 257)}},
		"less than nothing": {Name: "a", Quota: tenant.Quota{Queue: -1}}, "more than there is": {Name: "a", Quota: tenant.Quota{MemoryMB: 1<<40 + 1}},
	} {
		if err := d.Create(t.Context(), bad); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if all, err := d.List(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("left %+v, %v", all, err)
	}
}

// Changes at once are all in the end; one that always loses its race gives up.
func TestChangesAtOnce(t *testing.T) {
	ctx, s := t.Context(), newStore(t)
	d := tenant.NewDirectory(s)
	if err := d.Create(ctx, tenant.Tenant{Name: "acme"}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var done atomic.Int64
	for range 8 {
		wg.Go(func() {
			for range 4 {
				_, err := d.Change(ctx, "acme", func(t *tenant.Tenant) { t.Quota.Sandboxes++ })
				switch {
				case err == nil:
					done.Add(1)
				case !tartarus.Is(err, tartarus.Unavailable):
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := d.Get(ctx, "acme")
	if err != nil || got.Quota.Sandboxes != done.Load() || done.Load() == 0 {
		t.Errorf("%d changes made %+v, %v", done.Load(), got, err)
	}
	s.lose.Store(3)
	if _, err := d.Change(ctx, "acme", func(t *tenant.Tenant) { t.Title = "third time" }); err != nil {
		t.Errorf("after three lost races: %v", err)
	}
	s.lose.Store(1000)
	_, err = d.Change(ctx, "acme", func(t *tenant.Tenant) { t.Title = "never" })
	want(t, err, tartarus.Unavailable)
}

// A record that is damaged is said to be, and not taken for a tenant without quota.
func TestDamagedTenant(t *testing.T) {
	s := newStore(t)
	d := tenant.NewDirectory(s)
	if _, err := s.Put(t.Context(), "tenants", "acme", []byte(`{"quota":`), 0); err != nil {
		t.Fatal(err)
	}
	_, err := d.Get(t.Context(), "acme")
	want(t, err, tartarus.Corrupt)
	_, err = d.List(t.Context())
	want(t, err, tartarus.Corrupt)
}

// Uses are written now and then: the newest counts, whoever writes it last, and what cannot be written is not lost.
func TestUsage(t *testing.T) {
	ctx, s := t.Context(), newStore(t)
	here, there := tenant.NewUsage(s), tenant.NewUsage(s)
	at := func(minute int) time.Time { return time.Date(2026, 1, 2, 3, minute, 0, 0, time.UTC) }
	used := func(u *tenant.Usage, key string) time.Time {
		t.Helper()
		keys := []tenant.Key{{ID: "other"}, {ID: key}}
		if err := u.Fill(ctx, keys); err != nil {
			t.Fatal(err)
		}
		if !keys[0].LastUsed.IsZero() {
			t.Errorf("a key that nobody used was used at %s", keys[0].LastUsed)
		}
		return keys[1].LastUsed
	}
	here.Used("k", at(5))
	if got := used(here, "k"); !got.Equal(at(5)) {
		t.Errorf("before it is written, here it was used at %s", got)
	}
	if got := used(there, "k"); !got.IsZero() {
		t.Errorf("before it is written, there it was used at %s", got)
	}
	s.away.Store(true)
	want(t, here.Flush(ctx), tartarus.Unavailable)
	s.away.Store(false)
	s.lose.Store(2)
	if err := here.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if got := used(there, "k"); !got.Equal(at(5)) {
		t.Errorf("written, it was used at %s", got)
	}
	there.Used("k", at(3)) // its clock is behind
	if err := there.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if got := used(here, "k"); !got.Equal(at(5)) {
		t.Errorf("an earlier use took the place of a later one: %s", got)
	}
	there.Used("k", at(9))
	if err := there.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if got := used(here, "k"); !got.Equal(at(9)) {
		t.Errorf("used at %s", got)
	}
	for range 2 {
		if err := here.Forget(ctx, "k"); err != nil {
			t.Fatal(err)
		}
	}
	if got := used(tenant.NewUsage(s), "k"); !got.IsZero() {
		t.Errorf("forgotten, it was used at %s", got)
	}
}
