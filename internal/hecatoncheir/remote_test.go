package hecatoncheir

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot/remote"
	"github.com/tartarus-sandbox/tartarus/internal/store/s3"
	"github.com/tartarus-sandbox/tartarus/internal/store/s3/s3test"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/firecracker"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/pagefault"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/payload"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

// farRig is a node whose snapshots go to a real S3 server, and whose machines get memory that is there alone as they touch it.
func farRig(t *testing.T, name string, bucket s3.Config) *microRig {
	t.Helper()
	if err := pagefault.Available(); err != nil {
		t.Skip(err)
	}
	return newMicroRig(t, func(r *microRig, c *Config) {
		blobs, err := s3.New(bucket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = blobs.Close() })
		store, err := snapshot.New(snapshot.Config{Dir: filepath.Join(c.Dir, "snapshots"), Node: name, Blobs: blobs, Log: c.Log})
		if err != nil {
			t.Fatal(err)
		}
		c.Snapshots = store
		r.micro.TrackDirty = false
		if r.micro.PageFaults = (firecracker.PageFaults{}); r.noHandlers {
			return
		}
		// The built program where there is one: it is what serves in the end, and a test's own with the race detector takes more memory than a machine has for it.
		r.micro.PageFaults = firecracker.PageFaults{Handler: true, Program: os.Getenv("TARTARUS_BIN"), Remote: func(ctx context.Context, dir string) (*firecracker.Remote, error) {
			links, err := store.Links(ctx, dir, firecracker.MemoryFile)
			if err != nil {
				return nil, err
			}
			spec, size, err := remote.Describe(links)
			return &firecracker.Remote{Kind: remote.Kind, Spec: spec, Size: size, Network: true}, err
		}}
	})
}

// sent takes a snapshot of a sandbox and waits until the bucket has all of it.
func (m *microRig) sent(id string) string {
	m.t.Helper()
	snap, err := m.agent.Snapshot(m.t.Context(), id, tartarus.SnapshotHow{})
	if err != nil {
		m.t.Fatal(err)
	}
	if err := m.agent.snapshots.Upload(m.t.Context(), snap.ID); err != nil {
		m.t.Fatal(err)
	}
	return snap.ID
}

// processes are those of a sandbox's machine: its monitor and its page-fault handler.
func (m *microRig) processes(id string) (monitor, handler int) {
	m.t.Helper()
	h := m.mustFind(id)
	h.mu.Lock()
	defer h.mu.Unlock()
	var s struct {
		Process process.Identity  `json:"process"`
		Pages   *process.Identity `json:"pages"`
	}
	if err := json.Unmarshal(h.machine.Record().State, &s); err != nil {
		m.t.Fatal(err)
	}
	if s.Pages == nil {
		m.t.Fatalf("sandbox %s has no page-fault handler", id)
	}
	return s.Process.PID, s.Pages.PID
}

// filled waits until a monitor has all of the memory of a snapshot that is no hole.
func (m *microRig) filled(pid int, snap string) {
	m.t.Helper()
	found, err := m.agent.snapshots.Open(snap)
	if err != nil {
		m.t.Fatal(err)
	}
	want := int64(0)
	for _, f := range found.Files {
		for _, c := range f.Chunks {
			if f.Name == firecracker.MemoryFile && c.Sum != "" {
				want += c.Size
			}
		}
	}
	ownMemory := func() int64 {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			m.t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), "RssAnon:")
		kb, _ := strconv.ParseInt(strings.Fields(rest + " 0")[0], 10, 64)
		return kb << 10
	}
	before := int64(0)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		now := ownMemory()
		if now >= want && now == before {
			return
		}
		if before = now; time.Now().After(deadline) {
			m.t.Fatalf("process %d has %d bytes, want %d", pid, now, want)
		}
	}
}

func (m *microRig) away(snap string) bool {
	m.t.Helper()
	found, err := m.agent.snapshots.Open(snap)
	if err != nil {
		m.t.Fatal(err)
	}
	_, err = os.Stat(m.memory(snap))
	if there := err == nil; there == (len(found.Away) > 0) {
		m.t.Fatalf("memory is there: %t, and the manifest says %v", there, found.Away)
	}
	return len(found.Away) > 0
}

// TestMicroMemoryFromS3 has a node run what another left in a bucket, without fetching its memory first: it comes from there as the guest touches it, soon all of
// it is here, and what was touched is remembered for the next.
func TestMicroMemoryFromS3(t *testing.T) {
	server := s3test.Start(t)
	bucket := server.Config()
	a := farRig(t, "a", bucket)
	source := a.create()
	a.expectSaid(source, payload.Fill, "ok")
	a.expectSaid(source, payload.Keep('k', "from a"), "ok")
	snap := a.sent(source)
	a.expectSaid(source, payload.Keep('k', "later"), "ok")

	b := farRig(t, "b", bucket)
	from := func(s *tartarus.Spec) { s.SnapshotID = snap }
	first := b.create(from)
	b.expectSaid(first, payload.Give('k'), "from a")
	if !b.away(snap) {
		t.Error("its memory was fetched before it ran")
	}
	monitor, handler := b.processes(first)
	if env, err := os.ReadFile("/proc/" + strconv.Itoa(handler) + "/environ"); err != nil || strings.Contains(string(env), bucket.SecretKey) {
		t.Errorf("the handler's environment: %q, %v", env, err)
	}
	b.filled(monitor, snap) // nobody has touched the pattern

	// What others are restored from is here by now: the server is not needed any more by this one.
	server.Kill()
	b.expectSaid(first, payload.Verify, "ok")
	server.Restart()
	if err := b.agent.Stop(t.Context(), first, tartarus.ReasonUser); err != nil {
		t.Fatal(err)
	}
	sets, err := filepath.Glob(filepath.Join(b.micro.Dir, "working", "*"))
	if err != nil || len(sets) != 1 {
		t.Fatalf("working sets %v, %v", sets, err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if info, err := os.Stat(sets[0]); err == nil && info.Size() > 32 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("what the guest touched is not remembered")
		}
	}
	// A paused one is here with all that it is.
	second := b.create(from)
	b.expectSaid(second, payload.Verify, "ok")
	b.expectSaid(second, payload.Keep('k', "of b"), "ok")
	b.pause(second)
	b.resume(second)
	b.expectSaid(second, payload.Give('k'), "of b")
	b.expectSaid(second, payload.Verify, "ok")

	// An agent without handlers fetches the rest.
	b.noHandlers = true
	b.again()
	third := b.create(from)
	b.expectSaid(third, payload.Give('k'), "from a")
	b.expectSaid(third, payload.Verify, "ok")
	if b.away(snap) {
		t.Error("its memory is not here though nobody brings it in")
	}
}

// TestMicroHandlerOfS3Dies kills the handler of one sandbox of two.
func TestMicroHandlerOfS3Dies(t *testing.T) {
	bucket := s3test.Start(t).Config()
	a := farRig(t, "a", bucket)
	source := a.create()
	a.expectSaid(source, payload.Fill, "ok")
	snap := a.sent(source)
	b := farRig(t, "b", bucket)
	from := func(s *tartarus.Spec) { s.SnapshotID = snap }
	victim, other := b.create(from), b.create(from)
	_, handler := b.processes(victim)
	if err := unix.Kill(handler, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if sb := b.expect(victim, tartarus.Failed, tartarus.ReasonCrashed); !strings.Contains(sb.Message, "page-fault handler") {
		t.Errorf("it ended because %q", sb.Message)
	}
	b.expectSaid(other, payload.Verify, "ok")
	a.expectSaid(source, payload.Verify, "ok")
}

// TestMicroDamagedInS3 flips a bit in each chunk that the bucket has: no guest ever sees it.
func TestMicroDamagedInS3(t *testing.T) {
	server := s3test.Start(t)
	bucket := server.Config()
	a := farRig(t, "a", bucket)
	source := a.create()
	a.expectSaid(source, payload.Fill, "ok")
	b := farRig(t, "b", bucket)
	from := a.sent(source)
	good := b.create(func(s *tartarus.Spec) { s.SnapshotID = from })
	b.expectSaid(good, payload.Verify, "ok")
	monitor, _ := b.processes(good)
	b.filled(monitor, from)
	damaged := 0
	err := filepath.WalkDir(server.Dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(path, "/chunks/") {
			var body []byte
			if body, err = os.ReadFile(path); err == nil && len(body) > 100 {
				body[len(body)/2] ^= 1
				damaged++
				err = os.WriteFile(path, body, 0o600)
			}
		}
		return err
	})
	if err != nil || damaged < 5 {
		t.Fatalf("%d chunks damaged, %v", damaged, err)
	}
	s := b.spec(func(s *tartarus.Spec) { s.SnapshotID = from })
	s.Resources = tartarus.Resources{VCPU: 1, MemoryMB: payload.MinMemoryMB, DiskMB: 16, PIDs: 64}
	if job := b.await(b.enqueue(acheron.Create, s, 1)); job.State == acheron.Done {
		if sb := b.expect(s.ID, tartarus.Failed, tartarus.ReasonCrashed); !strings.Contains(sb.Message, "page-fault handler") {
			t.Errorf("it ended because %q", sb.Message)
		}
	}
	b.expectSaid(good, payload.Verify, "ok")
	a.expectSaid(source, payload.Verify, "ok")
}

// TestMicroRemovedFromS3 holds that what somebody removed from the bucket is not tried any more.
func TestMicroRemovedFromS3(t *testing.T) {
	bucket := s3test.Start(t).Config()
	a := farRig(t, "a", bucket)
	snap := a.sent(a.create())
	b := farRig(t, "b", bucket)
	first := b.create(func(s *tartarus.Spec) { s.SnapshotID = snap })
	if err := a.agent.RemoveSnapshot(t.Context(), snap); err != nil {
		t.Fatal(err)
	}
	s := b.spec(func(s *tartarus.Spec) { s.SnapshotID = snap })
	s.Resources = tartarus.Resources{VCPU: 1, MemoryMB: payload.MinMemoryMB, DiskMB: 16, PIDs: 64}
	if job := b.await(b.enqueue(acheron.Create, s, 1)); job.State != acheron.Dead || !strings.Contains(job.Reason, "gone") {
		t.Errorf("from a removed one: %s, %s", job.State, job.Reason)
	}
	if b.snapshotsHere() != 0 {
		t.Error("what is left of it stays")
	}
	if b.ask(first, "c") == "" {
		t.Error("the one before does not answer")
	}
}
