package vmmtest

import (
	"os"
	"path/filepath"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// disks is the driver as one that keeps disks alone; without it the row is skipped.
func (e *env) disks() vmm.DiskDriver {
	e.Helper()
	d, ok := e.driver.(vmm.DiskDriver)
	if !ok {
		e.Skip("the driver keeps no disks without their memory")
	}
	return d
}

// diskOf takes a disk snapshot of m.
func (e *env) diskOf(m vmm.Machine) string {
	e.Helper()
	s, ok := m.(vmm.DiskMachine)
	if !ok {
		e.Fatal("a machine of a vmm.DiskDriver is no vmm.DiskMachine")
	}
	dir := e.folder("disk")
	if err := s.SnapshotDisk(e.ctx, dir); err != nil {
		e.Fatal(err)
	}
	return dir
}

// diskAlone holds that a machine booted from a disk snapshot has the files and no more: its guest begins anew.
func diskAlone(e *env) {
	driver := e.disks()
	m := e.start(e.config("disk1"))
	want := e.do(m, "litter", "/made")
	e.counts(m, 100)
	dir := e.diskOf(m)
	e.counts(m, e.count(m)) // the source goes on
	e.do(m, "write", "/made/later", "not in it")

	for _, id := range []string{"disk2", "disk3"} { // any number of times
		b, err := driver.BootDisk(e.ctx, e.config(id), dir)
		if err != nil {
			e.Fatal(err)
		}
		e.keep(b)
		e.equal("tree", e.do(b, "tree", "/made"), want)
		if n := e.count(b); n > 90 {
			e.Errorf("the guest counts at %d: it did not begin anew", n)
		}
		e.do(b, "write", "/made/mine", id) // it can be written to, and the other one does not see it
	}
	if err := m.Pause(e.ctx); err != nil {
		e.Fatal(err)
	}
	paused := e.diskOf(m)
	if err := m.Resume(e.ctx); err != nil {
		e.Fatal(err)
	}
	b, err := driver.BootDisk(e.ctx, e.config("disk4"), paused)
	if err != nil {
		e.Fatal(err)
	}
	e.keep(b)
	e.equal("file", e.do(b, "cat", "/made/later"), "not in it")
}

// diskOfWhole holds that the disk of a whole snapshot can be had, and that neither kind is taken for the other.
func diskOfWhole(e *env) {
	driver := e.disks()
	m := e.start(e.config("whole1"))
	want := e.do(m, "litter", "/made")
	whole, disk := e.snapshotOf(m), e.folder("extracted")
	if err := driver.ExtractDisk(e.ctx, e.config("whole2"), whole, disk); err != nil {
		e.Fatal(err)
	}
	b, err := driver.BootDisk(e.ctx, e.config("whole2"), disk)
	if err != nil {
		e.Fatal(err)
	}
	e.keep(b)
	e.equal("tree", e.do(b, "tree", "/made"), want)
	_, err = driver.BootDisk(e.ctx, e.config("whole3"), whole)
	e.is(err, tartarus.Unsupported)
	_, err = e.driver.Restore(e.ctx, e.config("whole3"), disk)
	e.is(err, tartarus.Unsupported)
	e.restore(e.config("whole3"), whole) // it is left as it was
}

// diskDamaged holds that a damaged disk snapshot runs nothing.
func diskDamaged(e *env) {
	driver := e.disks()
	m := e.start(e.config("bad1"))
	e.do(m, "litter", "/made")
	dir := e.diskOf(m)
	files, err := os.ReadDir(dir)
	if err != nil {
		e.Fatal(err)
	}
	for _, f := range files {
		bad := e.copyOf(dir)
		name := filepath.Join(bad, f.Name())
		b, err := os.ReadFile(name)
		if err != nil {
			e.Fatal(err)
		}
		if len(b) == 0 {
			continue
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(name, b, 0o600); err != nil {
			e.Fatal(err)
		}
		if _, err := driver.BootDisk(e.ctx, e.config("bad2"), bad); !tartarus.Is(err, tartarus.Corrupt) {
			e.Errorf("%s with a flipped bit: %v", f.Name(), err)
		}
	}
	if err := os.Remove(filepath.Join(dir, files[0].Name())); err != nil {
		e.Fatal(err)
	}
	_, err = driver.BootDisk(e.ctx, e.config("bad2"), dir)
	e.is(err, tartarus.Corrupt)
}
