package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/audit"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newShelf(t testing.TB) shelf.Store {
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
	return db.Shelf()
}

// replica is a chain with its sealer.
type replica struct {
	log    *audit.Log
	sealer *audit.Sealer
	store  shelf.Store
	dir    string
}

func openReplica(t testing.TB, dir, chain string, store shelf.Store, change func(*audit.Config, *audit.SealerConfig)) *replica {
	t.Helper()
	cfg := audit.Config{Dir: dir, Chain: chain, Known: func(chain string) (audit.Head, error) {
		return audit.KnownHead(t.Context(), dir, store, chain)
	}}
	sc := audit.SealerConfig{Store: store}
	if change != nil {
		change(&cfg, &sc)
	}
	log, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	sc.Log = log
	t.Cleanup(func() { _ = log.Close() })
	sealer, err := audit.NewSealer(t.Context(), sc)
	if err != nil {
		t.Fatal(err)
	}
	return &replica{log, sealer, store, dir}
}

func record(i int) audit.Record {
	return audit.Record{
		Action: "sandbox.create", Stage: audit.Attempt, Verdict: audit.Allow, Tenant: "acme", Request: fmt.Sprint("r", i),
		Actor: audit.Actor{Kind: audit.ByKey, ID: "k1", Address: "192.0.2.1"}, Object: audit.Object{Kind: "sandbox", ID: fmt.Sprint("i", i)},
	}
}

func (r *replica) add(t testing.TB, n int) {
	t.Helper()
	for i := range n {
		if err := r.log.Append(t.Context(), record(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func (r *replica) seal(t testing.TB) {
	t.Helper()
	if err := r.sealer.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (r *replica) verify(t testing.TB) audit.Report {
	t.Helper()
	rep, err := audit.Verify(t.Context(), audit.Verification{Dir: r.dir, Store: r.store})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func (r *replica) wantSound(t testing.TB, records uint64) audit.Report {
	t.Helper()
	rep := r.verify(t)
	if !rep.OK || rep.Records != records {
		t.Fatalf("got %d records, want %d sound ones; findings %v", rep.Records, records, rep.Findings)
	}
	return rep
}

func segmentFiles(t testing.TB, dir, chain string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, chain, "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	return files
}

func TestChainIsSound(t *testing.T) {
	r := openReplica(t, t.TempDir(), "one", newShelf(t), func(c *audit.Config, _ *audit.SealerConfig) { c.SegmentBytes = 8 << 10 })
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if err := r.log.Append(t.Context(), record(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r.log.Note(record(200))
	r.add(t, 1)
	r.seal(t)
	rep := r.wantSound(t, 203) // the first one says that the chain began
	if n := len(segmentFiles(t, r.dir, "one")); n < 2 {
		t.Errorf("%d segments, want several", n)
	}
	if rep.Chains[0].Unsigned != 0 || rep.Checkpoints != 1 || rep.Root == "" {
		t.Errorf("got %+v", rep)
	}
	// Nothing that grew since makes no checkpoint.
	r.seal(t)
	if rep := r.verify(t); rep.Checkpoints != 1 {
		t.Errorf("%d checkpoints", rep.Checkpoints)
	}
}

func TestGoesOnAfterRestart(t *testing.T) {
	dir, store := t.TempDir(), newShelf(t)
	for range 3 {
		r := openReplica(t, dir, "one", store, nil)
		r.add(t, 10)
		r.seal(t)
		if err := r.log.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r := openReplica(t, dir, "one", store, nil)
	r.wantSound(t, 31)
	if _, err := audit.Open(audit.Config{Dir: dir, Chain: "one"}); !tartarus.Is(err, tartarus.Conflict) {
		t.Errorf("a second writer got %v", err)
	}
}

// A record is either durable or refused; what a failing disk left half written is not in the way of the next one.
func TestDiskFails(t *testing.T) {
	var failing atomic.Pointer[string]
	r := openReplica(t, t.TempDir(), "one", newShelf(t), func(c *audit.Config, _ *audit.SealerConfig) {
		c.Fail = func(point string) error {
			if p := failing.Load(); p != nil && (*p == point || *p == "all") {
				return errors.New("disk on fire")
			}
			return nil
		}
	})
	for _, point := range []string{"write", "sync", "all"} {
		r.add(t, 3)
		failing.Store(&point)
		if err := r.log.Append(t.Context(), record(0)); !tartarus.Is(err, tartarus.Unavailable) {
			t.Fatalf("got %v", err)
		}
		r.log.Note(record(1))
		if err := r.log.Append(t.Context(), record(2)); err == nil { // behind the note
			t.Fatal("written")
		}
		failing.Store(nil)
	}
	r.add(t, 1)
	r.seal(t)
	r.wantSound(t, 11)
	raw, err := os.ReadFile(segmentFiles(t, r.dir, "one")[0])
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(raw), `"dropped":"`) {
		t.Error("that notes were lost is not recorded")
	}
}

// crash copies a folder as it is, as a process finds it whose predecessor was killed.
func crash(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestCrashLeavesNoGap(t *testing.T) {
	store := newShelf(t)
	r := openReplica(t, t.TempDir(), "one", store, nil)
	r.add(t, 20)
	dir := crash(t, r.dir)
	last := segmentFiles(t, dir, "one")[0]
	raw, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	// Half a record behind the last one, as a torn write leaves it.
	end := strings.LastIndexByte(string(raw), '\n') + 1
	copy(raw[end:], `{"seq":22,"chain":"one","time":"2026-`)
	if err := os.WriteFile(last, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	again := openReplica(t, dir, "one", store, nil)
	again.add(t, 5)
	again.seal(t)
	again.wantSound(t, 1+20+1+5)
	if kept, _ := filepath.Glob(last + ".cut-after-21"); len(kept) != 1 {
		t.Error("what was cut off is not kept")
	}
}

// An older copy of the folder is put back, with everything in it: the store knows better, and a new chain says so.
func TestFolderPutBack(t *testing.T) {
	store := newShelf(t)
	r := openReplica(t, t.TempDir(), "one", store, nil)
	r.add(t, 5)
	r.seal(t)
	old := crash(t, r.dir)
	r.add(t, 5)
	r.seal(t)
	again := openReplica(t, old, "one", store, nil)
	if got := again.log.Chain(); got != "one~2" {
		t.Fatalf("chain is %s", got)
	}
	again.add(t, 1)
	again.seal(t)
	rep := again.verify(t)
	if rep.OK || rep.Findings[0].What != audit.Truncated || rep.Findings[0].Seq != 7 {
		t.Fatalf("got %+v", rep)
	}
	if err := again.log.Close(); err != nil {
		t.Fatal(err)
	}
	if third := openReplica(t, old, "one", store, nil); third.log.Chain() != "one~2" {
		t.Fatalf("a restart begins %s", third.log.Chain())
	}
}

func TestKeyRotation(t *testing.T) {
	r := openReplica(t, t.TempDir(), "one", newShelf(t), nil)
	r.add(t, 3)
	r.seal(t)
	root := r.verify(t).Root
	for range 2 {
		next, err := r.sealer.Rotate(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.add(t, 3)
		r.seal(t)
		if rep := r.verify(t); !rep.OK || rep.Root != root || !slices.Equal(rep.Keys, []string{next.ID}) {
			t.Fatalf("got %+v", rep)
		}
	}
	// Pinned to another root, nothing counts.
	rep, err := audit.Verify(t.Context(), audit.Verification{Dir: r.dir, Store: r.store, Root: "0000000000000000"})
	if err != nil || rep.OK || rep.Findings[0].What != audit.Untrusted {
		t.Fatalf("got %+v %v", rep, err)
	}
}

// failing is a shelf whose writes can be made to fail.
type failing struct {
	shelf.Store
	after *atomic.Int64 // puts that still succeed; below zero none do
}

func (f failing) Put(ctx context.Context, s, name string, body []byte, expect int64) (int64, error) {
	if f.after.Add(-1) < 0 {
		return 0, tartarus.Errorf(tartarus.Unavailable, "the store is away")
	}
	return f.Store.Put(ctx, s, name, body, expect)
}

// A rotation that ends anywhere is finished or forgotten by the next start.
func TestKeyRotationInterrupted(t *testing.T) {
	for puts := range int64(4) {
		t.Run(fmt.Sprint(puts), func(t *testing.T) {
			dir, store := t.TempDir(), newShelf(t)
			budget := &atomic.Int64{}
			budget.Store(1 << 30)
			r := openReplica(t, dir, "one", failing{store, budget}, nil)
			r.add(t, 3)
			r.seal(t)
			r.add(t, 1)
			budget.Store(puts)
			_, err := r.sealer.Rotate(t.Context())
			if err == nil && puts < 3 {
				t.Fatal("the store was away and nobody noticed")
			}
			if err := r.log.Close(); err != nil {
				t.Fatal(err)
			}
			again := openReplica(t, dir, "one", store, nil)
			again.add(t, 1)
			again.seal(t)
			again.wantSound(t, 6)
			if left, _ := filepath.Glob(filepath.Join(dir, "*.next")); len(left) != 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

// The replica that made the checkpoints is gone with its key: another one that was trusted goes on.
func TestCheckpointFailover(t *testing.T) {
	store := newShelf(t)
	a := openReplica(t, t.TempDir(), "a", store, nil)
	b := openReplica(t, t.TempDir(), "b", store, nil)
	a.add(t, 3)
	a.seal(t)
	b.add(t, 3)
	if err := b.sealer.Seal(t.Context()); err != nil {
		// Its head does not count, so nothing has grown for it.
		t.Fatal(err)
	}
	_, own := b.sealer.Keys()
	if rep := b.verify(t); rep.OK {
		t.Fatal("a key that nobody trusts counts")
	}
	if err := a.sealer.Trust(t.Context(), own.ID); err != nil {
		t.Fatal(err)
	}
	if err := a.sealer.Trust(t.Context(), "ffffffffffffffff"); !tartarus.Is(err, tartarus.NotFound) {
		t.Fatalf("got %v", err)
	}
	if err := a.log.Close(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		b.add(t, 2)
		b.seal(t)
	}
	rep := b.wantSound(t, 10)
	if rep.Checkpoints < 4 {
		t.Errorf("%d checkpoints", rep.Checkpoints)
	}
	// The chain of the replica that is gone is still covered: verified where its folder is.
	a.wantSound(t, 4)
	_, ofA := a.sealer.Keys()
	if err := b.sealer.Distrust(t.Context(), ofA.ID); err != nil {
		t.Fatal(err)
	}
	b.wantSound(t, 10)
	a.wantSound(t, 4)
}

// Two replicas make checkpoints at once, by turns, and none is lost.
func TestCheckpointsContended(t *testing.T) {
	store := newShelf(t)
	a := openReplica(t, t.TempDir(), "a", store, nil)
	b := openReplica(t, t.TempDir(), "b", store, nil)
	a.seal(t)
	b.seal(t)
	_, own := b.sealer.Keys()
	if err := a.sealer.Trust(t.Context(), own.ID); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, r := range []*replica{a, b} {
		wg.Go(func() {
			for range 20 {
				if err := r.log.Append(t.Context(), record(0)); err != nil {
					t.Error(err)
				}
				if err := r.sealer.Seal(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	a.wantSound(t, 21)
	b.wantSound(t, 21)
}

func TestRetentionStaysVerifiable(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	archived := map[string]int{}
	dir, store := t.TempDir(), newShelf(t)
	open := func() *replica {
		return openReplica(t, dir, "one", store, func(c *audit.Config, s *audit.SealerConfig) {
			c.SegmentBytes, c.Now = 4<<10, clock
			s.Retention, s.Now = time.Hour, clock
			s.Archive = func(_ context.Context, chain, file string, body []byte) error {
				archived[chain+"/"+file] = len(body)
				return nil
			}
		})
	}
	r := open()
	r.add(t, 30)
	before := segmentFiles(t, dir, "one")
	now = now.Add(2 * time.Hour)
	r.add(t, 10)
	r.seal(t)
	if err := r.sealer.Retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := segmentFiles(t, dir, "one")
	if slices.Contains(after, before[0]) || len(after) < 2 || len(archived) < len(before)-1 {
		t.Fatalf("before %v, after %v, archived %v", before, after, archived)
	}
	r.add(t, 1)
	r.seal(t)
	rep := r.verify(t)
	if !rep.OK || rep.Chains[0].From == 1 {
		t.Fatalf("got %+v", rep)
	}
	if err := r.log.Close(); err != nil {
		t.Fatal(err)
	}
	r = open()
	r.add(t, 1)
	r.seal(t)
	if rep := r.verify(t); !rep.OK {
		t.Fatalf("after a restart: %+v", rep)
	}
	// One more is taken away, by nobody who may.
	if err := os.Remove(after[0]); err != nil {
		t.Fatal(err)
	}
	if rep := r.verify(t); rep.OK || rep.Findings[0].What != audit.Removed {
		t.Fatalf("got %+v", rep)
	}
}

// What is archived is never longer behind than a segment may be old, also when nothing is written any more; and a server that starts does not send
// again what is there.
func TestSegmentsEndByAge(t *testing.T) {
	archived := map[string]int{}
	dir, store := t.TempDir(), newShelf(t)
	open := func(age time.Duration) *replica {
		return openReplica(t, dir, "one", store, func(c *audit.Config, s *audit.SealerConfig) {
			c.SegmentAge, s.Retention = age, time.Hour
			s.Archive = func(_ context.Context, _, file string, _ []byte) error {
				if !strings.HasPrefix(file, "checkpoints-") {
					archived[file]++
				}
				return nil
			}
		})
	}
	r := open(50 * time.Millisecond)
	for n := 2; n <= 3; n++ {
		r.add(t, 3)
		for deadline := time.Now().Add(30 * time.Second); len(segmentFiles(t, dir, "one")) < n; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the segment does not end")
			}
		}
	}
	time.Sleep(200 * time.Millisecond) // an empty one is not ended again
	if err := r.log.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(segmentFiles(t, dir, "one")); n > 8 { // one for each, where the disk is slow, and an empty one
		t.Errorf("%d segments of seven records", n)
	}
	r = open(0) // goes on in the empty one
	r.add(t, 2)
	for range 2 {
		if err := r.sealer.Retain(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.log.Close(); err != nil {
		t.Fatal(err)
	}
	before := len(archived)
	r = open(0)
	r.add(t, 1)
	if err := r.sealer.Retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for file, times := range archived {
		if times != 1 {
			t.Errorf("%s was sent %d times", file, times)
		}
	}
	if before < 2 || len(archived) != before {
		t.Errorf("archived %v, %d before", archived, before)
	}
	r.seal(t)
	r.wantSound(t, 10)
}

// What is in the archive can be verified by itself: a segment that is missing there, or was changed, is noticed.
func TestArchiveIsVerifiable(t *testing.T) {
	copied := t.TempDir()
	sent := map[string][]byte{}
	r := openReplica(t, t.TempDir(), "one", newShelf(t), func(c *audit.Config, s *audit.SealerConfig) {
		c.SegmentBytes = 2 << 10
		s.Archive = func(_ context.Context, _, file string, body []byte) error {
			sent[file] = bytes.Clone(body)
			return nil
		}
	})
	for range 4 { // what was sent in several rounds
		for range 5 {
			r.add(t, 3)
			r.seal(t)
		}
		if err := r.sealer.Retain(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// As whoever has only the bucket does it.
	var segments []string
	var checkpoints []byte
	for _, file := range slices.Sorted(maps.Keys(sent)) {
		if strings.HasPrefix(file, "checkpoints-") {
			checkpoints = append(checkpoints, sent[file]...)
			continue
		}
		segments = append(segments, file)
	}
	write := func(file string, body []byte) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(copied, file)), 0o700), os.WriteFile(filepath.Join(copied, file), body, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write("checkpoints.jsonl", checkpoints)
	for _, file := range segments {
		write("one/"+file, sent[file])
	}
	verify := func() audit.Report {
		t.Helper()
		rep, err := audit.Verify(t.Context(), audit.Verification{Dir: copied})
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	if rep := verify(); !rep.OK || rep.Checkpoints < 5 || rep.Records < 30 || len(segments) < 4 {
		t.Fatalf("%d segments, %+v", len(segments), rep)
	}
	middle := segments[len(segments)/2]
	write("one/"+middle, bytes.Replace(sent[middle], []byte("192.0.2.1"), []byte("192.0.2.9"), 1))
	if rep := verify(); rep.OK || rep.Findings[0].What != audit.Changed {
		t.Errorf("changed: %+v", rep)
	}
	if err := os.Remove(filepath.Join(copied, "one", middle)); err != nil {
		t.Fatal(err)
	}
	if rep := verify(); rep.OK || rep.Findings[0].What != audit.Removed {
		t.Errorf("removed: %+v", rep)
	}
	write("one/"+middle, sent[middle])
	if err := os.Remove(filepath.Join(copied, "one", segments[len(segments)-1])); err != nil {
		t.Fatal(err)
	}
	if rep := verify(); rep.OK || rep.Findings[0].What != audit.Truncated {
		t.Errorf("cut off: %+v", rep)
	}
}

func TestRecordsAreBounded(t *testing.T) {
	r := openReplica(t, t.TempDir(), "one", newShelf(t), nil)
	huge := record(0)
	huge.Object.ID = strings.Repeat("é\xff", 100_000)
	huge.Detail = map[string]string{}
	for i := range 100 {
		huge.Detail[fmt.Sprint(i)] = strings.Repeat("\x00", 10_000)
		huge.Reasons = append(huge.Reasons, audit.Reason{Message: strings.Repeat("<", 10_000)})
	}
	if err := r.log.Append(t.Context(), huge); err != nil {
		t.Fatal(err)
	}
	r.add(t, 1)
	r.seal(t)
	r.wantSound(t, 3)
}
