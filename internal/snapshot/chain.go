package snapshot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/tartarus-sandbox/tartarus"
)

// A chain is a whole snapshot and others, each of which holds only the changes to the one before. A snapshot stays, though removed, for as long as another builds
// on it. Nothing but chains of one leaves the node: what is copied is made whole before.

// mostChain bounds a chain that is read. Who makes them bounds them far below.
const mostChain = 64

// Layer is one snapshot of a chain.
type Layer struct {
	ID  string
	Dir string // of the runtime's files
}

// holdParents has each snapshot that was found hold the one that it builds on. One whose parent is missing is damaged, and says so when it is opened.
func (s *Store) holdParents() {
	for id, e := range s.known {
		if e.snap.Parent == "" {
			continue
		}
		if p, ok := s.known[e.snap.Parent]; ok {
			p.users++
		} else {
			s.log.Error("snapshot has lost what it builds on", "snapshot", id, "parent", e.snap.Parent)
		}
	}
}

// parentOf finds the snapshot that m, which is to be placed, builds on; nil where it builds on none. The lock is held.
func (s *Store) parentOf(m Manifest) (*entry, error) {
	if m.Parent == "" {
		return nil, nil
	}
	p, ok := s.known[m.Parent]
	if !ok || m.Parent == m.ID {
		return nil, tartarus.Errorf(tartarus.Conflict, "snapshot %s builds on %.40q, which is not on this node", m.ID, m.Parent)
	}
	return p, nil
}

// letGoOf takes back one hold on a snapshot that another built on.
func (s *Store) letGoOf(parent string) {
	if parent == "" {
		return
	}
	s.mu.Lock()
	p, ok := s.known[parent]
	s.mu.Unlock()
	if ok {
		s.release(parent, p)
	}
}

// Layers is how many snapshots one consists of: 1 for one that is whole, 0 for one that is not here.
func (s *Store) Layers(id string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e, ok := s.known[id]; ok && n < mostChain; e, ok = s.known[e.snap.Parent] {
		n++
	}
	return n
}

// Chain holds a snapshot and all that it builds on, the whole one first. The release must be called once. One that lacks something is tartarus.Corrupt.
func (s *Store) Chain(id string) ([]Layer, func(), error) {
	snap, release, err := s.Hold(id)
	if err != nil {
		return nil, nil, err
	}
	chain := []Layer{{snap.ID, snap.Dir()}}
	for snap.Parent != "" {
		if len(chain) == mostChain {
			err = tartarus.Errorf(tartarus.Corrupt, "snapshot %s builds on more than %d others", id, mostChain)
		} else if snap, err = s.look(snap.Parent); tartarus.Is(err, tartarus.NotFound) { // held by the one that builds on it
			err = tartarus.Errorf(tartarus.Corrupt, "snapshot %s has lost a layer: %w", id, err)
		}
		if err != nil {
			release()
			return nil, nil, err
		}
		chain = append(chain, Layer{snap.ID, snap.Dir()})
	}
	slices.Reverse(chain)
	return chain, release, nil
}

// Flatten makes a snapshot that holds changes only a whole one, which takes its place under the same id, and lets go of what it built on. It does nothing
// for one that is whole. While somebody reads it, it is tartarus.Unavailable.
func (s *Store) Flatten(ctx context.Context, id string) error {
	s.mu.Lock()
	e, ok := s.known[id]
	s.mu.Unlock()
	if !ok {
		return tartarus.Errorf(tartarus.NotFound, "snapshot %.40q is not on this node", id)
	}
	e.merging.Lock()
	defer e.merging.Unlock()
	chain, release, err := s.Chain(id)
	if err != nil {
		return err
	}
	if len(chain) == 1 {
		release()
		return nil
	}
	if s.cfg.Merge == nil {
		release()
		return tartarus.Errorf(tartarus.Unsupported, "snapshot %s holds changes only, and nobody here can merge them", id)
	}
	s.mu.Lock()
	m := e.snap.Manifest
	s.mu.Unlock()
	tmp, err := os.MkdirTemp(s.tmp(), id+"-")
	if err != nil {
		release()
		return fmt.Errorf("make snapshot %s whole: %w", id, err)
	}
	defer func() { _ = os.RemoveAll(tmp) }() // what stays goes with the next start
	fresh := filepath.Join(tmp, "new")
	m, err = s.mergeInto(ctx, m, chain, fresh)
	release()
	if err == nil {
		err = s.exchange(e, m, fresh, filepath.Join(tmp, "old"))
	}
	if err != nil {
		return fmt.Errorf("make snapshot %s whole: %w", id, err)
	}
	return nil
}

// mergeInto makes the folder of a whole snapshot.
func (s *Store) mergeInto(ctx context.Context, m Manifest, chain []Layer, fresh string) (Manifest, error) {
	files := filepath.Join(fresh, "files")
	if err := os.MkdirAll(files, 0o700); err != nil {
		return m, err
	}
	if err := s.cfg.Merge(ctx, m.Runtime, chain, files); err != nil {
		return m, err
	}
	var err error
	m.Parent, m.Hashed = "", false
	if m.Files, m.Stored, err = survey(files); err != nil {
		return m, err
	}
	if err := syncFolder(ctx, files); err != nil {
		return m, err
	}
	return m, writeManifest(fresh, m)
}

// exchange puts a fresh folder in the place of a snapshot that nobody reads now.
func (s *Store) exchange(e *entry, m Manifest, fresh, old string) error {
	if !e.reading.TryLock() {
		return tartarus.Errorf(tartarus.Unavailable, "somebody reads it")
	}
	defer e.reading.Unlock()
	return s.swap(e, m, fresh, old)
}
