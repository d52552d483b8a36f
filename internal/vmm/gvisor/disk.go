package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/manifest"
)

// diskFiles are what a disk snapshot consists of, in the order in which the sandbox wants them: gVisor's checkpoint of a file system.
var diskFiles = []string{
	checkpointfiles.FSCheckpointManifestFileName, checkpointfiles.FSCheckpointMultiTarFileName,
	checkpointfiles.PagesMetadataFileName, checkpointfiles.PagesFileName,
}

// diskVersion is what must match for a disk snapshot to be usable. Unlike one of memory it outlives versions of gVisor, which reads the format of
// older ones and refuses newer ones itself.
const diskVersion = "disk 1"

var (
	_ vmm.DiskDriver  = (*Driver)(nil)
	_ vmm.DiskMachine = (*machine)(nil)
)

// SnapshotDisk implements vmm.DiskMachine. The writable layer has a memory file of its own, so its pages are saved without any of the
// guest's, in pieces.
func (m *machine) SnapshotDisk(ctx context.Context, dir string) error {
	release, err := m.life.Take(ctx)
	if err != nil {
		return fmt.Errorf("snapshot disk of machine %s: %w", m.id, err)
	}
	defer release()
	if err := m.snapshotDisk(ctx, dir); err != nil {
		return fmt.Errorf("snapshot disk of machine %s: %w", m.id, m.ended(err))
	}
	return nil
}

func (m *machine) snapshotDisk(ctx context.Context, dir string) (err error) {
	var args boot.FSSaveArgs
	defer func() {
		closeAll(args.FilePayload.Files)
		if err == nil {
			return
		}
		for _, f := range args.FilePayload.Files {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if args.FilePayload.Files, err = createFiles(dir, diskFiles); err != nil {
		return err
	}
	saving, cancel := context.WithTimeout(context.WithoutCancel(ctx), snapshotTimeout)
	defer cancel()
	if err := call(saving, m.dir, boot.ContMgrFSSave, &args, nil); err != nil {
		return fmt.Errorf("save disk: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return writeManifest(ctx, dir, manifest.Manifest{Driver: Name, Version: diskVersion, RootFS: m.rootfs}, args.FilePayload.Files)
}

// createFiles makes files that must not exist. When it fails, those made so far are returned too.
func createFiles(dir string, names []string) (files []*os.File, err error) {
	for _, name := range names {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// writeManifest completes and writes the manifest of a snapshot, which is usable from then on.
func writeManifest(ctx context.Context, dir string, man manifest.Manifest, files []*os.File) error {
	man.Format = manifest.Format
	for _, f := range files {
		sums, err := manifest.Checksum(ctx, f)
		if err != nil {
			return err
		}
		sums.Name = filepath.Base(f.Name())
		man.Files = append(man.Files, sums)
	}
	return man.Write(dir)
}

// openFiles opens the files of a snapshot.
func openFiles(dir string, names []string) (files []*os.File, err error) {
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			err = tartarus.Errorf(tartarus.Corrupt, "snapshot has no file %s", name)
		}
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// readFitting reads the manifest in dir and holds it against the image and what this driver reads.
func readFitting(dir, rootfs, version string) (manifest.Manifest, error) {
	man, err := manifest.Read(dir)
	if err != nil {
		return man, err
	}
	image, err := manifest.ImageID(rootfs)
	if err != nil {
		return man, err
	}
	return man, man.Fits(manifest.Manifest{Driver: Name, Version: version, RootFS: image})
}

// BootDisk implements vmm.DiskDriver. The sandbox reads the files from its first moment on, so they are checked before there is one.
func (d *Driver) BootDisk(ctx context.Context, c vmm.Config, dir string) (vmm.Machine, error) {
	m, err := d.bootDisk(ctx, c, dir)
	if err != nil {
		return nil, fmt.Errorf("boot machine %s from its disk: %w", c.ID, err)
	}
	return m, nil
}

func (d *Driver) bootDisk(ctx context.Context, c vmm.Config, dir string) (*machine, error) {
	man, err := readFitting(dir, c.RootFS, diskVersion)
	if err != nil {
		return nil, err
	}
	files, err := openFiles(dir, diskFiles)
	defer func() { closeAll(files) }()
	if err != nil {
		return nil, err
	}
	if err := man.Verify(ctx, files); err != nil {
		return nil, err
	}
	return d.make(ctx, c, start{disk: files}, func(ctx context.Context, s *session) error {
		id := guestID
		if err := s.call(ctx, boot.ContMgrRootContainerStart, &id, nil); err != nil {
			return err
		}
		// Files are read in while the guest runs; one that cannot be would be found out by whoever reads it. It must be known before.
		return s.call(ctx, boot.ContMgrWaitFSRestore, &boot.WaitFSRestoreArgs{CID: guestID}, nil)
	})
}

// ExtractDisk implements vmm.DiskDriver. The writable layer's table of contents is in the kernel's state, which only a sandbox can read: the
// guest is restored without any network, and saved and ended before it gets far.
func (d *Driver) ExtractDisk(ctx context.Context, c vmm.Config, dir, disk string) error {
	c.Interface = nil
	m, err := d.restore(ctx, c, dir)
	if err != nil {
		return fmt.Errorf("extract disk: %w", err)
	}
	err = m.SnapshotDisk(ctx, disk)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err = errors.Join(err, m.Stop(last)); err != nil {
		return fmt.Errorf("extract disk: %w", err)
	}
	return nil
}
