package hecatoncheir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// reconcile makes host and journal agree after an earlier agent: machines that run are adopted, what is left of others is removed, and so
// is everything of ours that no record speaks of.
func (a *Agent) reconcile(ctx context.Context) error {
	records, err := a.cfg.Journal.All(ctx)
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	g := errgroup.Group{}
	g.SetLimit(8)
	for id, body := range records {
		g.Go(func() error { return a.resume(ctx, id, body) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if len(records) > 0 {
		a.log.Info("reconciled", "recorded", len(records), "adopted", len(a.all()))
	}
	if err := a.sweepSaved(ctx); err != nil {
		return err
	}
	left, err := a.Leftovers(ctx, true)
	for _, l := range left {
		a.log.Warn("removed leftover", "kind", l.Kind, "name", l.Name)
	}
	return err
}

// resume takes one recorded sandbox over, or ends it. An unreadable record stops the agent: it may hide a machine that runs.
func (a *Agent) resume(ctx context.Context, id string, body []byte) error {
	var r record
	if err := json.Unmarshal(body, &r); err != nil {
		return tartarus.Errorf(tartarus.Corrupt, "decode journal record of sandbox %s: %w", id, err)
	}
	h := newHeld(r.Sandbox)
	close(h.up)
	a.keep(h)
	h.saved, h.freed = r.Saved, r.Freed
	if r.Base != "" && r.Saved == "" && r.Sandbox.Phase == tartarus.Running { // else the sweep removes it
		h.base = a.holdBase(r.Base)
	}
	h.conns.allow()
	gone := a.takeOver(ctx, h, r)
	if now := h.sandbox(); gone == nil && now.AtRest() {
		return nil
	}
	if gone == nil {
		watch, stop := context.WithCancel(ctx)
		h.mu.Lock()
		h.cancel = stop
		h.mu.Unlock()
		go a.watch(watch, h)
		a.serveVolumes(watch, h)
		a.tell(h)
		if e := r.Sandbox.Ending; e != nil {
			return a.carryOn(ctx, h, e)
		}
		return nil
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	reason, message := tartarus.ReasonCrashed, "it ended while its agent was away: "+gone.Error()
	if r.Sandbox.Phase == tartarus.Stopping {
		reason, message = r.Sandbox.Reason, r.Sandbox.Message
	}
	if r.Sandbox.Phase == tartarus.Stopping {
		h.sb.Phase = tartarus.Running // so that it is ended again, by us
	}
	if err := a.end(last, h, tartarus.Failed, reason, message); err != nil {
		// The host refuses to let go of it. It stays held and journalled, and the clock tries again.
		a.log.Error("sandbox not removed", "sandbox", id, "tenant", h.spec.Tenant, "error", err)
	}
	return nil
}

// takeOver adopts slot and machine of a recorded sandbox. An error says why it cannot go on living.
func (a *Agent) takeOver(ctx context.Context, h *held, r record) error {
	if r.Slot != nil && a.cfg.Slots != nil {
		rules, err := rulesOf(h.spec, r.Sandbox.Network)
		if err != nil {
			return err
		}
		if r.Sandbox.Phase == tartarus.Quarantined {
			rules = network.Rules{}
		}
		slot, err := a.cfg.Slots.Adopt(ctx, *r.Slot, rules)
		if err != nil {
			return fmt.Errorf("adopt network slot: %w", err)
		}
		h.mu.Lock()
		h.slot = slot
		h.mu.Unlock()
	}
	if r.Sandbox.AtRest() || r.Saved != "" {
		return a.stayPaused(ctx, h, r)
	}
	if r.Machine == nil {
		return errors.New("it had not come up")
	}
	driver, ok := a.usable[r.Machine.Driver]
	if !ok {
		return fmt.Errorf("runtime %s is no longer usable", r.Machine.Driver)
	}
	m, err := driver.Adopt(ctx, *r.Machine)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.machine, h.machineID = m, r.Machine.ID
	if h.slot != nil {
		h.guest = guestclient.New(guestclient.Config{Addr: h.slot.Interface().Address.Addr(), Token: h.spec.Secrets.AgentToken})
	}
	h.mu.Unlock()
	if r.Sandbox.Phase == tartarus.Quarantined {
		return a.stayQuarantined(ctx, h)
	}
	if r.Sandbox.Phase != tartarus.Running {
		return fmt.Errorf("it was %s", r.Sandbox.Phase)
	}
	if r.Claimed {
		if err := a.confirm(ctx, h); err != nil {
			return err
		}
	}
	if !r.Sandbox.Deadline.IsZero() && time.Now().After(r.Sandbox.Deadline) {
		a.rewind() // its time ran out meanwhile: the clock ends it with the right reason
	}
	return nil
}

// stayPaused keeps a sandbox whose snapshot is what counts. A machine that it still had, because the earlier agent died
// between the two, is ended.
func (a *Agent) stayPaused(ctx context.Context, h *held, r record) error {
	if r.Machine != nil {
		if driver, ok := a.usable[r.Machine.Driver]; ok {
			m, err := driver.Adopt(ctx, *r.Machine)
			if err != nil && !tartarus.Is(err, tartarus.NotFound) {
				return err
			}
			h.mu.Lock()
			h.machine = m
			h.mu.Unlock()
		}
	}
	if err := a.letGo(ctx, h); err != nil {
		return err
	}
	_, _ = h.change(func(sb *tartarus.Sandbox) error {
		if !sb.AtRest() {
			sb.Phase = tartarus.Paused
		}
		sb.Saved = r.Saved
		return nil
	})
	if err := a.journal(ctx, h); err != nil {
		return err
	}
	a.tell(h)
	return nil
}

// Leftovers lists, and with remove takes away, what of ours is on the host though no sandbox owns it.
func (a *Agent) Leftovers(ctx context.Context, remove bool) ([]vmm.Leftover, error) {
	var all []vmm.Leftover
	var errs error
	for _, d := range a.cfg.Drivers {
		left, err := d.Leftovers(ctx, a.ownsMachine, remove)
		all = append(all, left...)
		errs = errors.Join(errs, err)
	}
	if a.cfg.Slots != nil {
		left, err := a.cfg.Slots.Leftovers(ctx, a.ownsSlot, remove)
		all = append(all, left...)
		errs = errors.Join(errs, err)
	}
	return all, errs
}

// ownsSlot reports whether a sandbox or stray of this node holds the slot.
func (a *Agent) ownsSlot(name string) bool {
	if a.strays.hold(name) {
		return true
	}
	for _, h := range a.all() {
		h.mu.Lock()
		owns := h.slot != nil && h.slot.Name() == name
		h.mu.Unlock()
		if owns {
			return true
		}
	}
	return false
}

// Owned is what a journal says belongs to sandboxes, for looking at a node whose agent does not run.
type Owned struct{ machines, slots map[string]bool }

// Machine reports whether the id is that of a recorded sandbox's machine.
func (o Owned) Machine(id string) bool { return o.machines[id] }

// Slot reports whether the network slot is a recorded sandbox's.
func (o Owned) Slot(name string) bool { return o.slots[name] }

// Recorded reads what is owned from a journal.
func Recorded(ctx context.Context, j Journal) (Owned, error) {
	o := Owned{machines: map[string]bool{}, slots: map[string]bool{}}
	records, err := j.All(ctx)
	if err != nil {
		return o, fmt.Errorf("read journal: %w", err)
	}
	for id, body := range records {
		var r record
		if err := json.Unmarshal(body, &r); err != nil {
			return o, tartarus.Errorf(tartarus.Corrupt, "decode journal record of sandbox %s: %w", id, err)
		}
		o.machines[id] = true
		if r.Machine != nil {
			o.machines[r.Machine.ID] = true
		}
		if r.Slot != nil {
			o.slots[r.Slot.Name] = true
		}
	}
	return o, nil
}
