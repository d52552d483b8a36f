package sqlite

import (
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// TestArrive holds that a sandbox arrives as a whole or not at all, and that the node's word replaces whatever the registry had.
func TestArrive(t *testing.T) {
	for _, tt := range []struct {
		name    string
		before  func(t *testing.T, db *DB, sb tartarus.Sandbox)
		entries int64 // the revision that the registry has it at
	}{
		{"the entry is as expected", func(t *testing.T, db *DB, sb tartarus.Sandbox) { putAt(t, db, sb, 0) }, 2},
		{"the entry is not there", func(*testing.T, *DB, tartarus.Sandbox) {}, 1},
		{"somebody else wrote", func(t *testing.T, db *DB, sb tartarus.Sandbox) { putAt(t, db, sb, 0); putAt(t, db, sb, 1) }, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			db := openTest(t, path)
			sb := testSandbox("a")
			tt.before(t, db, sb)
			l := leaseTest(t, db, "a")
			sb.Phase, sb.Revision, sb.Metadata = tartarus.Running, 1, map[string]string{"k": "v"}
			rev, err := db.Arrive(t.Context(), l, sb, []byte("record"))
			if err != nil || rev != tt.entries {
				t.Fatalf("revision %d, want %d, %v", rev, tt.entries, err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			db = openTest(t, path)
			got, err := db.Registry().Sandbox(t.Context(), "acme", "a")
			if err != nil || got.Revision != rev || got.Phase != tartarus.Running || got.Metadata["k"] != "v" {
				t.Errorf("registry: %+v, %v", got, err)
			}
			if j, err := db.Queue().Job(t.Context(), "a"); err != nil || j.State != acheron.Done || !reflect.DeepEqual(decoded(t, j.Result), got) {
				t.Errorf("queue: %+v, %v", j, err)
			}
			if all, err := db.Journal().All(t.Context()); err != nil || string(all["a"]) != "record" {
				t.Errorf("journal: %s, %v", all["a"], err)
			}
		})
	}
}

// TestArriveTooLate has the lease lost before: nothing of the arrival happens.
func TestArriveTooLate(t *testing.T) {
	db := openTest(t, filepath.Join(t.TempDir(), "store.db"))
	l := leaseTest(t, db, "a")
	if err := db.Queue().Cancel(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	_, err := db.Arrive(t.Context(), l, testSandbox("a"), []byte("record"))
	wantKind(t, err, tartarus.Conflict)
	_, err = db.Registry().Sandbox(t.Context(), "acme", "a")
	wantKind(t, err, tartarus.NotFound)
	if all, err := db.Journal().All(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("journal: %v, %v", all, err)
	}
}

func putAt(t *testing.T, db *DB, sb tartarus.Sandbox, revision int64) {
	t.Helper()
	sb.Revision = revision
	if _, err := db.Registry().PutSandbox(t.Context(), sb); err != nil {
		t.Fatal(err)
	}
}

func leaseTest(t *testing.T, db *DB, id string) acheron.Lease {
	t.Helper()
	if _, err := db.Queue().Enqueue(t.Context(), testJob(id)); err != nil {
		t.Fatal(err)
	}
	ls, err := db.Queue().Lease(t.Context(), "n1", 1, time.Minute)
	if err != nil || len(ls) != 1 {
		t.Fatalf("%v, %v", ls, err)
	}
	return ls[0]
}

// TestEnter holds that a job and the entry of its sandbox are made together, and that a job which stands already makes none.
func TestEnter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	db := openTest(t, path)
	j := testJob("a")
	j.Key, j.Digest = "key", "one"
	for range 2 { // again it is the same
		got, err := db.Enter(t.Context(), j, testSandbox("a"))
		if err != nil || got.ID != "a" || got.State != acheron.Waiting {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	j.ID = "b"
	if got, err := db.Enter(t.Context(), j, testSandbox("b")); err != nil || got.ID != "a" {
		t.Errorf("%+v, %v", got, err)
	}
	j.Digest = "two"
	_, err := db.Enter(t.Context(), j, testSandbox("b"))
	wantKind(t, err, tartarus.Mismatch)
	_, err = db.Enter(t.Context(), testJob("a"), testSandbox("a"))
	wantKind(t, err, tartarus.Conflict)
	putAt(t, db, testSandbox("c"), 0)
	putAt(t, db, testSandbox("c"), 1)
	if _, err := db.Enter(t.Context(), testJob("c"), testSandbox("c")); err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = openTest(t, path)
	for id, revision := range map[string]int64{"a": 1, "c": 2} {
		if got, err := db.Registry().Sandbox(t.Context(), "acme", id); err != nil || got.Revision != revision {
			t.Errorf("registry has %s at revision %d, want %d, %v", id, got.Revision, revision, err)
		}
		if got, err := db.Queue().Job(t.Context(), id); err != nil || got.State != acheron.Waiting {
			t.Errorf("job %s: %+v, %v", id, got, err)
		}
	}
	_, err = db.Registry().Sandbox(t.Context(), "acme", "b")
	wantKind(t, err, tartarus.NotFound)
}

func decoded(t *testing.T, body []byte) tartarus.Sandbox {
	t.Helper()
	sb, err := decodeSandbox(body)
	if err != nil {
		t.Fatal(err)
	}
	return sb
}
