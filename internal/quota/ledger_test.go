package quota_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/quota"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
	"github.com/tartarus-sandbox/tartarus/internal/store/storetest/failing"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// flaky is a real shelf that does what a test says before each write.
type flaky struct {
	shelf.Store
	before func() error
}

func (f *flaky) Put(ctx context.Context, shelfName, name string, body []byte, expect int64) (int64, error) {
	if err := f.before(); err != nil {
		return 0, err
	}
	return f.Store.Put(ctx, shelfName, name, body, expect)
}

func open(t *testing.T) *sqlite.DB {
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
	return db
}

func start(id string) quota.Claim {
	return quota.Claim{
		Act: quota.Start, Tenant: "acme", ID: id, Quota: tenant.Quota{Sandboxes: 2}, Resources: tartarus.Resources{VCPU: 1, MemoryMB: 128, DiskMB: 64}, Now: time.Now(),
	}
}

func TestUnboundedAsksNobody(t *testing.T) {
	l := quota.New(quota.Config{Store: &flaky{before: func() error { return errors.New("asked") }}, Registry: failing.Registry{}})
	c := start("a")
	c.Quota = tenant.Quota{}
	if why, err := l.Claim(t.Context(), c); why != nil || err != nil {
		t.Errorf("%+v, %v", why, err)
	}
}

// Nothing is granted that is not written down, and nothing is refused or granted by a registry that cannot be asked.
func TestStoresAway(t *testing.T) {
	db := open(t)
	var away atomic.Bool
	store := &flaky{Store: db.Shelf(), before: func() error {
		if away.Load() {
			return tartarus.Errorf(tartarus.Unavailable, "the store is away")
		}
		return nil
	}}
	l := quota.New(quota.Config{Store: store, Registry: db.Registry()})
	away.Store(true)
	if why, err := l.Claim(t.Context(), start("a")); why != nil || !tartarus.Is(err, tartarus.Unavailable) {
		t.Fatalf("written nowhere: %+v, %v", why, err)
	}
	away.Store(false)
	for _, id := range []string{"a", "b"} {
		if why, err := l.Claim(t.Context(), start(id)); why != nil || err != nil {
			t.Fatalf("%+v, %v", why, err)
		}
	}
	blind := quota.New(quota.Config{Store: store, Registry: failing.Registry{}})
	if why, err := blind.Claim(t.Context(), start("c")); why != nil || !tartarus.Is(err, tartarus.Unavailable) {
		t.Errorf("over the quota by a record that may be old: %+v, %v", why, err)
	}
	if _, err := blind.Usage(t.Context(), "acme", time.Now()); !tartarus.Is(err, tartarus.Unavailable) {
		t.Errorf("usage: %v", err)
	}
	if why, err := l.Claim(t.Context(), start("c")); err != nil || why == nil || why.Rule != "sandboxes" {
		t.Errorf("%+v, %v", why, err)
	}
}

// Who loses a race with another replica tries again, and not for ever.
func TestRaces(t *testing.T) {
	db := open(t)
	var lost atomic.Int32
	lost.Store(5)
	store := &flaky{Store: db.Shelf(), before: func() error {
		if lost.Add(-1) >= 0 {
			return tartarus.Errorf(tartarus.Conflict, "another one was quicker")
		}
		return nil
	}}
	l := quota.New(quota.Config{Store: store, Registry: db.Registry()})
	if why, err := l.Claim(t.Context(), start("a")); why != nil || err != nil {
		t.Fatalf("after five lost races: %+v, %v", why, err)
	}
	lost.Store(1 << 30)
	if why, err := l.Claim(t.Context(), start("b")); why != nil || !tartarus.Is(err, tartarus.Unavailable) || !strings.Contains(err.Error(), "too many at once") {
		t.Errorf("after all races lost: %+v, %v", why, err)
	}
	lost.Store(0)
	if u, err := l.Usage(t.Context(), "acme", time.Now()); err != nil || u.Sandboxes != 1 {
		t.Errorf("usage %+v, %v", u, err)
	}
}

// A store that panics costs its round and nothing else: everybody is answered, and the next round works.
func TestPanic(t *testing.T) {
	db := open(t)
	var once sync.Once
	store := &flaky{Store: db.Shelf(), before: func() error { once.Do(func() { panic("a fault") }); return nil }}
	l := quota.New(quota.Config{Store: store, Registry: db.Registry()})
	if why, err := l.Claim(t.Context(), start("a")); why != nil || err == nil {
		t.Fatalf("%+v, %v", why, err)
	}
	if why, err := l.Claim(t.Context(), start("a")); why != nil || err != nil {
		t.Fatalf("%+v, %v", why, err)
	}
}

// Who does not wait any more gets nothing, and takes nothing of it from others.
func TestClaimantLeaves(t *testing.T) {
	db := open(t)
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	store := &flaky{Store: db.Shelf(), before: func() error {
		once.Do(func() { close(begun); <-goOn })
		return nil
	}}
	l := quota.New(quota.Config{Store: store, Registry: db.Registry()})
	first := make(chan error, 1)
	go func() { _, err := l.Claim(t.Context(), start("a")); first <- err }()
	<-begun
	ctx, leave := context.WithCancel(t.Context())
	second := make(chan error, 1)
	go func() { _, err := l.Claim(ctx, start("b")); second <- err }()
	leave()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("who left: %v", err)
	}
	close(goOn)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if u, err := l.Usage(t.Context(), "acme", time.Now()); err != nil || u.Sandboxes != 1 {
		t.Errorf("usage %+v, %v", u, err)
	}
}

// A record that is damaged grants nothing.
func TestDamagedRecord(t *testing.T) {
	db := open(t)
	if _, err := db.Shelf().Put(t.Context(), "quota", "acme", []byte(`{"holds":7}`), 0); err != nil {
		t.Fatal(err)
	}
	l := quota.New(quota.Config{Store: db.Shelf(), Registry: db.Registry()})
	if why, err := l.Claim(t.Context(), start("a")); why != nil || !tartarus.Is(err, tartarus.Corrupt) {
		t.Errorf("%+v, %v", why, err)
	}
	if err := l.Changed(t.Context(), "acme"); !tartarus.Is(err, tartarus.Corrupt) {
		t.Errorf("changed: %v", err)
	}
}

var _ hades.Registry = failing.Registry{}
