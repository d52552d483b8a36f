package hecatoncheir

import (
	"context"
	"maps"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// maxBackoff is the longest wait between attempts to reach a control plane that is away.
const maxBackoff = 5 * time.Second

// news is what the control plane is told at once. Sandboxes are added while an earlier one is on its way, so that all who wait for theirs share
// the next, however many they are.
type news struct {
	of   map[string]*held // by sandbox id
	over chan struct{}    // closed when it was delivered, or could not be
}

func newNews() *news { return &news{of: map[string]*held{}, over: make(chan struct{})} }

// tell notes that the control plane should learn how a sandbox stands. What it is told is the state at the moment of the report, so that
// of two changes at once the older one never has the last word, and the backlog is bounded by the number of sandboxes.
func (a *Agent) tell(h *held) {
	a.note(h)
	a.nudge()
}

func (a *Agent) note(h *held) *news {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next.of[h.spec.ID] = h
	return a.next
}

func (a *Agent) nudge() {
	select {
	case a.wakeup <- struct{}{}:
	default:
	}
}

// told is tell for a change that somebody asked for and will look at next: it returns once the control plane has the change, or
// after toldTime, when the report goes on by itself.
func (a *Agent) told(ctx context.Context, h *held) {
	a.await(ctx, a.note(h))
}

// heard waits like told for what was noted of a sandbox before and is not delivered yet.
func (a *Agent) heard(ctx context.Context, h *held) {
	a.mu.Lock()
	n := a.next
	if n.of[h.spec.ID] == nil {
		n = a.sent
	}
	known := n.of[h.spec.ID] == nil
	a.mu.Unlock()
	if !known {
		a.await(ctx, n)
	}
}

// await returns when n is over, and delivers it where nobody else is at it.
func (a *Agent) await(ctx context.Context, n *news) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), toldTime)
	defer cancel()
	select {
	case <-n.over:
		return
	case a.flushing <- struct{}{}:
	case <-ctx.Done():
		a.nudge()
		return
	}
	defer func() { <-a.flushing }()
	select {
	case <-n.over: // in between
	default:
		if !a.deliver(ctx) {
			a.nudge()
		}
	}
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
		a.nudge()
	}
}

// flush delivers all that is noted and reports whether it could.
func (a *Agent) flush(ctx context.Context) bool {
	select {
	case a.flushing <- struct{}{}:
		defer func() { <-a.flushing }()
		return a.deliver(ctx)
	case <-ctx.Done():
		return false
	}
}

// deliver delivers all that is noted and reports whether it could. The caller is in a.flushing, which holds one at a time: an older state must not
// follow a newer one.
func (a *Agent) deliver(ctx context.Context) bool {
	a.mu.Lock()
	n := a.next
	if len(n.of) == 0 {
		a.mu.Unlock()
		return true
	}
	a.next, a.sent = newNews(), n
	a.mu.Unlock()
	list := make([]tartarus.Sandbox, 0, len(n.of))
	for _, h := range n.of {
		list = append(list, h.sandbox())
	}
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	err := a.cfg.Control.Report(ctx, list...)
	if err != nil {
		a.log.Warn("report not delivered", "sandboxes", len(list), "error", err)
	}
	if err == nil {
		for _, sb := range list {
			n.of[sb.ID].reported(sb.Revision)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sent = newNews(); err != nil {
		maps.Copy(a.next.of, n.of)
	}
	close(n.over)
	return err == nil
}

// reported takes note that the registry has a newer revision than this. Should another replica have written in between, it is a newer one still, which
// the next report finds out.
func (h *held) reported(revision int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sb.Revision == revision {
		h.sb.Revision++
	}
}
