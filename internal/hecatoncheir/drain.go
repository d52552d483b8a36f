package hecatoncheir

import (
	"context"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/thanatos"
)

// Cordon lets the node take nothing new, or take work again. What it has is not concerned.
func (a *Agent) Cordon(on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cordoned = on
}

// Drain empties the node: it takes nothing new from now on, and every sandbox that runs is paused with keep, or ended with the reason drained. Paused
// and hibernated ones stay as they are. What could not be dealt with before the deadline runs on; the node stays cordoned.
func (a *Agent) Drain(ctx context.Context, d thanatos.Drain, keep bool, why string) thanatos.Progress {
	a.Cordon(true)
	return d.Run(ctx, a.live, func(ctx context.Context, id string) error {
		h, err := a.find(id)
		if err != nil {
			return nil // it has ended by itself
		}
		select { // a start or resume under way comes up first
		case <-h.started():
		case <-ctx.Done():
			return ctx.Err()
		}
		if keep {
			_, err = a.pauseHow(ctx, h, tartarus.PauseHow{}, tartarus.ReasonDrained, why)
		} else {
			// The guest has no more time than there is.
			t := tartarus.Termination{Reason: tartarus.ReasonDrained, Message: why}
			if left := time.Until(d.Until); left < a.cfg.Ends.Max {
				t.Grace = a.shortest(h, left)
			}
			err = a.Terminate(ctx, id, t)
		}
		if tartarus.Is(err, tartarus.NotFound) || err != nil && !h.sandbox().Phase.Live() {
			return nil // somebody was quicker
		}
		return err
	})
}

// shortest is the grace that a sandbox has in a drain, but no more than left.
func (a *Agent) shortest(h *held, left time.Duration) *time.Duration {
	d := min(a.cfg.Ends.Grace(tartarus.ReasonDrained, h.spec.Lifecycle.Grace), max(0, left))
	return &d
}

// live lists the sandboxes that have a machine, or will have one.
func (a *Agent) live() (ids []string) {
	for _, h := range a.all() {
		if h.sandbox().Phase.Live() {
			ids = append(ids, h.spec.ID)
		}
	}
	return ids
}
