package firecracker_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/firecracker"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/manifest"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/payload"
)

func (r *rig) diff(m vmm.Machine, base string) string {
	r.Helper()
	dir := r.TempDir()
	if err := m.(vmm.Differ).SnapshotDiff(r.ctx, dir, base); err != nil {
		r.Fatal(err)
	}
	return dir
}

// layers names each snapshot by where it is in the chain.
func layers(dirs []string) (out []vmm.Layer) {
	for i, dir := range dirs {
		out = append(out, vmm.Layer{Name: fmt.Sprintf("snapshot s%d", i), Dir: dir})
	}
	return out
}

func (r *rig) merge(chain ...string) string {
	r.Helper()
	dir := r.TempDir()
	if err := r.driver.Merge(r.ctx, layers(chain), dir); err != nil {
		r.Fatal(err)
	}
	return dir
}

// TestDiffChain takes changes only, twice, merges, and goes on with the chain from what was merged.
func TestDiffChain(t *testing.T) {
	r := newRig(t, nil)
	src := r.boot("src")
	r.do(src, payload.Fill)
	r.do(src, payload.Keep('k', "first"))
	whole := r.snapshot(src)
	r.do(src, payload.Keep('k', "second"))
	one := r.diff(src, whole)
	r.do(src, payload.Keep('k', "third"))
	r.do(src, payload.Dirty(0x30))
	two := r.diff(src, one)

	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(one, "memory"), &st); err != nil || st.Size != payload.MinMemoryMB<<20 || st.Blocks*512 > 4<<20 {
		t.Errorf("changes of a few pages take %d bytes of %d, %v", st.Blocks*512, st.Size, err)
	}
	for want, chain := range map[string][]string{"first": {whole}, "second": {whole, one}, "third": {whole, one, two}} {
		m := r.restore(want, r.merge(chain...))
		r.equal(r.ask(m, payload.Give('k')), want)
		if broken := r.ask(m, payload.Verify) != "ok"; broken != (want == "third") {
			t.Errorf("after %s the pattern is broken: %t", want, broken)
		}
		r.stop(m)
	}

	// What was merged takes the place of what it was merged from: the machine knows nothing of it.
	merged := r.merge(whole, one, two)
	r.do(src, payload.Keep('k', "fourth"))
	three := r.diff(src, merged)
	again := r.restore("again", r.merge(merged, three))
	r.equal(r.ask(again, payload.Give('k')), "fourth")

	// A clone's changes build on the snapshot that it came from.
	r.do(again, payload.Keep('k', "of the clone"))
	fresh := r.restore("clone", merged)
	r.do(fresh, payload.Keep('k', "fifth"))
	m := r.restore("clone2", r.merge(merged, r.diff(fresh, merged)))
	r.equal(r.ask(m, payload.Give('k')), "fifth")

	r.refusesChains(src, whole, one, two)
}

func (r *rig) refusesChains(src vmm.Machine, whole, one, two string) {
	r.Helper()
	is := func(what string, err error, kind tartarus.Kind) {
		r.Helper()
		if !tartarus.Is(err, kind) {
			r.Errorf("%s: %v, want %s", what, err, kind)
		}
	}
	is("changes since an older snapshot", src.(vmm.Differ).SnapshotDiff(r.ctx, r.TempDir(), whole), tartarus.Conflict)
	_, err := r.driver.Restore(r.ctx, r.config("bad"), one)
	is("restore of changes", err, tartarus.Unsupported)
	for what, chain := range map[string][]string{
		"a gap": {whole, two}, "no beginning": {one, two}, "twice": {whole, one, one}, "nothing": nil, "backwards": {whole, two, one},
	} {
		dir := r.TempDir()
		is(what, r.driver.Merge(r.ctx, layers(chain), dir), tartarus.Invalid)
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			r.Errorf("%s leaves %v, %v", what, left, err)
		}
	}
	spoilt := filepath.Join(r.TempDir(), "spoilt")
	if err := os.CopyFS(spoilt, os.DirFS(one)); err != nil {
		r.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(spoilt, "memory"), os.O_RDWR, 0)
	if err != nil {
		r.Fatal(err)
	}
	_, err = f.WriteAt([]byte("spoilt"), 12345)
	f.Close()
	if err != nil {
		r.Fatal(err)
	}
	err = r.driver.Merge(r.ctx, layers([]string{whole, spoilt}), r.TempDir())
	if is("damage", err, tartarus.Corrupt); !strings.Contains(err.Error(), "layer 2 of 2, snapshot s1") {
		r.Errorf("the damaged layer is not named: %v", err)
	}
}

// TestDiskIsFrozenWithTheMemory writes to the disk's file as the monitor would, between a snapshot and its restore.
func TestDiskIsFrozenWithTheMemory(t *testing.T) {
	r := newRig(t, nil)
	src := r.boot("src")
	disk := filepath.Join(r.dir, "firecracker", src.Record().ID, "root", "disk")
	put := func(text string) {
		f, err := os.OpenFile(disk, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(text), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	put("before")
	snap := r.snapshot(src)
	put("later.")
	m := r.restore("clone", snap)
	f, err := os.Open(filepath.Join(r.dir, "firecracker", m.Record().ID, "root", "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 6)
	if _, err := f.ReadAt(b, 1<<20); err != nil || !bytes.Equal(b, []byte("before")) {
		t.Errorf("the clone's disk holds %q, %v", b, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || int(st.Uid) != stateOf(t, m).UID || st.Blocks*512 > 2<<20 {
		t.Errorf("the clone's disk is user %d's and takes %d bytes, %v", st.Uid, st.Blocks*512, err)
	}
}

// TestSnapshotThatDoesNotFit changes what a snapshot was made for, one by one. Each refusal names what does not fit.
func TestSnapshotThatDoesNotFit(t *testing.T) {
	r := newRig(t, nil)
	snap := r.snapshot(r.boot("src"))
	for what, c := range map[string]struct {
		change func(*manifest.Manifest, *vmm.Config)
		says   string
	}{
		"version":   {func(m *manifest.Manifest, _ *vmm.Config) { m.Version = "1.11.0" }, "version 1.11.0"},
		"processor": {func(m *manifest.Manifest, _ *vmm.Config) { m.Needs["processor"] = "AuthenticAMD 25 1 1" }, "AuthenticAMD"},
		"template":  {func(m *manifest.Manifest, _ *vmm.Config) { m.Needs["processor template"] = "T2" }, "processor template"},
		"runtime":   {func(m *manifest.Manifest, _ *vmm.Config) { m.Driver = "qemu" }, "qemu"},
		"memory":    {func(_ *manifest.Manifest, c *vmm.Config) { c.Resources.MemoryMB *= 2 }, "MiB of memory"},
		"more cpus": {func(_ *manifest.Manifest, c *vmm.Config) { c.Resources.VCPU = 2 }, "virtual processors"},
	} {
		dir := filepath.Join(r.TempDir(), "copy")
		if err := os.CopyFS(dir, os.DirFS(snap)); err != nil {
			t.Fatal(err)
		}
		m, err := manifest.Read(dir)
		if err != nil {
			t.Fatal(err)
		}
		cfg := r.config("bad")
		c.change(&m, &cfg)
		if err := m.Write(dir); err != nil {
			t.Fatal(err)
		}
		_, err = r.driver.Restore(r.ctx, cfg, dir)
		if !tartarus.Is(err, tartarus.Unsupported) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestChangesNeedTracking asks a driver for changes that does not track them.
func TestChangesNeedTracking(t *testing.T) {
	r := newRig(t, func(c *firecracker.Config) { c.TrackDirty = false })
	m := r.boot("src")
	snap := r.snapshot(m)
	err := m.(vmm.Differ).SnapshotDiff(r.ctx, r.TempDir(), snap)
	if !tartarus.Is(err, tartarus.Unsupported) {
		t.Error(err)
	}
	r.counts(m)
}
