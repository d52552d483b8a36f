package qemu

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/vmm/disk"
)

// newMemory makes a guest's memory: a file without a name, so that nothing of it ever reaches a disk, and what the guest does not touch takes
// no space. Its pages are charged to whoever touches them first: QEMU.
func newMemory(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("guest-memory", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make guest memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "guest-memory")
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, fmt.Errorf("make guest memory: %w", err)
	}
	return f, nil
}

// newWords is where QEMU's standard error goes: memory that is charged to its control group, so that one that never stops talking
// fills nothing but itself.
func newWords() (*os.File, error) {
	fd, err := unix.MemfdCreate("stderr", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make file for QEMU's output: %w", err)
	}
	return os.NewFile(uintptr(fd), wordsName), nil
}

// memory is the memory of a snapshot, verified, that machines restored from it map privately: what none of them has changed is
// there once for all of them.
type memory struct {
	id   string
	file *os.File
	uses int // under Driver.mu
}

// shared returns the memory of a snapshot for one more machine: what another machine of the snapshot uses already, or a copy. The copy is sealed: QEMU
// opens it for writing as it opens any memory, and must not be able to change what others will run on. check verifies the copy, so that
// what was verified is what is used. forget gives it back.
func (d *Driver) shared(ctx context.Context, id string, from *os.File, check func(copy *os.File) error) (*memory, error) {
	d.saving.Lock()
	defer d.saving.Unlock()
	d.mu.Lock()
	if m := d.saved[id]; m != nil {
		m.uses++
		d.mu.Unlock()
		return m, nil
	}
	d.mu.Unlock()
	f, err := newMemory(0)
	if err != nil {
		return nil, err
	}
	err = disk.CopySparse(ctx, f, from)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err == nil {
		err = check(f)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read snapshot's memory: %w", err)
	}
	m := &memory{id: id, file: f, uses: 1}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.saved[id] = m
	return m, nil
}

// forget gives a machine's share of a snapshot's memory back. Machines that were adopted hold it through their processes alone.
func (d *Driver) forget(m *memory) {
	if m == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if m.uses--; m.uses == 0 {
		delete(d.saved, m.id)
		_ = m.file.Close()
	}
}
