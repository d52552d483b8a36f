package sqlite

import (
	"path/filepath"
	"slices"
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
