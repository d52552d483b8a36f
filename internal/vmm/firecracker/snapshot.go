package firecracker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/manifest"
)

// snapshotTimeout bounds a snapshot that has begun. Measured: 184 ms for 128 MiB of memory; this is for tens of gigabytes on
// a slow disk.
const snapshotTimeout = 10 * time.Minute

// lastName is the file beside the jail that holds the ID of the machine's last snapshot.
const lastName = "last"

var _ vmm.Differ = (*machine)(nil)

// snapshotFiles are what a snapshot consists of.
func snapshotFiles(disk bool) []string {
	if disk {
		return []string{stateName, memoryName, diskName}
	}
	return []string{stateName, memoryName}
}

// needs is what must be the same where a snapshot of a machine like c is restored.
func (d *Driver) needs(c vmm.Config) map[string]string {
	return map[string]string{
		"processor":          processor(),
		"processor template": d.cfg.CPUTemplate,
		"network interface":  strconv.FormatBool(c.Interface != nil),
		"virtual processors": strconv.Itoa(c.Resources.VCPU),
		"MiB of memory":      strconv.FormatInt(c.Resources.MemoryMB, 10),
		"MiB of disk":        strconv.FormatInt(c.Resources.DiskMB, 10),
	}
}

// processor names this host's processor as far as a guest can tell processors apart.
var processor = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), "\n\n")
	var parts []string
	for line := range strings.Lines(first) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant", "CPU revision":
			parts = append(parts, strings.TrimSpace(value))
		case "flags", "Features": // what a hypervisor above takes away is a difference too
			parts = append(parts, fmt.Sprintf("%x", sha256.Sum256([]byte(value)))[:12])
		}
	}
	return strings.Join(parts, " ")
})

// Snapshot implements vmm.Machine. Syncing the files is for whoever keeps them.
func (m *machine) Snapshot(ctx context.Context, dir string) error {
	return m.snapshot(ctx, dir, SnapshotCreate{Kind: SnapshotFull}, "")
}

// SnapshotDiff implements vmm.Differ.
func (m *machine) SnapshotDiff(ctx context.Context, dir, base string) error {
	return m.snapshot(ctx, dir, SnapshotCreate{Kind: SnapshotDiff}, base)
}

// CanDiff implements vmm.Differ.
func (m *machine) CanDiff(base string) error {
	_, err := m.canDiff(base)
	return err
}

func (m *machine) snapshot(ctx context.Context, dir string, s SnapshotCreate, base string) error {
	release, err := m.life.Take(ctx)
	if err != nil {
		return fmt.Errorf("snapshot machine %s: %w", m.id, err)
	}
	defer release()
	chain := ""
	if s.Kind == SnapshotDiff {
		chain, err = m.canDiff(base)
	}
	if err == nil {
		err = m.ended(m.writeSnapshot(ctx, dir, s, chain))
	}
	if err != nil {
		return fmt.Errorf("snapshot machine %s: %w", m.id, err)
	}
	return nil
}

// canDiff reports whether the pages that changed since the snapshot in base are known, and returns its ID in the chain.
func (m *machine) canDiff(base string) (chain string, err error) {
	mb, _ := strconv.ParseInt(m.state.Needs["MiB of memory"], 10, 64) // as it was written
	limit := m.api.version.diffLimitMB()
	if !m.driver.cfg.TrackDirty {
		return "", tartarus.Errorf(tartarus.Unsupported, "changed pages are not tracked: configure the driver to")
	}
	if limit > 0 && mb > limit {
		return "", tartarus.Errorf(tartarus.Unsupported, "Firecracker %s mixes up changed pages of more than %d MiB: take a full snapshot", m.api.version, limit)
	}
	man, err := manifest.Read(base)
	if err != nil {
		return "", err
	}
	chain = man.Chain()
	if last, err := os.ReadFile(filepath.Join(m.dir, lastName)); err != nil || string(last) != chain {
		return "", tartarus.Errorf(tartarus.Conflict, "changes are known since the machine's last snapshot only, and that is not %.12s: take a full snapshot", chain)
	}
	return chain, nil
}

func (m *machine) writeSnapshot(ctx context.Context, dir string, s SnapshotCreate, base string) (err error) {
	to, err := openFolder(dir)
	if err != nil {
		return err
	}
	defer to.Close()
	var made []string
	defer func() {
		for _, name := range []string{stateName, memoryName} {
			_ = os.Remove(inFolder(m.snap, name)) // moved away when all went well
		}
		if err != nil {
			for _, name := range made {
				err = errors.Join(err, os.Remove(inFolder(to, name)))
			}
		}
	}()
	if err := m.freeze(ctx, s, to, &made); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	man := manifest.Manifest{
		Format: manifest.Format, Driver: Name, Version: m.state.Version, RootFS: m.state.RootFS, Needs: m.state.Needs, Base: base, Rates: m.state.Rates,
	}
	for _, name := range snapshotFiles(m.state.Disk) {
		if name != diskName {
			if err := m.moveOut(ctx, name, to, &made); err != nil {
				return err
			}
		}
		sum, err := sumOf(ctx, inFolder(to, name))
		if err != nil {
			return err
		}
		sum.Name = name
		man.Files = append(man.Files, sum)
	}
	if err := os.WriteFile(filepath.Join(m.dir, lastName), []byte(man.Chain()), 0o600); err != nil {
		return err
	}
	made = append(made, manifest.Name)
	return man.Write(dir)
}

func sumOf(ctx context.Context, path string) (manifest.FileSum, error) {
	f, err := os.Open(path)
	if err != nil {
		return manifest.FileSum{}, err
	}
	defer f.Close()
	return manifest.Checksum(ctx, f)
}

// freeze writes memory, devices and disk of one instant: the guest stands still while it does.
func (m *machine) freeze(ctx context.Context, s SnapshotCreate, to *os.File, made *[]string) error {
	s.State, s.Memory = "/"+snapName+"/"+stateName, "/"+snapName+"/"+memoryName
	for _, name := range []string{stateName, memoryName} { // the folder is root's, so the monitor cannot make files in it
		if err := m.makeTarget(name); err != nil {
			return err
		}
	}
	// What was changed since the last snapshot is forgotten by the monitor, whether or not this one succeeds.
	if err := os.Remove(filepath.Join(m.dir, lastName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return m.bounded(ctx, snapshotTimeout, func(ctx context.Context) (err error) {
		i, err := m.api.Describe(ctx)
		if err != nil {
			return err
		}
		if i.State != statePaused {
			if err := m.api.Pause(ctx); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, m.api.Resume(ctx)) }()
		}
		if err := m.api.CreateSnapshot(ctx, s); err != nil {
			return err
		}
		if !m.state.Disk {
			return nil
		}
		return m.copyDisk(ctx, to, made)
	})
}

func (m *machine) makeTarget(name string) error {
	f, err := os.OpenFile(inFolder(m.snap, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Chown(m.state.UID, m.state.UID)
}

// copyDisk copies the machine's disk. The name is in a folder that the monitor may change, so it is looked at again.
func (m *machine) copyDisk(ctx context.Context, to *os.File, made *[]string) error {
	from, err := os.OpenFile(inFolder(m.root, diskName), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.Mode().IsRegular() || int(st.Uid) != m.state.UID || st.Nlink != 1 {
		return errors.New("the disk is not what it was")
	}
	out, err := os.OpenFile(inFolder(to, diskName), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o444)
	if err != nil {
		return err
	}
	defer out.Close()
	*made = append(*made, diskName)
	if err := copyFile(ctx, out, from); err != nil {
		return fmt.Errorf("copy disk: %w", err)
	}
	return nil
}

// moveOut brings what the monitor wrote into the snapshot's folder, where it is root's.
func (m *machine) moveOut(ctx context.Context, name string, to *os.File, made *[]string) error {
	from := inFolder(m.snap, name)
	f, err := os.OpenFile(from, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(f.Chown(0, 0), f.Chmod(0o444)); err != nil {
		return err
	}
	err = unix.Renameat2(int(m.snap.Fd()), name, int(to.Fd()), name, unix.RENAME_NOREPLACE)
	if err == nil {
		*made = append(*made, name)
		return nil
	}
	if !errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("move %s: %w", name, err)
	}
	out, err := os.OpenFile(inFolder(to, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o444)
	if err != nil {
		return err
	}
	defer out.Close()
	*made = append(*made, name)
	if err := copyFile(ctx, out, f); err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	return nil
}

// verified remembers which files were found whole: a template's snapshot is restored thousands of times, and reading its memory
// each time would cost more than the restore. A file that was written to since has another time of change.
type verified struct {
	mu   sync.Mutex
	seen []seenFile // the latest last
}

type seenFile struct {
	dev, ino    uint64
	size, mtime int64
	sum         [32]byte
}

// mostSeen bounds what is remembered: three files for each of some hundred snapshots.
const mostSeen = 512

// check verifies those of files, in the manifest's order, that are not known to be whole.
func (v *verified) check(ctx context.Context, man manifest.Manifest, files []*os.File) error {
	if len(man.Files) != len(files) {
		return tartarus.Errorf(tartarus.Corrupt, "snapshot manifest lists %d files", len(man.Files))
	}
	for i, f := range files {
		if f == nil {
			continue
		}
		s, err := seen(man.Files[i], f)
		if err != nil {
			return err
		}
		v.mu.Lock()
		known := slices.Contains(v.seen, s)
		v.mu.Unlock()
		if known {
			continue
		}
		if err := (manifest.Manifest{Files: man.Files[i : i+1]}).Verify(ctx, files[i:i+1]); err != nil {
			return err
		}
		v.mu.Lock()
		v.seen = append(v.seen, s)
		v.seen = v.seen[max(0, len(v.seen)-mostSeen):]
		v.mu.Unlock()
	}
	return nil
}

func seen(want manifest.FileSum, f *os.File) (seenFile, error) {
	info, err := f.Stat()
	if err != nil {
		return seenFile{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return seenFile{}, errors.New("file has no inode")
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %d %d", want.Name, want.Size, want.CRC)
	s := seenFile{dev: uint64(st.Dev), ino: st.Ino, size: info.Size(), mtime: info.ModTime().UnixNano()}
	h.Sum(s.sum[:0])
	return s, nil
}
