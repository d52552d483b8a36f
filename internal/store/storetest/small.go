package storetest

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// Keys is the suite of tenant.Store.
func Keys(t *testing.T, open Factory[tenant.Store]) {
	tests := []struct {
		name string
		run  func(*testing.T, Subject[tenant.Store])
	}{
		{"a key comes back whole", keyWhole},
		{"a changed key replaces the old one", keyChanged},
		{"a hash belongs to one key", keyConflict},
		{"of many keys with a hash one is stored", keyContention},
		{"keys are listed by creation, per tenant", keyList},
		{"a removed key is gone", keyRemoved},
		{"what was acknowledged survives a crash", keyCrash},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, open(t)) })
	}
}

func key(id string) tenant.Key {
	return tenant.Key{ID: id, Hash: tenant.HashSecret("secret of " + id), Tenant: "acme", Role: tenant.Developer, CreatedAt: epoch}
}

// wantKey compares the hash too, which JSON leaves out.
func wantKey(t *testing.T, s tenant.Store, want tenant.Key) {
	t.Helper()
	got, err := s.KeyByHash(patient(t), want.Hash)
	must(t, err)
	wantSame(t, got, want)
	if got.Hash != want.Hash {
		t.Fatalf("hash is %q, want %q", got.Hash, want.Hash)
	}
}

func keyWhole(t *testing.T, s Subject[tenant.Store]) {
	full := tenant.Key{
		ID: "full", Hash: tenant.HashSecret("x"), Tenant: "beta", Name: "n a m e", Role: tenant.Admin, Exec: true,
		CreatedAt: epoch, ExpiresAt: epoch.Add(1), RevokedAt: epoch.Add(2), LastUsed: epoch.Add(3),
	}
	for _, k := range []tenant.Key{key("bare"), full} {
		must(t, s.Store.PutKey(patient(t), k))
		wantKey(t, s.Store, k) // expired and revoked ones are found too
	}
	_, err := s.Store.KeyByHash(patient(t), tenant.HashSecret("never"))
	wantKind(t, err, tartarus.NotFound)
	_, err = s.Store.KeyByHash(patient(t), "")
	wantKind(t, err, tartarus.NotFound)
	for _, k := range []tenant.Key{{Hash: "h", Tenant: "t"}, {ID: "i", Tenant: "t"}, {ID: "i", Hash: "h"}, {ID: "i", Hash: "h", Tenant: hades.AnyTenant}} {
		wantKind(t, s.Store.PutKey(patient(t), k), tartarus.Invalid)
	}
}

func keyChanged(t *testing.T, s Subject[tenant.Store]) {
	k := key("a")
	must(t, s.Store.PutKey(patient(t), k))
	k.RevokedAt, k.Tenant = epoch, "beta"
	must(t, s.Store.PutKey(patient(t), k))
	wantKey(t, s.Store, k)
	old := k.Hash
	k.Hash = tenant.HashSecret("another secret")
	must(t, s.Store.PutKey(patient(t), k))
	wantKey(t, s.Store, k)
	_, err := s.Store.KeyByHash(patient(t), old)
	wantKind(t, err, tartarus.NotFound)
	all, err := s.Store.Keys(patient(t), hades.AnyTenant)
	must(t, err)
	wantSame(t, all, []tenant.Key{k})
	none, err := s.Store.Keys(patient(t), "acme")
	must(t, err)
	wantSame(t, none, []tenant.Key{})
}

func keyConflict(t *testing.T, s Subject[tenant.Store]) {
	a, b := key("a"), key("b")
	b.Hash = a.Hash
	must(t, s.Store.PutKey(patient(t), a))
	wantKind(t, s.Store.PutKey(patient(t), b), tartarus.Conflict)
	wantKey(t, s.Store, a)
	must(t, s.Store.RemoveKey(patient(t), "a"))
	must(t, s.Store.PutKey(patient(t), b))
	wantKey(t, s.Store, b)
}

func keyContention(t *testing.T, s Subject[tenant.Store]) {
	const n = 16
	stored := make(chan string, n)
	each(n, func(i int) {
		k := key(fmt.Sprint("k", i))
		k.Hash = "same"
		switch err := s.Store.PutKey(patient(t), k); {
		case err == nil:
			stored <- k.ID
		case !tartarus.Is(err, tartarus.Conflict):
			t.Error(err)
		}
	})
	if len(stored) != 1 {
		t.Fatalf("%d keys share a hash", len(stored))
	}
}

func keyList(t *testing.T, s Subject[tenant.Store]) {
	want := map[string][]tenant.Key{"acme": {}, "beta": {}, "nobody": {}, hades.AnyTenant: {}}
	for i := range 12 {
		k := key(fmt.Sprintf("k%02d", (i*5)%12)) // ids do not follow creation
		k.Tenant, k.CreatedAt = []string{"acme", "beta"}[i%2], epoch.Add(time.Duration(i)*time.Second)
		want[k.Tenant] = append(want[k.Tenant], k)
		want[hades.AnyTenant] = append(want[hades.AnyTenant], k)
		must(t, s.Store.PutKey(patient(t), k))
	}
	for name, keys := range want {
		got, err := s.Store.Keys(patient(t), name)
		must(t, err)
		wantSame(t, got, keys)
	}
}

func keyRemoved(t *testing.T, s Subject[tenant.Store]) {
	must(t, s.Store.PutKey(patient(t), key("a")))
	must(t, s.Store.RemoveKey(patient(t), "a"))
	must(t, s.Store.RemoveKey(patient(t), "a"))
	_, err := s.Store.KeyByHash(patient(t), key("a").Hash)
	wantKind(t, err, tartarus.NotFound)
	must(t, s.Store.PutKey(patient(t), key("a")))
	wantKey(t, s.Store, key("a"))
}

func keyCrash(t *testing.T, s Subject[tenant.Store]) {
	if s.Crash == nil {
		t.Skip("this store outlives its clients")
	}
	each(20, func(i int) {
		if err := s.Store.PutKey(patient(t), key(fmt.Sprint("k", i))); err != nil {
			t.Error(err)
		}
	})
	again := s.Crash(t)
	for i := range 20 {
		wantKey(t, again, key(fmt.Sprint("k", i)))
	}
}

// Journaler is the shape of hecatoncheir.Journal, which is not imported to keep the stores below the node.
type Journaler interface {
	Put(ctx context.Context, id string, record []byte) error
	Delete(ctx context.Context, id string) error
	All(ctx context.Context) (map[string][]byte, error)
}

// Journal is the suite of a node's journal.
func Journal(t *testing.T, open Factory[Journaler]) {
	want := func(t *testing.T, j Journaler, records map[string][]byte) {
		t.Helper()
		all, err := j.All(patient(t))
		must(t, err)
		if len(all) != len(records) {
			t.Fatalf("%d records, want %d", len(all), len(records))
		}
		for id, r := range records {
			if got, ok := all[id]; !ok || !bytes.Equal(got, r) {
				t.Fatalf("record %s is %q, want %q", id, got, r)
			}
		}
	}
	t.Run("records come back as they were put last", func(t *testing.T) {
		j := open(t).Store
		want(t, j, nil)
		records := map[string][]byte{"a": []byte("\x00\xff"), "b": nil, "c": bytes.Repeat([]byte("x"), 1<<20)}
		for id, r := range records {
			must(t, j.Put(patient(t), id, []byte("older")))
			must(t, j.Put(patient(t), id, r))
		}
		want(t, j, records)
		must(t, j.Delete(patient(t), "a"))
		must(t, j.Delete(patient(t), "a"))
		must(t, j.Delete(patient(t), "z"))
		delete(records, "a")
		want(t, j, records)
	})
	t.Run("what was acknowledged survives a crash", func(t *testing.T) {
		s := open(t)
		if s.Crash == nil {
			t.Skip("this store outlives its clients")
		}
		records := map[string][]byte{}
		for i := range 100 {
			if id := fmt.Sprint("r", i); i%3 != 0 {
				records[id] = []byte(id)
			}
		}
		each(100, func(i int) {
			id := fmt.Sprint("r", i)
			err := s.Store.Put(patient(t), id, []byte(id))
			if err == nil && i%3 == 0 {
				err = s.Store.Delete(patient(t), id)
			}
			if err != nil {
				t.Error(err)
			}
		})
		want(t, s.Crash(t), records)
	})
}
