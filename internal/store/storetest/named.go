package storetest

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/secret"
	"github.com/tartarus-sandbox/tartarus/internal/volume"
)

// Secrets tests an implementation of secret.Store.
func Secrets(t *testing.T, open Factory[secret.Store]) {
	for name, run := range map[string]func(*testing.T, Subject[secret.Store]){
		"a secret comes back whole":                secretWhole,
		"versions are compared before they change": secretVersions,
		"of many updates to a version one is kept": secretContention,
	} {
		t.Run(name, func(t *testing.T) { run(t, open(t)) })
	}
	names(t, open, func(s secret.Store) namedStore {
		return namedStore{
			create: func(ctx context.Context, tenant, id, name string) error {
				return s.CreateSecret(ctx, sealed(tenant, id, name))
			},
			find: func(ctx context.Context, tenant, ref string) (string, error) {
				r, err := s.Secret(ctx, tenant, ref)
				return r.ID, err
			},
			list: func(ctx context.Context, tenant, after string, limit int) (ids []string, err error) {
				l, err := s.Secrets(ctx, tenant, after, limit)
				for _, i := range l {
					ids = append(ids, i.ID)
				}
				return ids, err
			},
			remove: s.RemoveSecret,
			max:    secret.MaxPerTenant,
		}
	})
}

// Volumes tests an implementation of volume.Store.
func Volumes(t *testing.T, open Factory[volume.Store]) {
	t.Run("a volume comes back whole", func(t *testing.T) {
		s := open(t).Store
		v := volume.Volume{ID: "vol_1", Tenant: "acme", Name: "Data", CreatedAt: epoch}
		must(t, s.CreateVolume(patient(t), v))
		got, err := s.Volume(patient(t), "acme", "Data")
		must(t, err)
		wantSame(t, got, v)
	})
	names(t, open, func(s volume.Store) namedStore {
		return namedStore{
			create: func(ctx context.Context, tenant, id, name string) error {
				return s.CreateVolume(ctx, volume.Volume{ID: id, Tenant: tenant, Name: name, CreatedAt: epoch})
			},
			find: func(ctx context.Context, tenant, ref string) (string, error) {
				v, err := s.Volume(ctx, tenant, ref)
				return v.ID, err
			},
			list: func(ctx context.Context, tenant, after string, limit int) (ids []string, err error) {
				l, err := s.Volumes(ctx, tenant, after, limit)
				for _, v := range l {
					ids = append(ids, v.ID)
				}
				return ids, err
			},
			remove: s.RemoveVolume,
			max:    volume.MaxPerTenant,
		}
	})
}

func sealed(tenant, id, name string) secret.Record {
	return secret.Record{
		Info:   secret.Info{ID: id, Tenant: tenant, Name: name, Version: 1, CreatedAt: epoch, UpdatedAt: epoch},
		Sealed: []byte("\x00sealed " + id),
	}
}

func secretWhole(t *testing.T, s Subject[secret.Store]) {
	r := sealed("acme", "sec_1", "one")
	r.Metadata = map[string]string{"a": "|b|", "": "\x00"}
	must(t, s.Store.CreateSecret(patient(t), r))
	for _, ref := range []string{"sec_1", "one"} {
		got, err := s.Store.Secret(patient(t), "acme", ref)
		must(t, err)
		wantSame(t, got, r)
	}
	list, err := s.Store.Secrets(patient(t), "acme", "", 10)
	must(t, err)
	wantSame(t, list, []secret.Info{r.Info})
}

func secretVersions(t *testing.T, s Subject[secret.Store]) {
	r := sealed("acme", "sec_1", "one")
	r.Version = 2
	wantKind(t, s.Store.UpdateSecret(patient(t), r), tartarus.NotFound)
	r.Version = 1
	must(t, s.Store.CreateSecret(patient(t), r))
	r.Version, r.Sealed, r.UpdatedAt = 2, []byte("second"), epoch.Add(time.Second)
	must(t, s.Store.UpdateSecret(patient(t), r))
	for _, stale := range []int64{2, 4} {
		old := r
		old.Version = stale
		wantKind(t, s.Store.UpdateSecret(patient(t), old), tartarus.Conflict)
	}
	if s.Crash != nil {
		s.Store = s.Crash(t)
	}
	got, err := s.Store.Secret(patient(t), "acme", "one")
	must(t, err)
	wantSame(t, got, r)
	other := r
	other.Tenant, other.Version = "beta", 3
	wantKind(t, s.Store.UpdateSecret(patient(t), other), tartarus.NotFound)
}

func secretContention(t *testing.T, s Subject[secret.Store]) {
	must(t, s.Store.CreateSecret(patient(t), sealed("acme", "sec_1", "one")))
	ctx := patient(t)
	var kept atomic.Int32
	each(16, func(int) {
		r := sealed("acme", "sec_1", "one")
		r.Version = 2
		if err := s.Store.UpdateSecret(ctx, r); err == nil {
			kept.Add(1)
		} else if !tartarus.Is(err, tartarus.Conflict) {
			t.Error(err)
		}
	})
	if kept.Load() != 1 {
		t.Fatalf("%d updates to version 2 were kept", kept.Load())
	}
}

// namedStore is what stores of named things have in common.
type namedStore struct {
	create func(ctx context.Context, tenant, id, name string) error
	find   func(ctx context.Context, tenant, ref string) (id string, err error)
	list   func(ctx context.Context, tenant, after string, limit int) (ids []string, err error)
	remove func(ctx context.Context, tenant, id string) error
	max    int
}

// names tests that things are found, listed and counted under their tenant's names.
func names[T any](t *testing.T, open Factory[T], as func(T) namedStore) {
	for name, run := range map[string]func(*testing.T, namedStore){
		"names and ids are unique within a tenant": namesUnique,
		"pages are in the order of names":          namesPages,
		"what was removed is gone":                 namesRemoved,
		"a tenant has a limit":                     namesLimit,
		"of many with a name one is made": func(t *testing.T, s namedStore) {
			ctx := patient(t)
			var made atomic.Int32
			each(16, func(i int) {
				if err := s.create(ctx, "acme", fmt.Sprintf("id%d", i), "same"); err == nil {
					made.Add(1)
				} else if !tartarus.Is(err, tartarus.Conflict) {
					t.Error(err)
				}
			})
			if made.Load() != 1 {
				t.Fatalf("%d were made", made.Load())
			}
		},
	} {
		t.Run(name, func(t *testing.T) { run(t, as(open(t).Store)) })
	}
	t.Run("what was acknowledged survives a crash", func(t *testing.T) {
		s := open(t)
		if s.Crash == nil {
			t.Skip("this store outlives its clients")
		}
		must(t, as(s.Store).create(patient(t), "acme", "id1", "one"))
		must(t, as(s.Store).create(patient(t), "acme", "id2", "two"))
		must(t, as(s.Store).remove(patient(t), "acme", "id2"))
		again := as(s.Crash(t))
		ids, err := again.list(patient(t), "acme", "", 10)
		must(t, err)
		wantSame(t, ids, []string{"id1"})
	})
}

func namesUnique(t *testing.T, s namedStore) {
	must(t, s.create(patient(t), "acme", "id1", "one"))
	wantKind(t, s.create(patient(t), "acme", "id2", "one"), tartarus.Conflict)
	wantKind(t, s.create(patient(t), "acme", "id1", "two"), tartarus.Conflict)
	must(t, s.create(patient(t), "beta", "id2", "one"))
	for _, bad := range [][3]string{{"", "i", "n"}, {"t", "", "n"}, {"t", "i", ""}, {hades.AnyTenant, "i", "n"}} {
		wantKind(t, s.create(patient(t), bad[0], bad[1], bad[2]), tartarus.Invalid)
	}
	for _, ref := range []string{"one", "id1"} {
		id, err := s.find(patient(t), "acme", ref)
		must(t, err)
		wantSame(t, id, "id1")
	}
	for _, ref := range []string{"id2", "two", ""} {
		_, err := s.find(patient(t), "acme", ref)
		wantKind(t, err, tartarus.NotFound)
	}
}

func namesPages(t *testing.T, s namedStore) {
	for _, n := range []string{"b", "d", "a", "c"} {
		must(t, s.create(patient(t), "acme", "id-"+n, n))
	}
	must(t, s.create(patient(t), "beta", "id-e", "e"))
	page, err := s.list(patient(t), "acme", "", 3)
	must(t, err)
	wantSame(t, page, []string{"id-a", "id-b", "id-c"})
	page, err = s.list(patient(t), "acme", "c", 3)
	must(t, err)
	wantSame(t, page, []string{"id-d"})
	page, err = s.list(patient(t), "nobody", "", 3)
	must(t, err)
	if len(page) != 0 {
		t.Fatalf("got %v", page)
	}
	_, err = s.list(patient(t), "acme", "", 0)
	wantKind(t, err, tartarus.Invalid)
}

func namesRemoved(t *testing.T, s namedStore) {
	must(t, s.create(patient(t), "acme", "id1", "one"))
	wantKind(t, s.remove(patient(t), "beta", "id1"), tartarus.NotFound)
	must(t, s.remove(patient(t), "acme", "id1"))
	wantKind(t, s.remove(patient(t), "acme", "id1"), tartarus.NotFound)
	_, err := s.find(patient(t), "acme", "one")
	wantKind(t, err, tartarus.NotFound)
	must(t, s.create(patient(t), "acme", "id2", "one")) // the name is free again
}

func namesLimit(t *testing.T, s namedStore) {
	ctx := patient(t)
	each(s.max, func(i int) {
		if err := s.create(ctx, "acme", fmt.Sprintf("id%d", i), fmt.Sprintf("name%d", i)); err != nil {
			t.Error(err)
		}
	})
	wantKind(t, s.create(ctx, "acme", "more", "another"), tartarus.Exhausted)
	must(t, s.create(ctx, "beta", "more", "another"))
}
