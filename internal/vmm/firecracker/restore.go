package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/manifest"
)

// Restore implements vmm.Driver.
func (d *Driver) Restore(ctx context.Context, c vmm.Config, dir string) (vmm.Machine, error) {
	m, err := d.restore(ctx, c, dir)
	if err != nil {
		return nil, fmt.Errorf("restore machine %s: %w", c.ID, err)
	}
	return m, nil
}

// stored is a snapshot that fits, with its files open.
type stored struct {
	man   manifest.Manifest
	files []*os.File // in the manifest's order: state, memory, disk
	// remote is where the memory is that has no file here: files has a nil for it, and who reads it checks it.
	remote *Remote
}

func (s *stored) close() {
	for _, f := range s.files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// openSnapshot opens a snapshot that a machine like c can be made of.
func (d *Driver) openSnapshot(ctx context.Context, c vmm.Config, dir string) (_ *stored, err error) {
	p, err := d.monitor(ctx)
	if err != nil {
		return nil, err
	}
	s := &stored{}
	if s.man, err = manifest.Read(dir); err != nil {
		return nil, err
	}
	if s.man.Base != "" {
		return nil, tartarus.Errorf(tartarus.Unsupported, "snapshot holds only what changed since snapshot %.12s: merge them first", s.man.Base)
	}
	image, err := manifest.ImageID(c.RootFS)
	if err != nil {
		return nil, err
	}
	if err := s.man.Fits(manifest.Manifest{Driver: Name, Version: p.version.String(), RootFS: image, Needs: d.needs(c)}); err != nil {
		return nil, err
	}
	if remote := d.cfg.PageFaults.Remote; remote != nil {
		if _, err := os.Stat(filepath.Join(dir, memoryName)); errors.Is(err, fs.ErrNotExist) {
			if s.remote, err = remote(ctx, dir); err != nil {
				return nil, err
			}
		}
	}
	return s, s.open(dir)
}

func (s *stored) open(dir string) error {
	for _, name := range snapshotFiles(len(s.man.Files) > 2) {
		if name == memoryName && s.remote != nil {
			s.files = append(s.files, nil)
			continue
		}
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			s.close()
			if errors.Is(err, fs.ErrNotExist) {
				return tartarus.Errorf(tartarus.Corrupt, "snapshot has no file %s", name)
			}
			return err
		}
		s.files = append(s.files, f)
	}
	return nil
}

func (d *Driver) restore(ctx context.Context, c vmm.Config, dir string) (*machine, error) {
	full, err := checked(c)
	if err != nil {
		return nil, err
	}
	s, err := d.openSnapshot(ctx, full, dir)
	if err != nil {
		return nil, err
	}
	defer s.close()
	// The files are checked while the monitor starts, and before it may read them: it gets the very files that were checked.
	checking, cancel := context.WithCancel(ctx)
	whole := make(chan error, 1)
	go func() { whole <- d.sums.check(checking, s.man, s.files) }()
	settled := false
	defer func() {
		cancel()
		if !settled {
			<-whole
		}
	}()
	return d.make(ctx, c, func(ctx context.Context, m *machine, c vmm.Config) error {
		if err := d.prepareRestore(ctx, m, c, s); err != nil {
			return err
		}
		err := <-whole
		settled = true
		if err != nil {
			return err
		}
		return d.load(ctx, m, c, s)
	})
}

// prepareRestore fills the jail and starts the monitor.
func (d *Driver) prepareRestore(ctx context.Context, m *machine, c vmm.Config, s *stored) error {
	if err := d.placePath(ctx, c.RootFS, m.path(imageName)); err != nil {
		return err
	}
	for i, name := range []string{stateName, memoryName} {
		if s.files[i] == nil {
			continue
		}
		if err := d.place(ctx, s.files[i], m.path(name)); err != nil {
			return err
		}
	}
	if m.state.Disk = len(s.files) > 2; m.state.Disk {
		out, err := os.OpenFile(m.path(diskName), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		defer out.Close()
		if err := copyFile(ctx, out, s.files[2]); err != nil {
			return fmt.Errorf("copy disk: %w", err)
		}
		if err := out.Chown(m.state.UID, m.state.UID); err != nil {
			return err
		}
	}
	if s.remote != nil {
		m.extraMB = remoteMB
	}
	return d.spawn(ctx, m, c)
}

// load has the monitor go on where the snapshot was taken.
func (d *Driver) load(ctx context.Context, m *machine, c vmm.Config, s *stored) error {
	memory, err := d.memory(ctx, m, s)
	if err != nil {
		return err
	}
	others := s.man.Rates != d.rates() // it waits until it is held to ours
	l := SnapshotLoad{State: "/" + stateName, Memory: memory, TrackDirty: d.cfg.TrackDirty, Resume: !others}
	if c.Interface != nil {
		l.Networks = []NetworkOverride{{ID: interfaceID, Device: c.Interface.Device}}
	}
	err = m.api.LoadSnapshot(ctx, l)
	if fault, ok := errors.AsType[*Fault](err); ok {
		return tartarus.Errorf(tartarus.Corrupt, "load snapshot: %w", fault)
	}
	if err != nil {
		return fmt.Errorf("load snapshot: %w", err)
	}
	if others {
		if err := errors.Join(d.setRates(ctx, m, c), m.api.Resume(ctx)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(m.dir, lastName), []byte(s.man.Chain()), 0o600); err != nil {
		return err
	}
	if d.cfg.Guest.Linux == nil {
		return nil
	}
	return linux.Tell(ctx, c)
}
