package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/manifest"
)

// snapshotTimeout bounds a snapshot that has begun, which a sandbox cannot be told to give up. Measured: 41 ms with
// 50 MB of memory; this is for tens of gigabytes on a slow disk.
const snapshotTimeout = 10 * time.Minute

// snapshotFiles are what a snapshot consists of, in the order in which the sandbox wants them.
var snapshotFiles = []string{
	checkpointfiles.StateFileName, checkpointfiles.PagesMetadataFileName, checkpointfiles.PagesFileName,
}

// Snapshot implements vmm.Machine. The writable layer is part of the pages file: it lives in the sandbox's memory
// files as the guest's memory does, and all of them are saved while the guest stands still. The manifest is
// written last, when the guest runs again; syncing the files is for whoever keeps them.
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
	opts := control.SaveOpts{
		Metadata: statefile.CompressionLevelNone.ToMetadata(), HavePagesFile: true, Resume: true,
	}
	defer func() {
		closeAll(opts.FilePayload.Files)
		if err == nil {
			return
		}
		for _, f := range opts.FilePayload.Files { // only what was made here
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if opts.FilePayload.Files, err = createFiles(dir, snapshotFiles); err != nil {
		return err
	}
	saving, cancel := context.WithTimeout(context.WithoutCancel(ctx), snapshotTimeout)
	defer cancel()
	if err := call(saving, m.dir, boot.ContMgrCheckpoint, &opts, nil); err != nil {
		return fmt.Errorf("save guest: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return writeManifest(ctx, dir, manifest.Manifest{Driver: Name, Version: m.version, RootFS: m.rootfs}, opts.FilePayload.Files)
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
	man, err := readFitting(dir, c.RootFS, Version())
	if err != nil {
		return nil, err
	}
	opts := boot.RestoreOpts{HavePagesFile: true, Background: true}
	defer func() { closeAll(opts.FilePayload.Files) }()
	if opts.FilePayload.Files, err = openFiles(dir, snapshotFiles); err != nil {
		return nil, err
	}
	// The files are checked while the sandbox process starts, and before it may read them. It reads the very
	// descriptors that were checked.
	checking, cancel := context.WithCancel(ctx)
	checked := make(chan error, 1)
	go func() { checked <- man.Verify(checking, opts.FilePayload.Files) }()
	settled := false
	defer func() {
		cancel()
		if !settled {
			<-checked
		}
	}()
	return d.make(ctx, c, start{restore: true}, func(ctx context.Context, s *session) error {
		err := <-checked
		settled = true
		if err != nil {
			return err
		}
		err = s.call(ctx, boot.ContMgrRestore, &opts, nil)
		if remote(err) && strings.Contains(err.Error(), "version does not match") {
			return tartarus.Errorf(tartarus.Unsupported, "restore guest: %w", err)
		}
		if remote(err) {
			return tartarus.Errorf(tartarus.Corrupt, "restore guest: %w", err)
		}
		return err
	})
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
