package hecatoncheir

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// watch waits for a machine to end by itself. It ends with ctx, without a word.
func (a *Agent) watch(ctx context.Context, h *held) {
	exit, err := h.machine.Wait(ctx)
	if err != nil {
		return
	}
	if t := h.pending(); t != nil { // it ends because of that, unless somebody calls it off
		if err := t.Wait(ctx); ctx.Err() != nil || !tartarus.Is(err, tartarus.Conflict) {
			return
		}
	}
	// What ends while it is stopped or paused ends because of that.
	if phase := h.sandbox().Phase; phase != tartarus.Running && phase != tartarus.Snapshotting {
		return
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	a.fell(last, h, exit)
	if err := a.end(last, h, tartarus.Failed, exit.Reason, exit.Message); err != nil {
		a.log.Error("ended sandbox not cleaned up", "sandbox", h.spec.ID, "tenant", h.spec.Tenant, "error", err)
	}
}

// end takes a sandbox off the host at once and records why: the last rung of a termination, and all there is to do for one that has ended by itself.
// It returns when nothing is left of it. Of several calls at once the first gives the reason and all wait. A sandbox that cannot be removed stays in the journal as stopping; the janitor tries again.
func (a *Agent) end(ctx context.Context, h *held, phase tartarus.Phase, reason tartarus.Reason, message string) error {
	began := time.Now()
	h.mu.Lock()
	first := h.sb.Phase != tartarus.Stopping && !h.sb.Phase.Ended()
	if first {
		h.sb.Phase, h.sb.Reason, h.sb.Message, h.outcome = tartarus.Stopping, reason, message, phase
	}
	h.cancel() // a start under way stops here, a watch is no longer needed
	up := h.up
	h.mu.Unlock()

	select {
	case <-up:
	case <-ctx.Done():
		return fmt.Errorf("stop sandbox %s: %w", h.spec.ID, ctx.Err())
	}
	if err := a.cleanUp(ctx, h); err != nil {
		return errors.Join(err, a.journal(context.WithoutCancel(ctx), h))
	}
	sb, err := h.change(func(sb *tartarus.Sandbox) error {
		sb.EndedAt, sb.CPU = time.Now(), h.samples.cpu()
		return sb.Transition(h.outcome, "", "")
	})
	if err == nil { // whoever was the one that removed it says so
		a.tell(h)
		if sb.Ending != nil {
			began = sb.Ending.Since
		}
		a.count.Ended(sb.Reason, time.Since(began))
		a.log.Info("sandbox ended", "sandbox", sb.ID, "tenant", sb.Tenant, "phase", sb.Phase, "reason", sb.Reason)
	}
	return nil
}

// cleanUp removes all that a sandbox has on the host: the machine, the slot, then the journal record that led to them. It
// may be called again after it failed, and does nothing once it has worked.
func (a *Agent) cleanUp(ctx context.Context, h *held) error {
	h.cleaning.Lock()
	defer h.cleaning.Unlock()
	select {
	case <-h.gone:
		return nil
	default:
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	h.conns.breakAll()
	h.mu.Lock()
	machine, slot, saved := h.machine, h.slot, h.saved
	h.mu.Unlock()

	var err error
	if machine != nil {
		err = machine.Stop(ctx)
	}
	if err == nil && slot != nil {
		err = a.cfg.Slots.Release(ctx, slot)
	}
	if err == nil {
		err = a.cfg.Journal.Delete(ctx, h.spec.ID)
	}
	if err == nil {
		err = os.RemoveAll(a.imageHold(h.spec.ID))
	}
	if err == nil && saved != "" {
		err = a.discard(ctx, saved)
	}
	if err == nil {
		err = a.dropBase(ctx, h)
	}
	if err != nil {
		return fmt.Errorf("remove sandbox %s: %w", h.spec.ID, err)
	}
	a.forget(h)
	return nil
}

// deadlines ends what has run out of time and what an earlier attempt could not remove. One scan serves all sandboxes: a thousand of them cost
// microseconds, and there is no timer to lose.
func (a *Agent) deadlines(ctx context.Context) error {
	for {
		a.looksAt.Store(math.MaxInt64) // whoever sets a deadline during the scan calls for another one
		now := time.Now()
		next := a.endDue(ctx, now)
		a.looksAt.Store(now.Add(next).UnixNano())
		select {
		case <-ctx.Done():
			return nil
		case <-a.rewound:
		case <-time.After(next):
		}
	}
}

// longestNap bounds how late an overlooked change of a deadline, or a failed removal, is noticed.
const longestNap = 10 * time.Second

// endDue starts the end of all sandboxes whose time is up at now, and returns how long until the next.
func (a *Agent) endDue(ctx context.Context, now time.Time) time.Duration {
	next := longestNap
	for _, h := range a.all() {
		sb := h.sandbox()
		switch {
		case h.pending() != nil:
		case sb.Phase == tartarus.Stopping:
			go a.expire(ctx, h, tartarus.Termination{Reason: sb.Reason, Message: sb.Message, Grace: new(time.Duration)})
		case sb.Hibernated() && sb.Lifecycle.PauseOnTimeout && !sb.Deadline.After(now):
			go func() { _, _ = a.stayAsleep(context.WithoutCancel(ctx), h) }() // Conflict: it has just woken
		case sb.Phase != tartarus.Running && !sb.Hibernated() || sb.Deadline.IsZero():
		case !sb.Deadline.After(now) && sb.Lifecycle.PauseOnTimeout:
			go a.dozeOff(ctx, h)
		case !sb.Deadline.After(now):
			go a.expire(ctx, h, tartarus.Termination{Reason: tartarus.ReasonTimeout, Message: "its time was up"})
		default:
			next = min(next, sb.Deadline.Sub(now))
		}
	}
	return next
}

// expire begins the end of a sandbox that nobody waits for.
func (a *Agent) expire(ctx context.Context, h *held, t tartarus.Termination) {
	if _, err := a.terminate(ctx, h, t); err != nil && !tartarus.Is(err, tartarus.Unavailable) {
		a.log.Error("sandbox not ended", "sandbox", h.spec.ID, "tenant", h.spec.Tenant, "error", err)
	}
}

// dozeOff pauses a sandbox that asked for that when its time is up. One that cannot be paused runs on, because what it holds would be lost, and
// is tried again.
func (a *Agent) dozeOff(ctx context.Context, h *held) {
	if _, err := a.pauseFor(ctx, h, false, "", ""); err != nil && !tartarus.Is(err, tartarus.Conflict) {
		a.log.Error("sandbox not paused at its timeout", "sandbox", h.spec.ID, "tenant", h.spec.Tenant, "error", err)
	}
}

// rewindFor is rewind for a sandbox that has just got its deadline: one that is later than the next look wakes nobody, so that a node which
// starts thousands does not scan all of them for each.
func (a *Agent) rewindFor(deadline time.Time) {
	if !deadline.IsZero() && deadline.UnixNano() < a.looksAt.Load() {
		a.rewind()
	}
}

// rewind lets the clock look at the deadlines again.
func (a *Agent) rewind() {
	select {
	case a.rewound <- struct{}{}:
	default:
	}
}
