package sqlite

import (
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/link"
	"github.com/tartarus-sandbox/tartarus/internal/secret"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
	"github.com/tartarus-sandbox/tartarus/internal/store/storetest"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
	"github.com/tartarus-sandbox/tartarus/internal/volume"
)

var (
	_ hades.Registry   = (*Registry)(nil)
	_ acheron.Queue    = (*Queue)(nil)
	_ acheron.Operator = (*Queue)(nil)
	_ themis.Store     = (*Policies)(nil)
	_ tenant.Store     = (*Keys)(nil)
	_ secret.Store     = (*Secrets)(nil)
	_ volume.Store     = (*Volumes)(nil)
	_ link.Vault       = (*Vault)(nil)
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openTest(t testing.TB, path string) *DB {
	t.Helper()
	db, err := Open(t.Context(), Config{Path: path})
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

// crashedCopy is a copy of a store's files as they are, which is what a crash leaves.
func crashedCopy(t *testing.T, dir string) (path string) {
	t.Helper()
	copied := t.TempDir()
	for _, name := range []string{"store.db.redo", "store.db", "store.db-wal"} { // the database may take in what the first holds, not the other way round
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(copied, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(copied, "store.db")
}

// subject makes a factory for one seam. A crash is a copy of the files as they are, opened as if by another process.
func subject[T any](part func(*DB) T) storetest.Factory[T] {
	return func(t *testing.T) storetest.Subject[T] {
		dir := t.TempDir()
		db := openTest(t, filepath.Join(dir, "store.db"))
		return storetest.Subject[T]{Store: part(db), Crash: func(t *testing.T) T {
			return part(openTest(t, crashedCopy(t, dir)))
		}}
	}
}

func TestRegistry(t *testing.T) {
	storetest.Registry(t, subject(func(db *DB) hades.Registry { return db.Registry() }))
}

func TestQueue(t *testing.T) {
	storetest.Queue(t, subject(func(db *DB) storetest.QueueStore { return db.Queue() }))
}

func TestPolicies(t *testing.T) {
	storetest.Policies(t, subject(func(db *DB) themis.Store { return db.Policies() }))
}

func TestKeys(t *testing.T) {
	storetest.Keys(t, subject(func(db *DB) tenant.Store { return db.Keys() }))
}

func TestVault(t *testing.T) {
	storetest.Vault(t, subject(func(db *DB) link.Vault { return db.Vault() }))
}

func TestShelf(t *testing.T) {
	storetest.Shelf(t, subject(func(db *DB) shelf.Store { return db.Shelf() }))
}

func TestReload(t *testing.T) {
	storetest.Reload(t, subject(func(db *DB) themis.Store { return db.Policies() }))
}

func TestQuotas(t *testing.T) {
	storetest.Quotas(t, subject(func(db *DB) storetest.Counted { return storetest.Counted{Shelf: db.Shelf(), Registry: db.Registry()} }))
}

func TestJournal(t *testing.T) {
	storetest.Journal(t, subject(func(db *DB) storetest.Journaler { return db.Journal() }))
}

func TestSecrets(t *testing.T) {
	storetest.Secrets(t, subject(func(db *DB) secret.Store { return db.Secrets() }))
}

func TestVolumes(t *testing.T) {
	storetest.Volumes(t, subject(func(db *DB) volume.Store { return db.Volumes() }))
}
