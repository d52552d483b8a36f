package olympustest

import (
	"context"
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
)

// Snapshot implements olympus.Snapshotter.
func (n *Node) Snapshot(_ context.Context, id string, how tartarus.SnapshotHow) (tartarus.Snapshot, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	sb, ok := n.held[id]
	if !ok {
		return tartarus.Snapshot{}, tartarus.Errorf(tartarus.NotFound, "sandbox %s is not on this node", id)
	}
	if sb.Phase != tartarus.Running {
		return tartarus.Snapshot{}, tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s", id, sb.Phase)
	}
	for i := range n.snaps { // a name means the newest
		n.snaps[i].Names = slices.DeleteFunc(slices.Clone(n.snaps[i].Names), func(name string) bool { return slices.Contains(how.Names, name) })
	}
	s := kept{Snapshot: tartarus.Snapshot{
		ID: tartarus.NewTemplateID(), Tenant: sb.Tenant, SandboxID: id, Names: how.Names, Node: n.Self.Name, TemplateID: sb.TemplateID, BuildID: sb.BuildID,
		Runtime: "fake", Disk: how.Disk, Resources: sb.Resources, CreatedAt: time.Now(),
	}, scratch: how.Scratch}
	n.snaps = append(n.snaps, s)
	return s.Snapshot, nil
}

// kept is a snapshot that the node has.
type kept struct {
	tartarus.Snapshot
	scratch bool
}

// Snapshots implements olympus.Snapshotter.
func (n *Node) Snapshots(_ context.Context, q tartarus.SnapshotQuery) ([]tartarus.Snapshot, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []tartarus.Snapshot
	f := snapshot.Filter{ID: q.ID, Tenant: q.Tenant, Sandbox: q.SandboxID, Name: q.Name}
	for _, s := range n.snaps {
		if !s.scratch && f.Matches(snapshot.Meta{ID: s.ID, Tenant: s.Tenant, Sandbox: s.SandboxID, Names: s.Names}) {
			out = append(out, s.Snapshot)
		}
	}
	return out, nil
}

// RemoveSnapshot implements olympus.Snapshotter.
func (n *Node) RemoveSnapshot(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := len(n.snaps)
	n.snaps = slices.DeleteFunc(n.snaps, func(s kept) bool { return s.ID == id })
	if len(n.snaps) == before {
		return tartarus.Errorf(tartarus.NotFound, "snapshot %s not found", id)
	}
	return nil
}

// VerifySnapshot implements olympus.Snapshotter.
func (n *Node) VerifySnapshot(_ context.Context, id string) (tartarus.Snapshot, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.snaps {
		if s.ID == id {
			return s.Snapshot, nil
		}
	}
	return tartarus.Snapshot{}, tartarus.Errorf(tartarus.NotFound, "snapshot %s not found", id)
}

// has reports whether a sandbox can be made from this snapshot here.
func (n *Node) has(id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.ContainsFunc(n.snaps, func(s kept) bool { return s.ID == id }) {
		return nil
	}
	return tartarus.Errorf(tartarus.Corrupt, "snapshot %s is gone from this node", id)
}

// Kept counts the snapshots that the node has, those for clones made at once included.
func (n *Node) Kept() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.snaps)
}
