package sqlite

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

func wantKind(t *testing.T, err error, kind tartarus.Kind) {
	t.Helper()
	if !tartarus.Is(err, kind) {
		t.Fatalf("error is %v, want one of kind %s", err, kind)
	}
}

func testSandbox(id string) tartarus.Sandbox {
	return tartarus.Sandbox{Spec: tartarus.Spec{ID: id, Tenant: "acme"}, Phase: tartarus.Running, CreatedAt: time.Now()}
}

func testJob(id string) acheron.Job {
	return acheron.Job{ID: id, Tenant: "acme", Node: "n1", Kind: "create", MaxAttempts: 3}
}

func TestFilesArePrivate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "odd name?#%.db")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	db := openTest(t, path)
	if err := db.Journal().Put(t.Context(), "a", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 5 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil || info.Mode().Perm() != 0o600 || !strings.HasPrefix(f.Name(), "odd name?#%.db") {
			t.Errorf("%s has mode %s, %v", f.Name(), info.Mode(), err)
		}
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	db := openTest(t, path)
	began := time.Now()
	_, err := Open(t.Context(), Config{Path: path}) // a lock of the same file by another descriptor, as another process has it
	wantKind(t, err, tartarus.Conflict)
	if want := fmt.Sprint("in use by process ", os.Getpid()); !strings.Contains(err.Error(), want) {
		t.Errorf("%q does not say %q", err, want)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("refused after %s", took)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	openTest(t, path)
}

func TestForeignFilesAreRefused(t *testing.T) {
	tests := []struct {
		name string
		kind tartarus.Kind
		make func(t *testing.T, path string)
	}{
		{"a newer schema", tartarus.Unsupported, func(t *testing.T, path string) {
			openTest(t, path).Close()
			alter(t, path, fmt.Sprintf("PRAGMA user_version = %d", len(migrations)+1))
		}},
		{"another program's database", tartarus.Corrupt, func(t *testing.T, path string) { alter(t, path, "CREATE TABLE notes (x)") }},
		{"another program's empty database", tartarus.Corrupt, func(t *testing.T, path string) { alter(t, path, "PRAGMA application_id = 7") }},
		{"no database", tartarus.Corrupt, func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(strings.Repeat("this is a letter ", 1000)), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			tt.make(t, path)
			db, err := Open(t.Context(), Config{Path: path})
			if err == nil {
				db.Close()
			}
			wantKind(t, err, tt.kind)
		})
	}
	_, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "absent", "store.db")})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an absent folder: %v", err)
	}
	for _, c := range []Config{{}, {Path: "x", Readers: -1}, {Path: "x", CacheMB: -1}, {Path: "x", MaxOpenJobs: -1}} {
		_, err := Open(t.Context(), c)
		wantKind(t, err, tartarus.Invalid)
	}
}

func alter(t *testing.T, path, script string) {
	t.Helper()
	c, err := openConn(path, 1, false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.script(script); err != nil {
		t.Fatal(err)
	}
}

func TestClosedStoreIsUnavailable(t *testing.T) {
	db := openTest(t, filepath.Join(t.TempDir(), "store.db"))
	ctx := t.Context()
	if _, err := db.Queue().Enqueue(ctx, testJob("a")); err != nil {
		t.Fatal(err)
	}
	var blocked sync.WaitGroup
	results := make(chan error, 2)
	blocked.Go(func() { _, err := db.Queue().Lease(ctx, "idle", 1, time.Minute); results <- err })
	blocked.Go(func() { _, err := db.Queue().Await(ctx, "a"); results <- err })
	for waiting := 0; waiting < 2; { // both are inside when the committer knows them
		err := db.write(ctx, func(txn *txn) error {
			waiting = 0
			if ln := txn.line.lanes["idle"]; ln != nil {
				waiting = len(ln.waiters)
			}
			db.watch.mu.Lock()
			defer db.watch.mu.Unlock()
			waiting += len(db.watch.m["a"])
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	blocked.Wait()
	wantKind(t, <-results, tartarus.Unavailable)
	wantKind(t, <-results, tartarus.Unavailable)
	_, err := db.Queue().Enqueue(ctx, testJob("b"))
	wantKind(t, err, tartarus.Unavailable)
	_, err = db.Queue().Await(ctx, "a")
	wantKind(t, err, tartarus.Unavailable)
	_, err = db.Registry().Sandbox(ctx, "acme", "a")
	wantKind(t, err, tartarus.Unavailable)
}

// TestFailingDisk has the transaction fail at each step: the caller hears of it, nothing of it is there, whoever waits
// for work goes on waiting, and all is well once the disk is.
func TestFailingDisk(t *testing.T) {
	for _, point := range []string{"begin", "write", "commit", "sync"} {
		t.Run(point, func(t *testing.T) {
			db := openTest(t, filepath.Join(t.TempDir(), "store.db"))
			var broken sync.Map
			if err := db.write(t.Context(), func(txn *txn) error { // on the committer, which is the one to read it
				db.fail = func(p string) error {
					if _, yes := broken.Load(p); yes {
						return tartarus.Errorf(tartarus.Unavailable, "disk fails at %s", p)
					}
					return nil
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			ctx := t.Context()
			q, r := db.Queue(), db.Registry()
			leased := make(chan []acheron.Lease, 1)
			go func() {
				ls, err := q.Lease(ctx, "n1", 1, time.Minute)
				for tartarus.Is(err, tartarus.Unavailable) { // as a node does
					ls, err = q.Lease(ctx, "n1", 1, time.Minute)
				}
				leased <- ls
			}()
			broken.Store(point, true)
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					_, err := q.Enqueue(ctx, testJob(fmt.Sprint("lost", i)))
					if !tartarus.Is(err, tartarus.Unavailable) {
						t.Errorf("enqueue: %v", err)
					}
				})
				wg.Go(func() {
					_, err := r.PutSandbox(ctx, testSandbox(fmt.Sprint("lost", i)))
					if !tartarus.Is(err, tartarus.Unavailable) {
						t.Errorf("put: %v", err)
					}
				})
				wg.Go(func() {
					if err := db.Journal().Put(ctx, "lost", nil); !tartarus.Is(err, tartarus.Unavailable) {
						t.Errorf("journal: %v", err)
					}
				})
			}
			wg.Wait()
			broken.Delete(point)
			_, err := q.Job(ctx, "lost0")
			wantKind(t, err, tartarus.NotFound)
			_, err = r.Sandbox(ctx, "acme", "lost0")
			wantKind(t, err, tartarus.NotFound)
			if all, err := db.Journal().All(ctx); err != nil || len(all) != 0 {
				t.Fatalf("journal holds %v, %v", all, err)
			}
			if _, err := q.Enqueue(ctx, testJob("kept")); err != nil {
				t.Fatal(err)
			}
			if ls := <-leased; len(ls) != 1 || ls[0].Job.ID != "kept" {
				t.Fatalf("handed out %v", ls)
			}
			if err := db.Journal().Put(ctx, "kept", nil); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestPoisonedChange puts one change that the database refuses between others: they are committed without it.
func TestPoisonedChange(t *testing.T) {
	db := openTest(t, filepath.Join(t.TempDir(), "store.db"))
	ctx := t.Context()
	hold, held := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // keeps the committer busy until the others have gathered
		db.write(ctx, func(*txn) error { close(held); <-hold; return nil })
	})
	<-held
	good := make([]error, 10)
	for i := range good {
		wg.Go(func() { _, good[i] = db.Registry().PutSandbox(ctx, testSandbox(fmt.Sprint("s", i))) })
	}
	var bad error
	wg.Go(func() {
		bad = db.write(ctx, func(t *txn) error { _, err := t.exec("INSERT INTO nowhere VALUES (1)"); return err })
	})
	for len(db.ops) < 11 {
		time.Sleep(time.Millisecond)
	}
	close(hold)
	wg.Wait()
	if bad == nil {
		t.Error("the poisoned change succeeded")
	}
	for i, err := range good {
		if err != nil {
			t.Errorf("its neighbour %d: %v", i, err)
		}
		if _, err := db.Registry().Sandbox(ctx, "acme", fmt.Sprint("s", i)); err != nil {
			t.Error(err)
		}
	}
}

// TestKilledProcess kills a process that writes as fast as it can, and asks the file for everything it acknowledged.
func TestKilledProcess(t *testing.T) {
	if path := os.Getenv("TARTARUS_TEST_STORE"); path != "" {
		writeUntilKilled(t, path)
		return
	}
	if testing.Short() {
		t.Skip("-short")
	}
	path := filepath.Join(t.TempDir(), "store.db")
	acknowledged := map[string]bool{}
	for round := range 2 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$")
		cmd.Env = append(os.Environ(), "TARTARUS_TEST_STORE="+path, fmt.Sprint("TARTARUS_TEST_ROUND=", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 0
		for s := bufio.NewScanner(out); s.Scan(); {
			if id, ok := strings.CutPrefix(s.Text(), "ack "); ok {
				acknowledged[id] = true
				if lines++; lines == 200+round*300 {
					cmd.Process.Kill() // and read on what it still managed to say
				}
			}
		}
		cmd.Wait()
		if lines < 200 {
			t.Fatalf("the writer ended by itself after %d", lines)
		}
		verify(t, path, acknowledged)
	}
}

func verify(t *testing.T, path string, acknowledged map[string]bool) {
	t.Helper()
	db, err := Open(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	records, err := db.Journal().All(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id := range acknowledged {
		if _, err := db.Registry().Sandbox(t.Context(), hades.AnyTenant, id); err != nil {
			t.Errorf("registry: %v", err)
		}
		if j, err := db.Queue().Job(t.Context(), id); err != nil || j.State != acheron.Done {
			t.Errorf("queue: %s is %s, %v", id, j.State, err)
		}
		if string(records[id]) != id {
			t.Errorf("journal: %s is %q", id, records[id])
		}
	}
}

func writeUntilKilled(t *testing.T, path string) {
	db := openTest(t, path)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // should nobody kill it
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			node := fmt.Sprintf("r%sn%d", os.Getenv("TARTARUS_TEST_ROUND"), w) // what an earlier round left is not taken
			for i := 0; ctx.Err() == nil; i++ {
				id := fmt.Sprintf("r%sw%di%d", os.Getenv("TARTARUS_TEST_ROUND"), w, i)
				j := testJob(id)
				j.Node = node
				_, err := db.Queue().Enqueue(ctx, j)
				var ls []acheron.Lease
				if err == nil {
					ls, err = db.Queue().Lease(ctx, node, 1, time.Minute)
				}
				if err == nil {
					err = db.Journal().Put(ctx, id, []byte(id))
				}
				if err == nil {
					_, err = db.Registry().PutSandbox(ctx, testSandbox(id))
				}
				if err == nil {
					err = db.Queue().Complete(ctx, ls[0], nil)
				}
				if err != nil {
					fmt.Println("error", err)
					return
				}
				mu.Lock()
				fmt.Println("ack", id)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}
