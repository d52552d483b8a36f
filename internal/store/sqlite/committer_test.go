package sqlite

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
)

// gate holds every sync until it is told how that goes.
type gate struct {
	reached chan struct{}
	result  chan error
}

func holdSyncs(t *testing.T, db *DB) gate {
	t.Helper()
	g := gate{make(chan struct{}, 16), make(chan error, 16)}
	if err := db.write(t.Context(), func(txn *txn) error {
		db.fail = func(point string) error {
			if point != "sync" {
				return nil
			}
			g.reached <- struct{}{}
			return <-g.result
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return g
}

// TestTwoGroups has one group synced while the next one runs, which sees what the first one did. Nobody of either is told anything before it is durable,
// and when the sync fails all of both are told that nothing happened: who was refused because of the first one, too.
func TestTwoGroups(t *testing.T) {
	for name, fault := range map[string]error{"durable": nil, "lost": tartarus.Errorf(tartarus.Unavailable, "disk fails")} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			db := openTest(t, path)
			syncs := holdSyncs(t, db)
			put := func(id string) <-chan error { // returns when it has run
				ran, told := make(chan struct{}), make(chan error, 1)
				go func() {
					told <- db.write(t.Context(), func(txn *txn) error {
						defer close(ran)
						return txn.insertSandbox(filed{id: id, tenant: "acme"}, 1, []byte("{}"))
					})
				}()
				<-ran
				return told
			}
			nobody := func(told ...<-chan error) {
				t.Helper()
				for _, ch := range told {
					select {
					case err := <-ch:
						t.Fatalf("somebody was told before the sync: %v", err)
					default:
					}
				}
			}
			first := put("a")
			<-syncs.reached
			second, twice := put("b"), put("a")
			nobody(first, second, twice)
			syncs.result <- fault
			want := []string{"a", "b"}
			if fault == nil {
				if err := <-first; err != nil {
					t.Fatal(err)
				}
				<-syncs.reached
				nobody(second, twice)
				close(syncs.result)
				if err := <-second; err != nil {
					t.Fatal(err)
				}
				wantKind(t, <-twice, tartarus.Conflict)
			} else {
				for _, told := range []<-chan error{first, second, twice} {
					wantKind(t, <-told, tartarus.Unavailable)
				}
				close(syncs.result) // from here on all goes well
				if err := <-put("b"); err != nil {
					t.Fatal(err)
				}
				want = []string{"b"}
			}
			for range 2 { // opened again it is the same
				for _, id := range []string{"a", "b"} {
					_, err := db.Registry().Sandbox(t.Context(), "acme", id)
					if there := slices.Contains(want, id); there != (err == nil) || !there && !tartarus.Is(err, tartarus.NotFound) {
						t.Errorf("sandbox %s: %v", id, err)
					}
				}
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				db = openTest(t, path)
			}
		})
	}
}

// TestFailingNowAndThen has the disk fail at any step while many write: whoever was told that it is durable finds it, also after a crash, and whoever was told
// that it is not finds nothing.
func TestFailingNowAndThen(t *testing.T) {
	dir := t.TempDir()
	db := openTest(t, filepath.Join(dir, "store.db"))
	var on atomic.Bool
	if err := db.write(t.Context(), func(*txn) error {
		db.fail = func(point string) error {
			if on.Load() && point != "read" && rand.IntN(40) == 0 {
				return tartarus.Errorf(tartarus.Unavailable, "disk fails at %s", point)
			}
			return nil
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	on.Store(true)
	var mu sync.Mutex
	told := map[string]bool{}
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 60 {
				id := fmt.Sprint("w", w, "i", i)
				err := db.Journal().Put(t.Context(), id, []byte(id))
				if err == nil && i%20 == 0 { // readers have it committed, which may fail too
					_, err = db.Journal().All(t.Context())
					if tartarus.Is(err, tartarus.Unavailable) {
						err = nil
					}
				}
				if err != nil && !tartarus.Is(err, tartarus.Unavailable) {
					t.Errorf("%s: %v", id, err)
				}
				mu.Lock()
				told[id] = err == nil
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	on.Store(false)
	lost := 0
	for range 2 {
		all, err := db.Journal().All(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		lost = 0
		for id, durable := range told {
			if there := string(all[id]) == id; there != durable {
				t.Errorf("%s: told %t, there %t", id, durable, there)
			}
			if !durable {
				lost++
			}
		}
		db = openTest(t, crashedCopy(t, dir))
	}
	if lost == 0 || lost == len(told) {
		t.Errorf("%d of %d were lost: this tests nothing", lost, len(told))
	}
}
