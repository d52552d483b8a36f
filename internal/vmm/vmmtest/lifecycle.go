package vmmtest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

func pauseResume(e *env) {
	m := e.start(e.config("pause1"))
	if err := m.Resume(e.ctx); err != nil { // runs already
		e.Fatal(err)
	}
	e.counts(m, 5)
	before := e.count(m)
	for range 2 {
		if err := m.Pause(e.ctx); err != nil {
			e.Fatal(err)
		}
	}
	u0, err := m.Usage(e.ctx)
	if err != nil {
		e.Fatal(err)
	}
	const still = 400 * time.Millisecond // time for 80 counts
	e.pause(still)
	u1, err := m.Usage(e.ctx)
	if err != nil {
		e.Fatal(err)
	}
	if used := u1.CPU - u0.CPU; used > still/10 {
		e.Errorf("a paused machine used %s of processor time", used)
	}
	for range 2 {
		if err := m.Resume(e.ctx); err != nil {
			e.Fatal(err)
		}
	}
	if after := e.count(m); after-before > 60 {
		e.Errorf("a paused guest counted from %d to %d", before, after)
	}
	e.counts(m, before+5)
}

// snapshotOf takes a snapshot of m.
func (e *env) snapshotOf(m vmm.Machine) string {
	e.Helper()
	dir := e.folder("snap")
	t0 := time.Now()
	if err := m.Snapshot(e.ctx, dir); err != nil {
		e.Fatal(err)
	}
	e.Logf("snapshot in %s", time.Since(t0))
	return dir
}

// restore restores a machine that the row's end stops.
func (e *env) restore(c vmm.Config, dir string) vmm.Machine {
	e.Helper()
	t0 := time.Now()
	m, err := e.driver.Restore(e.ctx, c, dir)
	if err != nil {
		e.Fatal(err)
	}
	e.Logf("restored in %s", time.Since(t0))
	e.keep(m)
	return m
}

func snapshotRestore(e *env) {
	m := e.start(e.config("snap1"))
	e.do(m, "write", "/kept", "of the first")
	e.do(m, "write", "/tmp/kept", "of tmp")
	before := e.count(m)
	dir := e.snapshotOf(m)
	after := e.count(m)
	e.do(m, "write", "/kept", "changed later")
	e.counts(m, after) // the source goes on

	for i := range 2 { // any number of times
		c := e.restore(e.config(fmt.Sprintf("snap2%d", i)), dir)
		got := e.count(c)
		if got < before || got > after+200*max(e.factory.Patience, 1) {
			e.Errorf("the clone counts at %d, the source was between %d and %d", got, before, after)
		}
		e.counts(c, got)
		e.equal("file", e.do(c, "cat", "/kept"), "of the first")
		e.equal("file", e.do(c, "cat", "/tmp/kept"), "of tmp")
		e.do(c, "write", "/kept", "of the clone")
		if !e.can(Linux) {
			continue
		}
		out := e.do(c, "bomb", "500") // limits hold in a clone too
		if !strings.Contains(out, "refused true") {
			e.Errorf("the clone lifted its limit: %s", out)
		}
	}
	e.equal("file", e.do(m, "cat", "/kept"), "changed later")

	// A clone can be cloned.
	c := e.restore(e.config("snap3"), dir)
	e.do(c, "write", "/second", "generation")
	cc := e.restore(e.config("snap4"), e.snapshotOf(c))
	e.equal("file", e.do(cc, "cat", "/second"), "generation")
	e.counts(cc, e.count(cc))
}

func restoreThree(e *env) {
	c := e.config("src")
	if e.factory.TAP { // a virtual machine cannot get another device in its sleep, only another cable
		e.attach(&c, e.newSlot(9))
	}
	m := e.start(c)
	e.count(m)
	dir := e.snapshotOf(m)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range 3 {
		s := e.newSlot(10 + i)
		c := e.config(fmt.Sprintf("clone%d", i))
		e.attach(&c, s)
		wg.Go(func() {
			m, err := e.driver.Restore(e.ctx, c, dir)
			if err != nil {
				e.Error(err)
				return
			}
			mu.Lock()
			e.keep(m)
			mu.Unlock()
			e.do(m, "write", "/who", c.ID)
			e.equal("owner", e.do(m, "cat", "/who"), c.ID)
			if !e.can(Network) {
				return
			}
			// It listens already, at an address that it did not have when the snapshot was taken.
			e.equal("answer", s.ask(e, GuestPath, "cat", "/who"), c.ID)
		})
	}
	wg.Wait()
	e.counts(m, e.count(m))
}

func snapshotPaused(e *env) {
	m := e.start(e.config("sp1"))
	before := e.count(m)
	if err := m.Pause(e.ctx); err != nil {
		e.Fatal(err)
	}
	dir := e.snapshotOf(m)
	e.pause(300 * time.Millisecond)
	if err := m.Resume(e.ctx); err != nil {
		e.Fatal(err)
	}
	if after := e.count(m); after-before > 50 {
		e.Errorf("the guest counted from %d to %d while it was paused", before, after)
	}
	c := e.restore(e.config("sp2"), dir) // runs
	e.counts(c, e.count(c))
}

func snapshotFails(e *env) {
	small := filepath.Join(e.TempDir(), "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		e.Fatal(err)
	}
	if err := unix.Mount("none", small, "tmpfs", 0, "size=64k"); err != nil {
		e.Skipf("cannot mount a small file system: %v", err)
	}
	defer func() { _ = unix.Unmount(small, unix.MNT_DETACH) }()
	m := e.start(e.config("sf1"))
	e.count(m)
	if err := m.Snapshot(e.ctx, small); err == nil {
		e.Error("a snapshot fits into 64 KiB")
	} else {
		e.Log(err)
	}
	if m2, err := e.driver.Restore(e.ctx, e.config("sf2"), small); err == nil {
		e.Error("a failed snapshot could be restored")
		e.keep(m2)
	}
	if err := m.Snapshot(e.ctx, filepath.Join(small, "none")); err == nil {
		e.Error("a snapshot was written to nowhere")
	}
	e.counts(m, e.count(m))
	c := e.restore(e.config("sf2"), e.snapshotOf(m)) // and a good one can follow
	e.counts(c, e.count(c))
}

// copyOf copies a snapshot so that it can be spoilt.
func (e *env) copyOf(dir string) string {
	e.Helper()
	to := e.folder("copy")
	if err := os.CopyFS(filepath.Join(to, "s"), os.DirFS(dir)); err != nil {
		e.Fatal(err)
	}
	return filepath.Join(to, "s")
}

func snapshotDamaged(e *env) {
	m := e.start(e.config("dmg1"))
	e.alive(m)
	good := e.snapshotOf(m)
	entries, err := os.ReadDir(good)
	if err != nil || len(entries) < 1 {
		e.Fatalf("a snapshot of %d files, %v", len(entries), err)
	}
	type damage struct {
		what string
		do   func(path string, size int64) error
	}
	spoil := []damage{
		{"first byte", func(p string, _ int64) error { return flip(p, 0) }},
		{"missing", func(p string, _ int64) error { return os.Remove(p) }},
		{"last byte", func(p string, n int64) error { return flip(p, n-1) }},
		{"longer", func(p string, n int64) error { return os.Truncate(p, n+4096) }},
		{"cut", func(p string, n int64) error { return os.Truncate(p, n-1) }},
	}
	for i, f := range entries {
		for j, s := range spoil {
			if (i+j)%2 != 0 {
				continue // each kind on some files, each file by some kinds: a restore takes its time
			}
			dir := e.copyOf(good)
			path := filepath.Join(dir, f.Name())
			info, err := f.Info()
			if err != nil {
				e.Fatal(err)
			}
			if err := s.do(path, info.Size()); err != nil {
				e.Fatal(err)
			}
			c, err := e.driver.Restore(e.ctx, e.config("dmg2"), dir)
			if err == nil {
				e.keep(c)
			}
			if kindOf(err) != tartarus.Corrupt {
				e.Errorf("%s %s: %v", f.Name(), s.what, err)
			}
		}
	}
	e.restore(e.config("dmg2"), good)
}

// flip inverts one byte.
func flip(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 0xff
	_, err = f.WriteAt(b, at)
	return err
}

func snapshotOtherImage(e *env) {
	m := e.start(e.config("img1"))
	dir := e.snapshotOf(m)
	other := filepath.Join(e.TempDir(), "other.erofs")
	b, err := os.ReadFile(e.image)
	if err != nil {
		e.Fatal(err)
	}
	if err := os.WriteFile(other, append(b, make([]byte, 4096)...), 0o644); err != nil {
		e.Fatal(err)
	}
	c := e.config("img2")
	c.RootFS = other
	if m, err := e.driver.Restore(e.ctx, c, dir); err == nil {
		e.Error("a snapshot was restored on another image")
		e.keep(m)
	}
}

func adopt(e *env) {
	boss := e.startManager("adopt1", false)
	before := boss.count
	boss.kill()
	d := e.open()
	t0 := time.Now()
	m, err := d.Adopt(e.ctx, boss.record)
	if err != nil {
		e.Fatal(err)
	}
	e.Logf("adopted in %s", time.Since(t0))
	e.keep(m)
	e.counts(m, before) // it went on meanwhile, and goes on
	e.equal("record", string(mustJSON(m.Record())), string(mustJSON(boss.record)))
	if err := m.Pause(e.ctx); err != nil {
		e.Fatal(err)
	}
	if err := m.Resume(e.ctx); err != nil {
		e.Fatal(err)
	}
	e.driver = d
	c := e.restore(e.config("adopt2"), e.snapshotOf(m))
	e.counts(c, before)
	if u, err := m.Usage(e.ctx); err != nil || u.MemoryBytes <= 0 {
		e.Errorf("usage %+v, %v", u, err)
	}
	if err := m.Stop(e.ctx); err != nil {
		e.Fatal(err)
	}
	e.equal("reason", e.ends(m).Reason, tartarus.ReasonUser)
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func adoptPaused(e *env) {
	boss := e.startManager("adoptp", true)
	boss.kill()
	m, err := e.open().Adopt(e.ctx, boss.record)
	if err != nil {
		e.Fatal(err)
	}
	e.keep(m)
	if err := m.Pause(e.ctx); err != nil { // is already
		e.Fatal(err)
	}
	if err := m.Resume(e.ctx); err != nil {
		e.Fatal(err)
	}
	e.counts(m, e.count(m))
}

func adoptOther(e *env) {
	boss := e.startManager("adopto", false)
	boss.kill()
	bystander := e.bystander()
	d := e.open()
	// The record as it would be if its process had ended and the number had gone to another process.
	r := boss.record
	r.State = replaceNumber(e, r.State, "pid", int64(bystander.Process.Pid))
	_, err := d.Adopt(e.ctx, r)
	e.is(err, tartarus.NotFound)
	if !bystander.alive() {
		e.Error("a process that is not ours was killed")
	}
	if _, err := d.Adopt(e.ctx, boss.record); kindOf(err) != tartarus.NotFound {
		e.Errorf("what was left of the machine is still there: %v", err)
	}
}

func adoptDead(e *env) {
	boss := e.startManager("adoptd", false)
	boss.kill()
	m, err := e.open().Adopt(e.ctx, boss.record)
	if err != nil {
		e.Fatal(err)
	}
	if err := m.Stop(e.ctx); err != nil {
		e.Fatal(err)
	}
	_, err = e.open().Adopt(e.ctx, boss.record)
	e.is(err, tartarus.NotFound)
	_, err = e.open().Adopt(e.ctx, vmm.Record{Driver: boss.record.Driver, ID: "../x", State: boss.record.State})
	e.is(err, tartarus.Invalid)
	_, err = e.open().Adopt(e.ctx, vmm.Record{Driver: "other", ID: "adoptd"})
	e.is(err, tartarus.Invalid)
}

func leftovers(e *env) {
	mine := e.start(e.config("left1"))
	boss := e.startManager("left2", false)
	boss.kill()
	owned := func(id string) bool { return id == prefix+"left1" }
	d := e.open()
	found, err := d.Leftovers(e.ctx, owned, false)
	if err != nil {
		e.Fatal(err)
	}
	kinds := map[string]bool{}
	for _, l := range found {
		kinds[l.Kind] = true
		if !strings.Contains(l.Name, prefix+"left2") {
			e.Errorf("found %+v", l)
		}
	}
	if !kinds["process"] || !kinds["folder"] {
		e.Errorf("found only %+v", found)
	}
	// Another driver's folder: nothing of ours is its business.
	other, err := e.factory.New(e.TempDir())
	if err != nil {
		e.Fatal(err)
	}
	none := func(string) bool { return false }
	if found, err := other.Leftovers(e.ctx, none, true); err != nil || len(found) != 0 {
		e.Errorf("a driver on another folder found %+v, %v", found, err)
	}
	if _, err := d.Leftovers(e.ctx, owned, true); err != nil {
		e.Fatal(err)
	}
	if found, err := d.Leftovers(e.ctx, owned, false); err != nil || len(found) != 0 {
		e.Errorf("left after removal: %+v, %v", found, err)
	}
	e.counts(mine, e.count(mine))
}
