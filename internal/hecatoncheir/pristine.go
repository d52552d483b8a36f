package hecatoncheir

import (
	"context"
	"errors"
	"io"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/warm"
)

// pristine is a machine that is nobody's sandbox yet. No journal record speaks of it: an agent that dies leaves it to the next one's
// sweep, and nothing is lost with it.
type pristine struct {
	agent   *Agent
	id      string
	machine vmm.Machine
	slot    *network.Slot       // nil with drivers whose guests have no network
	guest   *guestclient.Client // likewise
	memory  int64
}

// kindOf is what a warm machine must be to become the sandbox.
func kindOf(spec tartarus.Spec, t Template, driver string) warm.Kind {
	return warm.Kind{Template: t.ID, Build: t.Build, Runtime: driver, Resources: spec.Resources}
}

// Make implements warm.Maker: a pristine machine from the template's snapshot, which is taken first where there is none.
func (a *Agent) Make(ctx context.Context, k warm.Kind) (*pristine, error) {
	template, err := a.cfg.Templates.Template(ctx, k.Template, k.Build)
	if err != nil {
		return nil, err
	}
	dir, err := a.ensurePrepared(ctx, k)
	if err != nil {
		return nil, err
	}
	p, err := a.makePristine(ctx, k, func(d vmm.Driver, c vmm.Config) (vmm.Machine, error) {
		c.RootFS = template.RootFS
		m, err := d.Restore(ctx, c, dir)
		if useless(err) {
			a.unprepare(k, err)
		}
		return m, err
	})
	if err != nil {
		return nil, err
	}
	if err := p.rouse(ctx, template); err != nil {
		return nil, errors.Join(err, p.Discard(ctx))
	}
	return p, nil
}

// Current implements warm.Maker.
func (a *Agent) Current(ctx context.Context, k warm.Kind) bool {
	_, err := a.cfg.Templates.Template(ctx, k.Template, k.Build)
	return !tartarus.Is(err, tartarus.NotFound) && a.usable[k.Runtime] != nil
}

// makePristine gets a slot and has begin put a machine onto it. Nothing leaves the slot until somebody gives it rules.
func (a *Agent) makePristine(ctx context.Context, k warm.Kind, begin func(vmm.Driver, vmm.Config) (vmm.Machine, error)) (_ *pristine, err error) {
	driver, err := a.driver(k.Runtime)
	if err != nil {
		return nil, err
	}
	p := &pristine{agent: a, id: tartarus.NewID()}
	a.strays.add(p)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Discard(ctx))
		}
	}()
	c := vmm.Config{ID: p.id, Hostname: "sandbox", Resources: k.Resources}
	if a.cfg.Slots != nil {
		if p.slot, err = a.acquire(ctx, driver); err != nil {
			return nil, err
		}
		c.Interface = p.slot.Interface()
		p.guest = guestclient.New(guestclient.Config{Addr: c.Interface.Address.Addr()})
	}
	if p.machine, err = begin(driver, c); err != nil {
		p.machine = nil
		return nil, err
	}
	return p, nil
}

// rouse waits until the agent of a restored machine answers, gives it all that it will be whoever gets it, and runs a shell in it that does
// nothing: the first command in a guest takes four times as long as the next, which share its address space and its pages. What
// the machine then uses is what it costs to wait.
func (p *pristine) rouse(ctx context.Context, t Template) error {
	if p.guest != nil {
		if err := p.guest.InitWhenUp(ctx, templateInit(t, p.slot.Interface())); err != nil {
			return err
		}
		if _, err := p.guest.Run(ctx, inShell(t, ":"), nil, io.Discard, io.Discard); tartarus.Is(err, tartarus.GuestGone) || ctx.Err() != nil {
			return err
		}
	}
	u, err := p.machine.Usage(ctx)
	p.memory = u.MemoryBytes
	return err
}

// Memory implements warm.Machine.
func (p *pristine) Memory() int64 { return p.memory }

// Wait implements warm.Machine.
func (p *pristine) Wait(ctx context.Context) error {
	_, err := p.machine.Wait(ctx)
	return err
}

// Discard implements warm.Machine. It goes on when ctx ends: what it does not remove, nobody does while this agent lives.
func (p *pristine) Discard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if p.guest != nil {
		p.guest.Close()
	}
	if p.machine != nil {
		if err := p.machine.Stop(ctx); err != nil {
			return err
		}
	}
	if p.slot != nil {
		if err := p.agent.cfg.Slots.Release(ctx, p.slot); err != nil {
			return err
		}
	}
	p.agent.strays.remove(p)
	return nil
}
