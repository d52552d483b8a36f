package hecatoncheir

import (
	"context"
	"maps"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// maxBackoff is the longest wait between attempts to reach a control plane that is away.
const maxBackoff = 5 * time.Second

// tell notes that the control plane should learn how a sandbox stands. What it is told is the state at the moment of the report, so that
// of two changes at once the older one never has the last word, and the backlog is bounded by the number of sandboxes.
func (a *Agent) tell(h *held) {
	a.mu.Lock()
	a.dirty[h.spec.ID] = h
	a.mu.Unlock()
	select {
	case a.wakeup <- struct{}{}:
	default:
	}
}

// told is tell for a change that somebody asked for and will look at next: it returns once the control plane has the change, or
// after toldTime, when the report goes on by itself.
func (a *Agent) told(ctx context.Context, h *held) {
	a.tell(h)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), toldTime)
	defer cancel()
	a.flush(ctx)
}

// reports delivers what tell noted, with backoff while the control plane is away.
func (a *Agent) reports(ctx context.Context) error {
	wait := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wakeup:
		}
		if a.flush(ctx) {
			wait = 0
			continue
		}
		wait = min(max(2*wait, 100*time.Millisecond), maxBackoff)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		select {
		case a.wakeup <- struct{}{}:
		default:
		}
	}
}

// flush delivers all that is noted and reports whether nothing is left. One at a time: an older state must not follow a newer one.
func (a *Agent) flush(ctx context.Context) bool {
	select {
	case a.flushing <- struct{}{}:
		defer func() { <-a.flushing }()
	case <-ctx.Done():
		return false
	}
	a.mu.Lock()
	batch := a.dirty
	a.dirty = make(map[string]*held, len(batch))
	a.mu.Unlock()
	if len(batch) == 0 {
		return true
	}
	list := make([]tartarus.Sandbox, 0, len(batch))
	for _, h := range batch {
		list = append(list, h.sandbox())
	}
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	err := a.cfg.Control.Report(ctx, list...)
	if err == nil {
		return true
	}
	a.log.Warn("report not delivered", "sandboxes", len(list), "error", err)
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.Copy(a.dirty, batch)
	return false
}
