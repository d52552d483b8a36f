package hecatoncheir

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// claimTime is how long a pristine agent may take to become a sandbox's; it needs two milliseconds.
const claimTime = 3 * time.Second

// move is what a sandbox brings to the machine that it claims.
type move struct {
	template Template
	driver   vmm.Driver
	rules    network.Rules
}

// moveIn makes a claimed machine the sandbox's, and the sandbox one that runs. It is under the sandbox's own limits and rules before anybody
// hears of it. Where it fails with tartarus.GuestGone the machine was dead, and the sandbox holds nothing of it.
func (a *Agent) moveIn(ctx context.Context, h *held, p *pristine, m move) error {
	h.mu.Lock()
	h.machine, h.machineID, h.slot = p.machine, p.id, p.slot
	if p.guest != nil {
		h.guest = p.guest.As(h.spec.Secrets.AgentToken)
	}
	h.mu.Unlock()
	a.strays.remove(p)
	// Without mounts it does not run yet, and one store takes everything at once in the end.
	if p.slot == nil || len(h.spec.Volumes) > 0 || a.cfg.Arrivals != nil {
		if err := a.takeOn(ctx, h, p, m, nil); err != nil {
			return err
		}
		a.starts.Go(func() { a.spare(ctx, h) })
		return a.alive(ctx, h, m.driver, h.spec.Timeout)
	}
	now := time.Now()
	next := h.record()
	next.Claimed = true
	if err := a.begins(&next.Sandbox, m.driver, h.spec.Timeout, now); err != nil {
		return err
	}
	if err := a.takeOn(ctx, h, p, m, &next); err != nil {
		return err
	}
	a.starts.Go(func() { a.spare(ctx, h) }) // while the stores are told, after which its owner may be here at once
	_, err := h.change(func(sb *tartarus.Sandbox) error { return a.begins(sb, m.driver, h.spec.Timeout, now) })
	if err == nil {
		a.tell(h)
	}
	return err
}

// takeOn has the machine take on the sandbox's rules and identity. The journal's record, if there is one, is written meanwhile, because its
// way to the disk takes as long: an agent that finds it asks the guest whether it came that far, see confirm.
func (a *Agent) takeOn(ctx context.Context, h *held, p *pristine, m move, next *record) error {
	if p.slot == nil {
		return nil
	}
	g, gctx := errgroup.WithContext(ctx)
	var unwritten error
	if next != nil {
		g.Go(func() error {
			unwritten = a.write(gctx, h, *next)
			return unwritten
		})
	}
	g.Go(func() error { return a.cfg.Slots.SetRules(gctx, p.slot, m.rules) })
	g.Go(func() error {
		once, cancel := context.WithTimeout(gctx, claimTime)
		defer cancel()
		return h.guest.Init(once, a.claimInit(h, m.template))
	})
	err := g.Wait()
	if err == nil || errors.Is(err, unwritten) || ctx.Err() != nil {
		return err
	}
	a.log.Warn("claimed machine is dead", "sandbox", h.spec.ID, "tenant", h.spec.Tenant, "error", err)
	a.strays.add(p)
	h.mu.Lock()
	h.machine, h.machineID, h.slot, h.guest = nil, "", nil, nil
	h.mu.Unlock()
	if err := p.Discard(ctx); err != nil {
		a.log.Error("claimed machine not removed", "error", err)
	}
	return tartarus.Errorf(tartarus.GuestGone, "claim a warm machine: %w", err)
}

// claimInit is what is left to tell the agent of a machine that was roused: it has the template's part, this slot's name server, a
// machine id and entropy of its own already. Each file that it need not look at is a fifth of a millisecond of a create.
func (a *Agent) claimInit(h *held, t Template) guestclient.Init {
	in := a.guestInit(h, t, &vmm.Interface{})
	in.MachineID, in.Entropy, in.DNSServers = "", "", nil
	return in
}

// confirm makes sure that the guest of an adopted sandbox is the sandbox's: the agent before this one may have died while it claimed.
func (a *Agent) confirm(ctx context.Context, h *held) error {
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	env, err := h.guest.Envs(ctx)
	if err == nil && env["E2B_SANDBOX_ID"] != h.spec.ID {
		var t Template
		if t, err = a.cfg.Templates.Template(ctx, h.spec.TemplateID, h.spec.BuildID); err == nil {
			err = h.guest.Init(ctx, a.claimInit(h, t))
		}
	}
	if err != nil {
		return fmt.Errorf("its machine did not become its own: %w", err)
	}
	return nil
}
