package hecatoncheir

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// carryResume does what a resume job asks.
func (a *Agent) carryResume(ctx, job context.Context, j acheron.Job, sb tartarus.Sandbox) (tartarus.Sandbox, error) {
	var r tartarus.Resume
	if err := json.Unmarshal(j.Payload, &r); err != nil {
		return sb, tartarus.Errorf(tartarus.Invalid, "decode job %s: %w", j.ID, err)
	}
	h, err := a.find(r.ID)
	if r.Move != nil && tartarus.Is(err, tartarus.NotFound) {
		h, err = a.takeIn(job, *r.Move)
	}
	if err != nil {
		return sb, err
	}
	if r.Move != nil && !r.Move.Running {
		return h.sandbox(), nil
	}
	return a.unpause(ctx, job, h, r)
}

// unpause brings a paused sandbox back to life under the time it is given. When that fails it is paused as before.
func (a *Agent) unpause(ctx, job context.Context, h *held, r tartarus.Resume) (tartarus.Sandbox, error) {
	h.op.Lock()
	defer h.op.Unlock()
	job, cancel := context.WithCancel(job)
	defer cancel()
	if sb := h.sandbox(); sb.Phase == tartarus.Paused && sb.AgentLost && !r.Reboot {
		return sb, errAgentLost(sb.ID)
	}
	began, slept := time.Now(), h.sandbox().Hibernated()
	sb, err := h.begin(cancel)
	if err != nil {
		if sb.Phase == tartarus.Running {
			return sb, nil // an earlier delivery did it
		}
		return sb, err
	}
	err = a.restore(job, h, r)
	if slept {
		a.count.Woken(time.Since(began), err)
	}
	if err == nil {
		a.settle(ctx, h)
		return h.sandbox(), nil
	}
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancelLast()
	undo := a.letGo(last, h)
	_, back := h.change(func(sb *tartarus.Sandbox) error { return sb.Transition(tartarus.Paused, "", "") })
	if back == nil {
		back = a.journal(last, h)
	}
	close(h.up)
	return h.sandbox(), errors.Join(err, undo, back)
}

// errAgentLost refuses to bring back a guest that nobody could talk to.
func errAgentLost(id string) error {
	return &tartarus.Error{
		Kind: tartarus.Conflict, Code: tartarus.CodeAgentLost,
		Message: "the guest agent of sandbox " + id + " did not answer when it was paused; bring it back from its disk alone (reboot), without its memory",
	}
}

// begin moves a paused sandbox to starting, with a new gate for those who want to end it meanwhile.
func (h *held) begin(cancel context.CancelFunc) (tartarus.Sandbox, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := h.sb
	if err := next.Transition(tartarus.Starting, "", ""); err != nil || h.sb.Phase != tartarus.Paused {
		return h.sb, tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s, not paused", h.sb.ID, h.sb.Phase)
	}
	h.sb, h.up, h.cancel = next, make(chan struct{}), cancel
	return next, nil
}

// restore does the steps of a resume in order.
func (a *Agent) restore(ctx context.Context, h *held, r tartarus.Resume) error {
	template, err := a.cfg.Templates.Template(ctx, h.spec.TemplateID, h.spec.BuildID)
	if err != nil {
		return err
	}
	driver, err := a.driver(h.sandbox().Driver)
	if err != nil {
		return err
	}
	rules, err := rulesOf(h.spec, h.sandbox().Network) // which may have been changed since it was created
	if err != nil {
		return err
	}
	done, err := a.bootTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := a.attach(ctx, h, driver, rules); err != nil {
		return err
	}
	if err := a.journal(ctx, h); err != nil {
		return err
	}
	m, booted, err := a.fromSnapshot(ctx, driver, a.machineConfig(h, template), h.saved, r.Reboot)
	if err != nil {
		return err
	}
	return a.bringAlive(ctx, h, template, m, driver, r.Timeout, booted)
}

// bringUpFrom starts a sandbox from a snapshot that another one left. The guest learns that it is somebody else before anybody can reach it.
func (a *Agent) bringUpFrom(ctx context.Context, h *held, t Template, d vmm.Driver, rules network.Rules) error {
	done, err := a.bootTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := a.attach(ctx, h, d, rules); err != nil {
		return err
	}
	if err := a.journal(ctx, h); err != nil {
		return err
	}
	m, booted, err := a.fromSnapshot(ctx, d, a.machineConfig(h, t), h.spec.SnapshotID, false)
	if err != nil {
		return err
	}
	return a.bringAlive(ctx, h, t, m, d, h.spec.Timeout, booted)
}

// bringAlive is what a first start and a resume have in common once there is a machine: the agent is told who it is, and the sandbox runs.
// A machine that was booted, not restored, is then prepared.
func (a *Agent) bringAlive(ctx context.Context, h *held, t Template, m vmm.Machine, d vmm.Driver, timeout time.Duration, booted bool) error {
	h.mu.Lock()
	h.machine = m
	h.mu.Unlock()
	if err := a.initGuest(ctx, h, t, booted); err != nil {
		return err
	}
	return a.alive(ctx, h, d, timeout)
}

// begins makes a sandbox one that runs on d since now.
func (a *Agent) begins(sb *tartarus.Sandbox, d vmm.Driver, timeout time.Duration, now time.Time) error {
	sb.Driver, sb.Tier = d.Name(), a.support[d.Name()].Tier
	if sb.StartedAt.IsZero() {
		sb.StartedAt = now
	}
	// A hibernated sandbox had its time while it slept: it may get more, not less.
	if end := now.Add(timeout); sb.Reason != tartarus.ReasonIdle || end.After(sb.Deadline) {
		sb.Deadline = end
	}
	sb.Reason, sb.Message, sb.DiskOnly, sb.AgentLost, sb.Saved = "", "", false, false, ""
	return sb.Transition(tartarus.Running, "", "")
}

// alive records that a sandbox runs.
func (a *Agent) alive(ctx context.Context, h *held, d vmm.Driver, timeout time.Duration) error {
	if err := a.mountVolumes(ctx, h); err != nil {
		return err
	}
	now, first := time.Now(), false
	if _, err := h.change(func(sb *tartarus.Sandbox) error {
		first = sb.StartedAt.IsZero()
		return a.begins(sb, d, timeout, now)
	}); err != nil {
		return err
	}
	h.mu.Lock()
	saved := h.saved
	h.mu.Unlock()
	kept := a.keepBase(h, saved)
	h.mu.Lock()
	h.saved, h.base = "", kept
	h.mu.Unlock()
	if first && a.arrive(ctx, h) {
		return nil
	}
	if first {
		a.tell(h) // on its way while the journal is written; nobody is answered before both are durable
	}
	if err := a.journal(ctx, h); err != nil {
		h.mu.Lock()
		h.saved, h.base = saved, nil // it is still the sandbox
		h.mu.Unlock()
		if kept != nil {
			kept.release()
		}
		return err
	}
	if saved != "" && kept == nil { // the journal no longer points at it
		return a.discard(ctx, saved)
	}
	return nil
}

// settle starts what accompanies a sandbox that has come up.
func (a *Agent) settle(ctx context.Context, h *held) {
	h.conns.allow()
	watch, stop := context.WithCancel(ctx)
	h.mu.Lock()
	h.cancel = stop
	close(h.up)
	h.mu.Unlock()
	go a.watch(watch, h)
	a.serveVolumes(watch, h)
	a.rewindFor(h.sandbox().Deadline)
}
