package hecatoncheir

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
	"github.com/tartarus-sandbox/tartarus/internal/thanatos"
)

// Terminate ends a sandbox by the ladder of package thanatos, and returns when it is gone. Where a termination is under way already, the two become
// one. When ctx ends first, the termination goes on. One that is cancelled meanwhile is tartarus.Conflict; an ended sandbox is tartarus.NotFound.
func (a *Agent) Terminate(ctx context.Context, id string, t tartarus.Termination) error {
	h, err := a.find(id)
	if err != nil {
		return err
	}
	if sb := h.sandbox(); t.Checkpoint && sb.Phase != tartarus.Running {
		return tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s: only one that runs can be kept as a snapshot", id, sb.Phase)
	}
	under, err := a.terminate(ctx, h, t)
	if err != nil {
		return err
	}
	return under.Wait(ctx)
}

// CancelTermination lets a sandbox live on whose termination has not come to the kill. One whose time was up gets that time once more. With no
// termination pending, or too late, it is tartarus.Conflict.
func (a *Agent) CancelTermination(ctx context.Context, id string) (tartarus.Sandbox, error) {
	h, err := a.find(id)
	if err != nil {
		return tartarus.Sandbox{}, err
	}
	t := h.pending()
	if t == nil {
		return h.sandbox(), tartarus.Errorf(tartarus.Conflict, "no termination of sandbox %s is pending", id)
	}
	if err := t.Cancel(time.Now()); err != nil {
		return h.sandbox(), err
	}
	a.count.Cancelled()
	select {
	case <-t.Done():
		return h.sandbox(), nil
	case <-ctx.Done():
		return h.sandbox(), ctx.Err()
	}
}

// pending returns the termination that is under way, if any.
func (h *held) pending() *thanatos.Termination {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ending == nil {
		return nil
	}
	select {
	case <-h.ending.Done():
		return nil
	default:
		return h.ending
	}
}

// terminate begins the termination of a sandbox, or joins the one that is under way.
func (a *Agent) terminate(ctx context.Context, h *held, t tartarus.Termination) (*thanatos.Termination, error) {
	life := h.spec.Lifecycle
	said := cmp.Or(t.Grace, life.Grace)
	if said == nil {
		said = a.templateGrace(ctx, h)
	}
	order := thanatos.Order{
		Reason: t.Reason, Message: t.Message, Grace: a.cfg.Ends.Grace(t.Reason, said),
		Checkpoint: t.Checkpoint || life.Checkpoint,
		ExportLogs: t.ExportLogs || life.ExportLogs,
	}
	if life.MaxGrace != nil {
		order.Grace = min(order.Grace, *life.MaxGrace)
	}
	if h.sandbox().Phase != tartarus.Running {
		order.Grace, order.Checkpoint = 0, false // there is no guest to tell, and nothing that changes
	}
	return a.descend(ctx, h, order)
}

// descend sends a sandbox down the ladder.
func (a *Agent) descend(ctx context.Context, h *held, order thanatos.Order) (*thanatos.Termination, error) {
	if t := h.pending(); t != nil {
		t.Again(order, time.Now())
		return t, nil
	}
	a.mu.Lock()
	if a.going {
		a.mu.Unlock()
		return nil, tartarus.Errorf(tartarus.Unavailable, "the node is going")
	}
	h.mu.Lock()
	if h.ending != nil {
		select {
		case <-h.ending.Done(): // an earlier one was cancelled, or could not remove it
		default: // somebody was quicker
			defer a.mu.Unlock()
			defer h.mu.Unlock()
			h.ending.Again(order, time.Now())
			return h.ending, nil
		}
	}
	t := thanatos.Begin(order, time.Now())
	h.ending = t
	a.endings.Add(1)
	h.mu.Unlock()
	a.mu.Unlock()
	go func() {
		defer a.endings.Done()
		t.Run(ctx, subject{a, h}, a.leaving)
	}()
	return t, nil
}

// subject is a sandbox on the ladder.
type subject struct {
	a *Agent
	h *held
}

// Cordon implements thanatos.Subject. An end without grace leaves nothing to record before it has happened.
func (s subject) Cordon(ctx context.Context, e *tartarus.Ending) error {
	if !e.Until.After(e.Since) && !e.Checkpoint {
		return nil
	}
	e.Rung = string(thanatos.Keep)
	if e.Until.After(e.Since) {
		e.Rung = string(thanatos.Tell) // where it stands from now on
	}
	return s.record(ctx, e)
}

// record notes how far the termination is, for clients, the edge, and an agent that follows.
func (s subject) record(ctx context.Context, e *tartarus.Ending) error {
	_, _ = s.h.change(func(sb *tartarus.Sandbox) error { sb.Ending = e; return nil })
	err := s.a.journal(ctx, s.h)
	s.a.told(ctx, s.h)
	s.a.rewind()
	return err
}

// Tell implements thanatos.Subject.
func (s subject) Tell(ctx context.Context, o thanatos.Order, until time.Time) (told thanatos.Told, err error) {
	s.h.mu.Lock()
	guest, machine := s.h.guest, s.h.machine
	s.h.mu.Unlock()
	if guest == nil || machine == nil {
		return told, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // a machine that ends cannot say so over its network
		if exit, err := machine.Wait(ctx); err == nil {
			cancel(fmt.Errorf("the machine ended: %s", exit.Message))
		}
	}()
	out, err := ask(ctx, guest, o, until)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			return told, cause
		}
		return told, err
	}
	if !o.Checkpoint {
		told.Alive = len(out.Alive)
	}
	for _, hook := range out.Hooks {
		if hook.Error != "" {
			told.Notes = append(told.Notes, fmt.Sprintf("hook %.64s: %.200s", hook.Name, hook.Error))
		}
	}
	return told, nil
}

// ask puts the question to the guest. An agent that died with one under way is followed by one that asks again, while the guest may not have noticed.
func ask(ctx context.Context, guest *guestclient.Client, o thanatos.Order, until time.Time) (out guestclient.Terminated, err error) {
	for {
		left := time.Until(until)
		left -= min(left/10, answerMargin)
		out, err = guest.Terminate(ctx, guestclient.Terminate{GraceMs: max(0, left.Milliseconds()), Reason: string(o.Reason), HooksOnly: o.Checkpoint})
		switch {
		case tartarus.Is(err, tartarus.NotFound) && !o.Checkpoint: // the template's agent is older than this
			out.Alive, err = guest.Shutdown(ctx, left)
			return out, err
		case !tartarus.Is(err, tartarus.Conflict) || ctx.Err() != nil || left < answerMargin:
			return out, err
		}
		pause(ctx, answerMargin/4)
	}
}

// answerMargin is how much earlier than its time is up the guest answers, so that the answer is not missed.
const answerMargin = 200 * time.Millisecond

// Keep implements thanatos.Subject.
func (s subject) Keep(ctx context.Context, o thanatos.Order) (snapshot string, err error) {
	if o.Checkpoint {
		if snapshot, err = s.a.checkpoint(ctx, s.h); err != nil {
			return "", err
		}
	}
	if err := s.a.keepLogs(ctx, s.h); err != nil {
		if o.ExportLogs {
			return snapshot, fmt.Errorf("export the log: %w", err)
		}
		s.a.log.Debug("last log not kept", "sandbox", s.h.spec.ID, "error", err)
	}
	return snapshot, nil
}

// Kill implements thanatos.Subject. Where there is more to say than that it ended, the control plane has it before anybody is answered.
func (s subject) Kill(ctx context.Context, e *tartarus.Ending) error {
	telling := e.Until.After(e.Since) || len(e.Notes) > 0 || e.Checkpoint || e.ExportLogs
	if telling {
		_, _ = s.h.change(func(sb *tartarus.Sandbox) error { sb.Ending = e; return nil })
	}
	err := s.a.end(ctx, s.h, tartarus.Stopped, e.Reason, e.Message)
	if err == nil && telling {
		s.a.told(ctx, s.h)
	}
	return err
}

// Report implements thanatos.Subject.
func (s subject) Report(ctx context.Context, e *tartarus.Ending, err error) {
	log := s.a.log.With("sandbox", s.h.spec.ID, "tenant", s.h.spec.Tenant, "reason", e.Reason, "took", time.Since(e.Since).Round(time.Millisecond))
	if err != nil {
		log.Error("sandbox not removed, will be tried again", "notes", e.Notes, "error", err)
		return
	}
	if len(e.Notes) > 0 || e.Killed > 0 {
		log.Warn("sandbox did not end in good order", "killed", e.Killed, "notes", e.Notes)
	}
}

// Uncordon implements thanatos.Subject.
func (s subject) Uncordon(ctx context.Context, cause error) error {
	now := time.Now()
	_, err := s.h.change(func(sb *tartarus.Sandbox) error {
		sb.Ending = nil
		if !sb.Deadline.IsZero() && !sb.Deadline.After(now) {
			sb.Deadline = now.Add(sb.Timeout)
		}
		return nil
	})
	s.a.log.Info("termination cancelled", "sandbox", s.h.spec.ID, "tenant", s.h.spec.Tenant, "cause", cause)
	err = errors.Join(err, s.a.journal(ctx, s.h))
	s.a.told(ctx, s.h)
	s.a.rewind()
	return err
}

// templateGrace is what the sandbox's template says of graces. A template that is gone says nothing.
func (a *Agent) templateGrace(ctx context.Context, h *held) *time.Duration {
	t, err := a.cfg.Templates.Template(ctx, h.spec.TemplateID, h.spec.BuildID)
	if err != nil {
		return nil
	}
	return t.Grace
}

// checkpoint keeps a snapshot of a sandbox that is about to end, and names it.
func (a *Agent) checkpoint(ctx context.Context, h *held) (string, error) {
	snap, err := a.Snapshot(ctx, h.spec.ID, tartarus.SnapshotHow{})
	return snap.ID, err
}

// carryOn takes up a termination that an earlier agent had begun.
func (a *Agent) carryOn(ctx context.Context, h *held, e *tartarus.Ending) error {
	_, err := a.descend(ctx, h, thanatos.Order{
		Reason: e.Reason, Message: e.Message, Grace: time.Until(e.Until), Checkpoint: e.Checkpoint, ExportLogs: e.ExportLogs,
	})
	return err
}
