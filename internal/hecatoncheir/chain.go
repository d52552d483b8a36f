package hecatoncheir

import (
	"context"
	"os"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// Pauses of what was resumed. A machine that was restored knows which of its pages changed since, where its driver tracks that: the next pause
// writes these only, on top of the snapshot that the machine came from, which is kept until then. A resume merges such a chain into one memory, beside the chain; a
// sandbox that stays asleep has its chain made whole in the background, so that its resume need not.

// mostLayers bounds a chain. Each layer costs a resume that comes too soon a read of what it holds; a whole snapshot is taken where there would be more.
const mostLayers = 8

// base is a snapshot that a machine was restored from. It is held: nothing of it goes or moves.
type base struct {
	id      string
	dir     string
	release func()
}

// keepBase decides whether the snapshot that a sandbox came back from is kept for its next pause.
func (a *Agent) keepBase(h *held, saved string) *base {
	h.mu.Lock()
	m := h.machine
	h.mu.Unlock()
	differ, ok := m.(vmm.Differ)
	if !ok || saved == "" {
		return nil
	}
	b := a.holdBase(saved)
	if b != nil && differ.CanDiff(b.dir) != nil {
		b.release()
		return nil
	}
	return b
}

// holdBase holds a snapshot of this node's; nil when it is not here.
func (a *Agent) holdBase(id string) *base {
	snap, release, err := a.snapshots.Hold(id)
	if err != nil {
		return nil
	}
	return &base{id, snap.Dir(), release}
}

// dropBase gives up what a machine was restored from. It stays on disk only for what builds on it.
func (a *Agent) dropBase(ctx context.Context, h *held) error {
	h.mu.Lock()
	b := h.base
	h.base = nil
	h.mu.Unlock()
	if b == nil {
		return nil
	}
	b.release()
	return a.discard(ctx, b.id)
}

// changes returns how to write only what changed since the base; nil where that cannot be, and the snapshot has to be a whole one.
func (a *Agent) changes(h *held, m *snapshot.Meta) func(ctx context.Context, dir string) error {
	h.mu.Lock()
	b, machine := h.base, h.machine
	h.mu.Unlock()
	if b == nil || m.Kind != snapshot.Sandbox || m.Disk {
		return nil
	}
	differ, ok := machine.(vmm.Differ)
	if !ok || a.snapshots.Layers(b.id) >= mostLayers {
		return nil
	}
	if err := differ.CanDiff(b.dir); err != nil { // another snapshot was taken meanwhile, most likely
		return nil
	}
	m.Parent = b.id
	return func(ctx context.Context, dir string) error { return differ.SnapshotDiff(ctx, dir, b.dir) }
}

// create writes a snapshot: the changes only where that can be, and a whole one where it cannot or does not work.
func (a *Agent) create(ctx context.Context, h *held, m snapshot.Meta, whole func(dir string) error) (snapshot.Snapshot, error) {
	few := m
	if write := a.changes(h, &few); write != nil {
		snap, err := a.snapshots.Create(ctx, few, func(dir string) error { return write(ctx, dir) })
		if err == nil || ctx.Err() != nil || tartarus.Is(err, tartarus.GuestGone) {
			return snap, err
		}
		a.log.Warn("changes not written: a whole snapshot is taken", "sandbox", m.Sandbox, "tenant", m.Tenant, "error", err)
	}
	return a.snapshots.Create(ctx, m, whole)
}

// merged makes one snapshot of a chain, beside it, for a machine to be restored from. drop removes it; the machine has what it needs of it.
func (a *Agent) merged(ctx context.Context, d vmm.Driver, id string) (dir string, drop func(), err error) {
	merger, ok := d.(vmm.Merger)
	if !ok {
		return "", nil, tartarus.Errorf(tartarus.Unsupported, "it holds changes only, and runtime %s cannot merge them", d.Name())
	}
	chain, release, err := a.snapshots.Chain(id)
	if err != nil {
		return "", nil, err
	}
	defer release()
	if err := os.MkdirAll(a.extractDir(), 0o700); err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp(a.extractDir(), id+"-"); err != nil {
		return "", nil, err
	}
	drop = func() {
		if err := os.RemoveAll(dir); err != nil {
			a.log.Warn("merged snapshot not removed", "snapshot", id, "error", err) // the next start does
		}
	}
	if err := merger.Merge(ctx, layersOf(chain), dir); err != nil {
		drop()
		return "", nil, err
	}
	return dir, drop, nil
}

func layersOf(chain []snapshot.Layer) []vmm.Layer {
	out := make([]vmm.Layer, len(chain))
	for i, l := range chain {
		out[i] = vmm.Layer{Name: "snapshot " + l.ID, Dir: l.Dir}
	}
	return out
}

// Merging is how the snapshots of these drivers are merged, for a store of them.
func Merging(drivers []vmm.Driver) func(ctx context.Context, runtime string, chain []snapshot.Layer, dir string) error {
	return func(ctx context.Context, runtime string, chain []snapshot.Layer, dir string) error {
		for _, d := range drivers {
			if merger, ok := d.(vmm.Merger); ok && d.Name() == runtime {
				return merger.Merge(ctx, layersOf(chain), dir)
			}
		}
		return tartarus.Errorf(tartarus.Unsupported, "no runtime %s that merges snapshots is here", runtime)
	}
}
