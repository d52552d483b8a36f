package hecatoncheir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// Snapshot takes a snapshot of a running sandbox, which stands still for as long as its memory is written and then goes on. What makes the
// snapshot durable happens while it does.
func (a *Agent) Snapshot(ctx context.Context, id string, how tartarus.SnapshotHow) (tartarus.Snapshot, error) {
	h, err := a.awake(ctx, id)
	if err != nil {
		return tartarus.Snapshot{}, err
	}
	h.op.Lock()
	defer h.op.Unlock()
	if err := h.answers(ctx); err != nil {
		// A clone of a guest that nobody can talk to is of use to nobody.
		return tartarus.Snapshot{}, err
	}
	if _, err := h.change(func(sb *tartarus.Sandbox) error { return sb.Transition(tartarus.Snapshotting, "", "") }); err != nil {
		return tartarus.Snapshot{}, err
	}
	work, cancel := context.WithTimeout(ctx, snapshotTime)
	defer cancel()
	snap, err := a.save(work, h, snapshot.Meta{Kind: snapshot.Named, Disk: how.Disk, Scratch: how.Scratch})
	_, back := h.change(func(sb *tartarus.Sandbox) error {
		if sb.Phase != tartarus.Snapshotting {
			return tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s", id, sb.Phase) // it was ended meanwhile
		}
		return sb.Transition(tartarus.Running, "", "")
	})
	a.rewind() // its time may have come to an end meanwhile
	if err != nil {
		return tartarus.Snapshot{}, fmt.Errorf("snapshot sandbox %s, which runs on: %w", id, errors.Join(err, back))
	}
	if len(how.Names) > 0 {
		if err := a.snapshots.Rename(work, snap.ID, how.Names...); err != nil {
			return tartarus.Snapshot{}, errors.Join(err, a.discard(work, snap.ID))
		}
		snap.Names = how.Names
	}
	return describe(snap.Manifest, a.snapshots.Progress(snap.ID), a.cfg.Name), nil
}

// Snapshots lists those of a tenant that this node has, and those in the object store that it could fetch, which have no Node.
func (a *Agent) Snapshots(ctx context.Context, q tartarus.SnapshotQuery) ([]tartarus.Snapshot, error) {
	f := snapshot.Filter{ID: q.ID, Tenant: q.Tenant, Kind: snapshot.Named, Sandbox: q.SandboxID, Name: q.Name}
	out := []tartarus.Snapshot{}
	here := map[string]bool{}
	for _, m := range a.snapshots.List(f) {
		here[m.ID] = true
		out = append(out, describe(m, a.snapshots.Progress(m.ID), a.cfg.Name))
	}
	if q.ID != "" && len(out) > 0 {
		return out, nil
	}
	copies, err := a.snapshots.Copies(ctx, snapshot.Named)
	if err != nil {
		// What is here can be used without the object store.
		a.log.Warn("object store not asked for snapshots", "error", err)
	}
	for _, m := range copies {
		if !here[m.ID] && f.Matches(m.Meta) {
			out = append(out, describe(m, snapshot.Progress{State: snapshot.StateCopied}, ""))
		}
	}
	return out, nil
}

// RemoveSnapshot removes a snapshot from this node and from the object store. Sandboxes that were made from it live on.
func (a *Agent) RemoveSnapshot(ctx context.Context, id string) error {
	return a.snapshots.Remove(ctx, id)
}

// VerifySnapshot reads all of a snapshot and compares it with its digests.
func (a *Agent) VerifySnapshot(ctx context.Context, id string) (tartarus.Snapshot, error) {
	m, err := a.snapshots.Verify(ctx, id)
	if err != nil {
		return tartarus.Snapshot{}, err
	}
	return describe(m, a.snapshots.Progress(id), a.cfg.Name), nil
}

// describe is a manifest in the words that all parts share. node is where it is; empty when only the object store has it.
func describe(m snapshot.Manifest, p snapshot.Progress, node string) tartarus.Snapshot {
	return tartarus.Snapshot{
		ID: m.ID, Tenant: m.Tenant, SandboxID: m.Sandbox, Names: m.Names, Node: node, Copied: node == "" || p.State == snapshot.StateCopied,
		TemplateID: m.Base.TemplateID, BuildID: m.Base.BuildID, Template: m.Template, Runtime: m.Runtime, Version: m.Version, CPU: m.CPU,
		Disk: m.Disk, Resources: m.Limits, Size: m.Size(), Stored: m.Stored, CreatedAt: m.Created,
		Progress: tartarus.CopyProgress{State: p.State, Done: p.Done, Total: p.Total, Error: p.Error},
	}
}

// save writes a sandbox's machine into a snapshot. m says what kind; who and what is filled in.
func (a *Agent) save(ctx context.Context, h *held, m snapshot.Meta) (snapshot.Snapshot, error) {
	h.mu.Lock()
	machine, sb := h.machine, h.sb
	h.mu.Unlock()
	template, err := a.cfg.Templates.Template(ctx, sb.TemplateID, sb.BuildID)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	m.Tenant, m.Sandbox, m.Template, m.Limits, m.CPU = sb.Tenant, sb.ID, sb.Template, sb.Resources, hostCPU()
	m.Runtime, m.Version = sb.Driver, a.support[sb.Driver].Version
	m.Base = snapshot.BaseImage{TemplateID: sb.TemplateID, BuildID: sb.BuildID, Digest: template.Digest}
	snap, err := a.create(ctx, h, m, func(dir string) error {
		if !m.Disk {
			return machine.Snapshot(ctx, dir)
		}
		disk, ok := machine.(vmm.DiskMachine)
		if !ok {
			return tartarus.Errorf(tartarus.Unsupported, "runtime %s keeps no disks without their memory", sb.Driver)
		}
		return disk.SnapshotDisk(ctx, dir)
	})
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	if m.Kind == snapshot.Named { // a paused sandbox holds the image itself
		if err := hold(template, snap.HoldPath()); err != nil {
			return snapshot.Snapshot{}, errors.Join(err, a.discard(ctx, snap.ID))
		}
	}
	return snap, nil
}

// discard removes a snapshot that nobody speaks of any more.
func (a *Agent) discard(ctx context.Context, id string) error {
	if err := a.snapshots.Remove(ctx, id); err != nil && !tartarus.Is(err, tartarus.NotFound) {
		return err
	}
	return nil
}

// fromSnapshot makes a machine from a snapshot: as it was, or booted when only its disk was kept or is wanted. One that is damaged here is replaced by its copy,
// where there is one.
func (a *Agent) fromSnapshot(ctx context.Context, d vmm.Driver, c vmm.Config, id string, reboot bool) (m vmm.Machine, booted bool, err error) {
	m, booted, err = a.tryFrom(ctx, d, c, id, reboot)
	if tartarus.Is(err, tartarus.Corrupt) && a.snapshots.Mend(ctx, id) == nil {
		m, booted, err = a.tryFrom(ctx, d, c, id, reboot)
	}
	if err != nil {
		return nil, false, fmt.Errorf("snapshot %s: %w", id, err)
	}
	return m, booted, nil
}

func (a *Agent) tryFrom(ctx context.Context, d vmm.Driver, c vmm.Config, id string, reboot bool) (m vmm.Machine, booted bool, err error) {
	var elsewhere []string
	if lazy, ok := d.(vmm.Lazy); ok && !reboot {
		elsewhere = lazy.Elsewhere()
	}
	snap, release, err := a.snapshots.GetWithout(ctx, id, elsewhere)
	if tartarus.Is(err, tartarus.NotFound) {
		return nil, false, tartarus.Errorf(tartarus.Corrupt, "it is gone from this node, and there is no copy of it")
	}
	if err != nil {
		return nil, false, err
	}
	defer release()
	dir := snap.Dir()
	if snap.Parent != "" {
		merged, drop, err := a.merged(ctx, d, id)
		if err != nil {
			return nil, false, err
		}
		defer drop()
		dir = merged
	}
	if !snap.Disk && !reboot {
		m, err = d.Restore(ctx, c, dir)
		return m, false, err
	}
	disks, ok := d.(vmm.DiskDriver)
	if !ok {
		return nil, false, tartarus.Errorf(tartarus.Unsupported, "runtime %s cannot boot from a disk that was kept", d.Name())
	}
	if snap.Disk {
		m, err = disks.BootDisk(ctx, c, dir)
		return m, true, err
	}
	m, err = a.reboot(ctx, disks, c, id, dir)
	return m, true, err
}

// reboot boots from the disk of the whole snapshot in dir.
func (a *Agent) reboot(ctx context.Context, d vmm.DiskDriver, c vmm.Config, id, dir string) (m vmm.Machine, err error) {
	if err := os.MkdirAll(a.extractDir(), 0o700); err != nil {
		return nil, err
	}
	disk, err := os.MkdirTemp(a.extractDir(), id+"-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if rmErr := os.RemoveAll(disk); rmErr != nil {
			a.log.Warn("extracted disk not removed", "snapshot", id, "error", rmErr) // the next start does
		}
	}()
	if err := d.ExtractDisk(ctx, c, dir, disk); err != nil {
		return nil, err
	}
	return d.BootDisk(ctx, c, disk)
}

// extractDir is for disks on their way out of whole snapshots. What a killed agent left there is removed by the next.
func (a *Agent) extractDir() string { return filepath.Join(a.cfg.Dir, "extract") }

// sweepSaved removes snapshots of paused sandboxes that no record speaks of (an agent died while it wrote them, or just after a resume), and
// holds on images of sandboxes that are gone.
func (a *Agent) sweepSaved(ctx context.Context) error {
	wanted, ids := map[string]bool{}, map[string]bool{}
	for _, h := range a.all() {
		h.mu.Lock()
		wanted[h.saved], ids[h.spec.ID] = true, true
		if h.base != nil {
			wanted[h.base.id] = true
		}
		h.mu.Unlock()
	}
	err := errors.Join(a.snapshots.Keep(ctx, snapshot.Sandbox, wanted), os.RemoveAll(a.extractDir()))
	held, readErr := os.ReadDir(a.holdDir())
	if readErr != nil && !errors.Is(readErr, fs.ErrNotExist) {
		return errors.Join(err, readErr)
	}
	for _, e := range held {
		if !ids[e.Name()] {
			err = errors.Join(err, os.Remove(filepath.Join(a.holdDir(), e.Name())))
		}
	}
	return err
}

func (a *Agent) holdDir() string { return filepath.Join(a.cfg.Dir, "images") }

// imageHold is the name by which a sandbox keeps the version of its template, which it needs when it comes back.
func (a *Agent) imageHold(id string) string { return filepath.Join(a.holdDir(), id) }

// holdImage keeps the version of a sandbox's template for as long as the sandbox lives.
func (a *Agent) holdImage(id string, t Template) error {
	err := hold(t, a.imageHold(id))
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(a.holdDir(), 0o700); err != nil {
			return err
		}
		err = hold(t, a.imageHold(id))
	}
	return err
}

// hold gives an image a second name: as long as it has one, its version of the template stays, whatever becomes of its tags. Where the two would be on
// different file systems there is none: that is a stack for one caller, whose sandboxes end with it.
func hold(t Template, path string) error {
	err := os.Link(t.RootFS, path)
	if errors.Is(err, syscall.EXDEV) || errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("hold version %s of template %s: %w", t.Build, t.ID, err)
	}
	return nil
}

// hostCPU is the model of this host's processor, as a manifest names it.
var hostCPU = sync.OnceValue(cpuModel)
