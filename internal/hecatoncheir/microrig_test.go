package hecatoncheir

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/firecracker"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/manifest"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/payload"
)

// microRig is a node whose sandboxes are real machines: Firecracker under its jailer, with the bare payload as guest.
type microRig struct {
	*rig
	micro  firecracker.Config // of the next agent's driver
	rootfs string
	// noHandlers has the next agent's driver do without page-fault handlers.
	noHandlers bool
	// left are machines as earlier agents knew them: what they hold of this process ends with the test.
	left []vmm.Machine
}

// newMicroRig skips where no Firecracker machine can run.
func newMicroRig(t *testing.T, change func(r *microRig, c *Config)) *microRig {
	t.Helper()
	out, err := exec.Command("../../test/firecracker.sh").Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Skipf("needs firecracker, test/firecracker.sh: %s", strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil || os.Geteuid() != 0 {
		t.Skipf("needs root, for the jailer (%v)", err)
	}
	dir, bin := t.TempDir(), strings.TrimSpace(string(out))
	m := &microRig{rootfs: filepath.Join(dir, "rootfs")}
	m.image("one")
	kernel := filepath.Join(dir, "payload.elf")
	if err := os.WriteFile(kernel, payload.ELF(), 0o644); err != nil {
		t.Fatal(err)
	}
	m.micro = firecracker.Config{
		Dir: filepath.Join(dir, "vms"), Firecracker: filepath.Join(bin, "firecracker"), Jailer: filepath.Join(bin, "jailer"),
		Guest: firecracker.Guest{Bare: kernel}, Console: true, TrackDirty: true,
	}
	probe, err := firecracker.New(m.micro)
	if err != nil {
		t.Fatal(err)
	}
	if s := probe.Probe(t.Context()); !s.Usable {
		t.Skipf("driver firecracker: %s", s.Reason)
	}
	m.rig = newRig(t, func(c *Config) {
		if change != nil {
			change(m, c)
		}
		driver, err := firecracker.New(m.micro)
		if err != nil {
			t.Fatal(err)
		}
		c.Drivers, c.Templates, c.StartTime = []vmm.Driver{driver}, templateAt(m.rootfs), time.Minute
	})
	t.Cleanup(func() { // before the agent itself ends
		ctx := context.WithoutCancel(t.Context())
		for _, h := range m.agent.all() {
			if err := m.agent.Stop(ctx, h.spec.ID, tartarus.ReasonUser); err != nil {
				t.Error(err)
			}
		}
		for _, machine := range m.left {
			if err := machine.Stop(ctx); err != nil {
				t.Error(err)
			}
		}
	})
	return m
}

// image makes the template's image another one. The payload reads nothing of it.
func (m *microRig) image(content string) {
	b := make([]byte, 64<<10)
	copy(b[1024:], "\xe2\xe1\xf5\xe0") // what tells an EROFS image
	copy(b[4096:], content)
	if err := os.WriteFile(m.rootfs+".new", b, 0o644); err != nil {
		panic(err)
	}
	if err := os.Rename(m.rootfs+".new", m.rootfs); err != nil {
		panic(err)
	}
}

// again runs another agent, as after an upgrade.
func (m *microRig) again() {
	m.t.Helper()
	for _, h := range m.agent.all() {
		h.mu.Lock()
		if h.machine != nil {
			m.left = append(m.left, h.machine)
		}
		h.mu.Unlock()
	}
	m.stop()
	m.start()
}

func (m *microRig) create(change ...func(*tartarus.Spec)) string {
	m.t.Helper()
	s := m.spec(change...)
	s.Resources = tartarus.Resources{VCPU: 1, MemoryMB: payload.MinMemoryMB, DiskMB: 16, PIDs: 64}
	s.Timeout = 10 * time.Minute
	if _, err := m.db.Registry().PutSandbox(m.t.Context(), tartarus.Sandbox{Spec: s, Node: "node", Phase: tartarus.Queued, CreatedAt: time.Now()}); err != nil {
		m.t.Fatal(err)
	}
	job := m.await(m.enqueue(acheron.Create, s, 1))
	if job.State != acheron.Done {
		m.t.Fatalf("create ended %s: %s", job.State, job.Reason)
	}
	return s.ID
}

func (m *microRig) pause(id string) {
	m.t.Helper()
	if _, err := m.agent.Pause(m.t.Context(), id, tartarus.PauseHow{}); err != nil {
		m.t.Fatal(err)
	}
}

// tryResume returns why a sandbox does not come back; nil when it does.
func (m *microRig) tryResume(id string) error {
	m.t.Helper()
	body, err := json.Marshal(tartarus.Resume{ID: id, Timeout: 10 * time.Minute})
	if err != nil {
		m.t.Fatal(err)
	}
	job, err := m.db.Queue().Enqueue(m.t.Context(), acheron.Job{
		ID: tartarus.NewID(), Tenant: "acme", Node: "node", Kind: acheron.Resume, Payload: body, MaxAttempts: 1, Deadline: time.Now().Add(time.Minute),
	})
	if err != nil {
		m.t.Fatal(err)
	}
	if job = m.await(job); job.State != acheron.Done {
		return acheron.FromReason(job.Reason)
	}
	return nil
}

func (m *microRig) resume(id string) {
	m.t.Helper()
	if err := m.tryResume(id); err != nil {
		m.t.Fatal(err)
	}
}

// refuses makes sure that a sandbox stays paused, for a reason of this kind that says all of these.
func (m *microRig) refuses(what, id string, kind tartarus.Kind, says ...string) {
	m.t.Helper()
	err := m.tryResume(id)
	if !tartarus.Is(err, kind) {
		m.t.Errorf("%s: %v, want %s", what, err, kind)
		return
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			m.t.Errorf("%s: %v, which does not say %q", what, err, s)
		}
	}
	if sb, err := m.db.Registry().Sandbox(m.t.Context(), hades.AnyTenant, id); err != nil || m.mustFind(id).sandbox().Phase != tartarus.Paused {
		m.t.Errorf("%s: the sandbox is %s, %v", what, sb.Phase, err)
	}
}

// ask has the guest answer on its serial port.
func (m *microRig) ask(id, line string) string {
	m.t.Helper()
	h := m.mustFind(id)
	h.mu.Lock()
	machine := h.machine
	h.mu.Unlock()
	talker, ok := machine.(interface {
		Console() (*firecracker.Console, error)
	})
	if !ok {
		m.t.Fatalf("%T has no console", machine)
	}
	c, err := talker.Console()
	if err != nil {
		m.t.Fatal(err)
	}
	said, err := payload.Ask(m.t.Context(), c, line)
	if err != nil {
		m.t.Fatal(err)
	}
	return said
}

func (m *microRig) expectSaid(id, line, want string) {
	m.t.Helper()
	if got := m.ask(id, line); got != want {
		m.t.Errorf("the guest answers %q with %q, want %q", line, got, want)
	}
}

// saved is the snapshot that a paused sandbox is, and its layers, the whole one first.
func (m *microRig) saved(id string) (string, []string) {
	m.t.Helper()
	h := m.mustFind(id)
	h.mu.Lock()
	saved := h.saved
	h.mu.Unlock()
	chain, release, err := m.agent.snapshots.Chain(saved)
	if err != nil {
		m.t.Fatal(err)
	}
	defer release()
	var out []string
	for _, l := range chain {
		out = append(out, l.ID)
	}
	return saved, out
}

// memory is the file with the memory of a snapshot.
func (m *microRig) memory(snapshot string) string {
	return filepath.Join(m.agent.cfg.Dir, "snapshots", snapshot, "files", "memory")
}

func (m *microRig) taken(path string) int64 {
	m.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		m.t.Fatal(err)
	}
	return st.Blocks * 512
}

// flip changes one bit of what a file holds, as a disk would: its times stay what they were.
func (m *microRig) flip(path string) {
	m.t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if err != nil {
		m.t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		m.t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at+100); err != nil {
		m.t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, at+100); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
		m.t.Fatal(err)
	}
}

// rewrite changes a driver's manifest as a forger would, its checksum and its length right. The change must make it shorter by as much as the
// checksum, a number, may become longer.
func (m *microRig) rewrite(dir string, change func(man *manifest.Manifest)) {
	m.t.Helper()
	name := filepath.Join(dir, manifest.Name)
	before, err := os.Stat(name)
	if err != nil {
		m.t.Fatal(err)
	}
	man, err := manifest.Read(dir)
	if err != nil {
		m.t.Fatal(err)
	}
	change(&man)
	if err := man.Write(dir); err != nil {
		m.t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		m.t.Fatal(err)
	}
	missing := int(before.Size()) - len(b)
	if missing < 0 {
		m.t.Fatalf("the change makes the manifest longer by %d", -missing)
	}
	if err := os.WriteFile(name, append(b, bytes.Repeat([]byte(" "), missing)...), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// snapshotsHere counts the snapshots that have a folder.
func (m *microRig) snapshotsHere() int {
	m.t.Helper()
	entries, err := os.ReadDir(filepath.Join(m.agent.cfg.Dir, "snapshots"))
	if err != nil {
		m.t.Fatal(err)
	}
	return len(entries) - 1 // tmp
}
