package hecatoncheir

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/network"
)

// dialTime bounds a connection to a guest on the same host.
const dialTime = 5 * time.Second

// Stop ends a sandbox and returns when it is gone. An ended one is tartarus.NotFound.
func (a *Agent) Stop(ctx context.Context, id string, reason tartarus.Reason) error {
	h, err := a.find(id)
	if err != nil {
		return err
	}
	return a.end(ctx, h, tartarus.Stopped, reason, "somebody asked")
}

// running returns a sandbox that runs.
func (a *Agent) running(id string) (*held, error) {
	h, err := a.find(id)
	if err != nil {
		return nil, err
	}
	if phase := h.sandbox().Phase; phase != tartarus.Running {
		return nil, tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s", id, phase)
	}
	return h, nil
}

// SetDeadline moves the end of a sandbox's time; with extendOnly never to an earlier one.
func (a *Agent) SetDeadline(ctx context.Context, id string, deadline time.Time, extendOnly bool) (tartarus.Sandbox, error) {
	h, err := a.running(id)
	if err != nil {
		return tartarus.Sandbox{}, err
	}
	sb, err := h.change(func(sb *tartarus.Sandbox) error {
		if sb.Phase != tartarus.Running {
			return tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s", id, sb.Phase)
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
	a.tell(sb)
	return sb, nil
}

// SetNetwork replaces the egress rules of a running sandbox.
func (a *Agent) SetNetwork(ctx context.Context, id string, n tartarus.Network) (tartarus.Sandbox, error) {
	h, err := a.running(id)
	if err != nil {
		return tartarus.Sandbox{}, err
	}
	rules, err := network.ParseRules(n)
	if err != nil {
		return tartarus.Sandbox{}, err
	}
	if h.slot != nil {
		if err := a.cfg.Slots.SetRules(ctx, h.slot, rules); err != nil {
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
	a.tell(sb)
	return sb, nil
}

// Dial connects to a TCP port of the guest, wherever in the guest it is bound.
func (a *Agent) Dial(ctx context.Context, id string, port int) (net.Conn, error) {
	h, err := a.running(id)
	if err != nil || h.slot == nil {
		return nil, tartarus.Errorf(tartarus.GuestGone, "sandbox %s does not run here", id)
	}
	if port < 1 || port > 65535 {
		return nil, tartarus.Errorf(tartarus.Invalid, "%d is not a port", port)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	addr := netip.AddrPortFrom(h.slot.Interface().Address.Addr(), uint16(port))
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp4", addr.String())
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, syscall.ECONNREFUSED) && port != tartarus.AgentPort:
		// Nobody listens on the guest's address, but perhaps on its loopback, which only the agent can reach.
		return h.guest.Tunnel(ctx, port)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, tartarus.Errorf(tartarus.PortClosed, "nobody listens on port %d of sandbox %s", port, id)
	}
	return nil, tartarus.Errorf(tartarus.GuestGone, "sandbox %s cannot be reached: %w", id, err)
}
