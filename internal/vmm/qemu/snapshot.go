package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/disk"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/manifest"
)

// snapshotTimeout bounds a snapshot that has begun. Measured: 60 ms for a guest that has touched 100 MiB; this is for tens of gigabytes on a
// slow disk.
const snapshotTimeout = 10 * time.Minute

// memoryName is the guest's memory in a snapshot. A machine whose memory was itself a snapshot's has it among the state instead.
const memoryName = "memory"

// engine is what runs the guest's instructions, as far as a snapshot depends on it: by emulation QEMU's own processor, by KVM the host's.
func engine(qemu emulator) string {
	if !qemu.hardware {
		return "tcg"
	}
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "kvm"
	}
	for line := range bytes.Lines(b) {
		if name, value, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(name) == "model name" {
			return "kvm " + strings.TrimSpace(value)
		}
	}
	return "kvm"
}

// manifest is what a snapshot of a machine like this says of itself.
func (a about) manifest() manifest.Manifest {
	return manifest.Manifest{
		Format: manifest.Format, Driver: Name, Version: a.Version, RootFS: a.RootFS,
		Needs: map[string]string{
			"layout": layout, "processor": a.Engine, "processors": strconv.Itoa(a.VCPU), "MiB of memory": strconv.FormatInt(a.Memory, 10),
			"disk": strconv.FormatBool(a.Disk), "network": strconv.FormatBool(a.Network),
		},
	}
}

// Snapshot implements vmm.Machine. While the guest stands still its devices are written and memory and disk are copied; what is slow,
// reading all that again for the checksums, comes when it runs again. Syncing the files is for whoever keeps them.
func (m *machine) Snapshot(ctx context.Context, dir string) error {
	release, err := m.life.Take(ctx)
	if err != nil {
		return fmt.Errorf("snapshot machine %s: %w", m.id, err)
	}
	defer release()
	if err := m.snapshot(ctx, dir); err != nil {
		return fmt.Errorf("snapshot machine %s: %w", m.id, m.ended(err))
	}
	return nil
}

func (m *machine) snapshot(ctx context.Context, dir string) (err error) {
	var names []string
	defer func() {
		if err != nil {
			for _, n := range names { // only what was made here
				_ = os.Remove(filepath.Join(dir, n))
			}
		}
	}()
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return fmt.Errorf("snapshot folder: %w", errors.Join(err, fs.ErrNotExist))
	}
	if names, err = m.freeze(ctx, dir); err != nil {
		return err
	}
	man := m.about.manifest()
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		sums, err := manifest.Checksum(ctx, f)
		f.Close()
		if err != nil {
			return err
		}
		sums.Name = name
		man.Files = append(man.Files, sums)
	}
	return man.Write(dir)
}

// freeze stops the guest, copies what it is, and lets it go on when it ran before. It returns the files that it made, also when it fails.
func (m *machine) freeze(ctx context.Context, dir string) (names []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	was, err := m.monitor.status(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.monitor.stop(ctx); err != nil {
		return nil, err
	}
	if was == stateRunning {
		defer func() { // also when the caller has gone: a guest must not stand still for ever
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseTimeout)
			defer cancel()
			err = errors.Join(err, m.monitor.cont(last))
		}()
	}
	names = append(names, stateName)
	if err := m.saveState(ctx, filepath.Join(dir, stateName)); err != nil {
		return names, fmt.Errorf("save devices: %w", err)
	}
	if !m.about.Private {
		names = append(names, memoryName)
		if err := m.saveMemory(ctx, filepath.Join(dir, memoryName)); err != nil {
			return names, fmt.Errorf("save memory: %w", err)
		}
	}
	if m.about.Disk {
		names = append(names, diskName)
		if err := disk.Copy(ctx, filepath.Join(m.dir, diskName), filepath.Join(dir, diskName)); err != nil {
			return names, fmt.Errorf("save disk: %w", err)
		}
	}
	return names, nil
}

func (m *machine) saveState(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := m.monitor.save(ctx, f); err != nil {
		return err
	}
	// A full disk is not told to who writes the last bytes, and QEMU does not look at what closing a file says.
	if st, err := f.Stat(); err != nil || st.Size() == 0 {
		return fmt.Errorf("nothing was written: %w", errors.Join(err, unix.ENOSPC))
	}
	return nil
}

func (m *machine) saveMemory(ctx context.Context, path string) error {
	in, err := m.ownFile(m.about.MemoryFD)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(disk.CopySparse(ctx, out, in), out.Close())
}

// Restore implements vmm.Driver.
func (d *Driver) Restore(ctx context.Context, c vmm.Config, dir string) (vmm.Machine, error) {
	m, err := d.restore(ctx, c, dir)
	if err != nil {
		return nil, fmt.Errorf("restore machine %s: %w", c.ID, err)
	}
	return m, nil
}

func (d *Driver) restore(ctx context.Context, c vmm.Config, dir string) (*machine, error) {
	man, err := manifest.Read(dir)
	if err != nil {
		return nil, err
	}
	r := &restoring{driver: d, dir: dir, man: man, config: c}
	return d.make(ctx, c, plan{prepare: r.prepare, begin: r.begin})
}

// restoring is one restore on its way.
type restoring struct {
	driver *Driver
	dir    string
	man    manifest.Manifest
	config vmm.Config
}

// prepare makes the machine's files from the snapshot's, all of which are verified: the copies where there are copies, so that nobody can change
// what was verified, and the state in the very descriptor that QEMU reads.
func (r *restoring) prepare(ctx context.Context, m *machine, c vmm.Config) error {
	if err := r.man.Fits(m.about.manifest()); err != nil {
		return err
	}
	var names []string
	for _, f := range r.man.Files {
		names = append(names, f.Name)
	}
	want := []string{stateName}
	apart := slices.Contains(names, memoryName)
	if apart {
		want = append(want, memoryName)
	}
	m.about.Private = true // memory that is shared would not take what is among the state
	if m.about.Disk {
		want = append(want, diskName)
	}
	if !slices.Equal(names, want) {
		return tartarus.Errorf(tartarus.Corrupt, "snapshot has the files %v, not %v", names, want)
	}
	var err error
	if m.files.state, err = r.open(stateName); err != nil {
		return err
	}
	if err := r.verify(ctx, m.files.state); err != nil {
		return err
	}
	if m.about.Disk {
		if err := r.copyDisk(ctx, m); err != nil {
			return err
		}
	}
	if !apart {
		m.files.memory, err = newMemory(memoryMB(c.Resources) << 20)
		return err
	}
	in, err := r.open(memoryName)
	if err != nil {
		return err
	}
	defer in.Close()
	m.base, err = r.driver.shared(ctx, r.man.ID(), in, func(copy *os.File) error { return r.verifyAs(ctx, memoryName, copy) })
	if err != nil {
		return err
	}
	m.files.memory, err = os.OpenFile(self(int(m.base.file.Fd())), os.O_RDWR, 0)
	return err
}

func (r *restoring) open(name string) (*os.File, error) {
	f, err := os.Open(filepath.Join(r.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, tartarus.Errorf(tartarus.Corrupt, "snapshot has no file %s", name)
	}
	return f, err
}

func (r *restoring) copyDisk(ctx context.Context, m *machine) error {
	from, to := filepath.Join(r.dir, diskName), filepath.Join(m.dir, diskName)
	err := disk.Copy(ctx, from, to)
	if errors.Is(err, fs.ErrNotExist) {
		return tartarus.Errorf(tartarus.Corrupt, "snapshot has no file %s", diskName)
	}
	if err != nil {
		return err
	}
	f, err := os.Open(to)
	if err != nil {
		return err
	}
	defer f.Close()
	return r.verify(ctx, f)
}

func (r *restoring) verify(ctx context.Context, f *os.File) error {
	return r.verifyAs(ctx, filepath.Base(f.Name()), f)
}

// verifyAs holds a file against what the manifest says of the one of that name.
func (r *restoring) verifyAs(ctx context.Context, name string, f *os.File) error {
	i := slices.IndexFunc(r.man.Files, func(s manifest.FileSum) bool { return s.Name == name })
	got, err := manifest.Checksum(ctx, f)
	if err != nil {
		return err
	}
	if want := r.man.Files[i]; got.Size != want.Size || !slices.Equal(got.CRC, want.CRC) {
		return tartarus.Errorf(tartarus.Corrupt, "snapshot file %s is damaged", name)
	}
	return nil
}

// begin loads the guest, lets it run, and tells it who it is now: until then it answers at an address that is not its own.
func (r *restoring) begin(m *machine, ctx context.Context) error {
	if err := m.monitor.load(ctx, m.stateFD); err != nil {
		if m.handle.Ended() {
			return tartarus.Errorf(tartarus.Corrupt, "QEMU ended while it loaded the snapshot: %w", err)
		}
		return fmt.Errorf("load snapshot: %w", err)
	}
	if err := m.monitor.cont(ctx); err != nil {
		return fmt.Errorf("start restored guest: %w", err)
	}
	return linux.Tell(ctx, r.config)
}
