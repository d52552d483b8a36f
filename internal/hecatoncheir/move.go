package hecatoncheir

import (
	"context"
	"fmt"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Evict makes a sandbox ready to go on elsewhere: it is paused if it runs, and the object store has all of it. It stays this node's until Leave.
// Without an object store it is tartarus.Unsupported, and nothing is paused.
func (a *Agent) Evict(ctx context.Context, id string) (m tartarus.Move, err error) {
	h, err := a.find(id)
	if err != nil {
		return m, err
	}
	if !a.snapshots.HasCopies() {
		return m, tartarus.Errorf(tartarus.Unsupported, "node %s has no object store to move sandboxes through", a.cfg.Name)
	}
	m.Running = h.sandbox().Phase == tartarus.Running
	if m.Running {
		m.Timeout = time.Until(h.sandbox().Deadline)
		if _, err := a.pauseHow(ctx, h, tartarus.PauseHow{Healthy: true}, tartarus.ReasonDrained, "its node is emptied"); err != nil {
			return m, err
		}
	}
	h.mu.Lock()
	m.Sandbox, m.Snapshot = h.sb, h.saved
	h.mu.Unlock()
	if m.Sandbox.Phase != tartarus.Paused || m.Snapshot == "" {
		return m, tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s: it can be moved while it runs or is paused", id, m.Sandbox.Phase)
	}
	if err := a.snapshots.Upload(ctx, m.Snapshot); err != nil {
		return m, fmt.Errorf("move sandbox %s: %w", id, err)
	}
	return m, nil
}

// Holds reports whether a sandbox is here.
func (a *Agent) Holds(_ context.Context, id string) (bool, error) {
	_, err := a.find(id)
	if tartarus.Is(err, tartarus.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// Leave gives up a paused sandbox that lives on another node by now. What the object store has of it is the other node's.
func (a *Agent) Leave(ctx context.Context, id string) error {
	h, err := a.find(id)
	if tartarus.Is(err, tartarus.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	h.op.Lock()
	defer h.op.Unlock()
	h.mu.Lock()
	phase, saved := h.sb.Phase, h.saved
	h.mu.Unlock()
	if phase != tartarus.Paused {
		return tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s, not paused", id, phase)
	}
	if err := a.cfg.Journal.Delete(ctx, id); err != nil {
		return err
	}
	a.forget(h)
	a.log.Info("sandbox moved away", "sandbox", id, "tenant", h.spec.Tenant)
	if saved == "" {
		return nil
	}
	return a.snapshots.Leave(saved)
}

// takeIn makes a sandbox that another node has evicted one of this node's, paused. It has all of it before it says so.
func (a *Agent) takeIn(ctx context.Context, m tartarus.Move) (*held, error) {
	sb := m.Sandbox
	sb.Node, sb.Phase, sb.Saved = a.cfg.Name, tartarus.Paused, m.Snapshot
	if _, err := a.driver(sb.Driver); err != nil {
		return nil, err
	}
	_, release, err := a.snapshots.Get(ctx, m.Snapshot)
	if err != nil {
		return nil, fmt.Errorf("take sandbox %s in: %w", sb.ID, err)
	}
	release()
	h, fresh, err := a.admit(sb)
	if err != nil || !fresh {
		return h, err
	}
	h.mu.Lock()
	h.saved = m.Snapshot
	close(h.up)
	h.mu.Unlock()
	if err := a.journal(ctx, h); err != nil {
		a.forget(h)
		return nil, err
	}
	a.tell(h)
	a.log.Info("sandbox moved here", "sandbox", sb.ID, "tenant", sb.Tenant, "snapshot", m.Snapshot)
	return h, nil
}
