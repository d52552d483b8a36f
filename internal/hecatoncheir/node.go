package hecatoncheir

import (
	"context"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Stop ends a sandbox without grace and returns when it is gone. An ended one is tartarus.NotFound.
func (a *Agent) Stop(ctx context.Context, id string, reason tartarus.Reason) error {
	return a.Terminate(ctx, id, tartarus.Termination{Reason: reason, Message: "somebody asked", Grace: new(time.Duration)})
}

// running returns a sandbox that runs.
func (a *Agent) running(id string) (*held, error) {
	h, err := a.find(id)
	if err != nil {
		return nil, err
	}
	if phase := h.sandbox().Phase; phase != tartarus.Running && phase != tartarus.Snapshotting {
		return nil, tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s", id, phase)
	}
	return h, nil
}

// SetDeadline moves the end of a sandbox's time; with extendOnly never to an earlier one.
func (a *Agent) SetDeadline(ctx context.Context, id string, deadline time.Time, extendOnly bool) (tartarus.Sandbox, error) {
	h, err := a.awake(ctx, id)
	if err != nil {
		return tartarus.Sandbox{}, err
	}
	h.conns.touch(time.Now())
	sb, err := h.change(func(sb *tartarus.Sandbox) error {
		if sb.Phase != tartarus.Running && sb.Phase != tartarus.Snapshotting {
			return tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s", id, sb.Phase)
		}
		if sb.Terminating() {
			return tartarus.Errorf(tartarus.Conflict, "sandbox %s is being terminated; cancel that first", id)
		}
		if !extendOnly || deadline.After(sb.Deadline) {
			sb.Deadline = deadline
		}
		return nil
	})
	if err != nil {
		return sb, err
	}
	a.rewind()
	if err := a.journal(ctx, h); err != nil {
		return sb, err
	}
	a.told(ctx, h)
	return sb, nil
}

// SetNetwork replaces the egress rules of a running sandbox.
func (a *Agent) SetNetwork(ctx context.Context, id string, n tartarus.Network) (tartarus.Sandbox, error) {
	h, err := a.awake(ctx, id)
	if err != nil {
		return tartarus.Sandbox{}, err
	}
	h.conns.touch(time.Now())
	rules, err := rulesOf(h.spec, n)
	if err != nil {
		return tartarus.Sandbox{}, err
	}
	if h.slot != nil {
		if err := a.cfg.Slots.SetRules(ctx, h.slot, rules); err != nil {
			return tartarus.Sandbox{}, err
		}
		if err := a.trust(ctx, h, n); err != nil {
			return tartarus.Sandbox{}, err
		}
	}
	sb, err := h.change(func(sb *tartarus.Sandbox) error { sb.Network = n; return nil })
	if err != nil {
		return sb, err
	}
	if err := a.journal(ctx, h); err != nil {
		return sb, err
	}
	a.told(ctx, h)
	return sb, nil
}
