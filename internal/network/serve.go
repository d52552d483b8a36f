package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/network/resolver"
	"github.com/tartarus-sandbox/tartarus/internal/network/webgate"
)

// slotOf finds the slot whose guest has this address; the rules vouch that nobody else sends from it.
func (p *Pool) slotOf(guest netip.Addr) *Slot {
	if !guest.Is4() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.realms {
		if r.prefix.Contains(guest) {
			a, b := guest.As4(), r.prefix.Addr().As4()
			s := p.slots[slotName(r.number, int(binary.BigEndian.Uint32(a[:])-binary.BigEndian.Uint32(b[:]))/2)]
			if s != nil && s.guest == guest && s.state == held {
				return s
			}
		}
	}
	return nil
}

// authorityFile holds the authority under which the gate answers for servers, in the state folder.
const authorityFile = "egress-ca.pem"

// openServices opens the sockets that serve sandboxes, so that rules can name their ports.
func (p *Pool) openServices(ctx context.Context) (err error) {
	if err := os.MkdirAll(p.cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("create state folder: %w", err)
	}
	if p.authority, err = webgate.LoadAuthority(filepath.Join(p.cfg.StateDir, authorityFile)); err != nil {
		return err
	}
	p.gate, err = webgate.New(ctx, webgate.Config{
		Client: func(a netip.Addr) webgate.Policy {
			if s := p.slotOf(a); s != nil {
				return policy{p, s}
			}
			return nil
		},
		Source: p.cfg.Base, Log: p.log, Authority: p.authority, Roots: p.cfg.Roots, Guard: p.mayProxy,
	})
	if err != nil {
		return err
	}
	p.fw.webPort = p.gate.Port()
	p.resolver, err = resolver.New(ctx, resolver.Config{
		Asker: func(a netip.Addr) resolver.Policy {
			if s := p.slotOf(a); s != nil {
				return policy{p, s}
			}
			return nil
		},
		Source: p.cfg.Base, HostConfig: p.cfg.HostConfig, Log: p.log,
	})
	if err == nil {
		p.fw.dnsPort = p.resolver.Port()
	}
	return err
}

// policy is a slot as those see it who serve its packets.
type policy struct {
	pool *Pool
	slot *Slot
}

func (p policy) rules() *Rules {
	if r := p.slot.current.Load(); r != nil {
		return r
	}
	return &Rules{}
}

func (p policy) Name() string              { return p.slot.name }
func (p policy) Resolves(name string) bool { return p.rules().resolves(name) }

func (p policy) Servers() []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range p.rules().DNS {
		out = append(out, netip.AddrPortFrom(a, 53))
	}
	return out
}

func (p policy) Reaches(a netip.Addr) bool {
	return p.rules().reaches(a) && !p.pool.cfg.Base.Contains(a)
}

func (p policy) Passes(to netip.AddrPort) bool {
	return p.rules().permits(to.Addr(), protoTCP, to.Port()) && !p.pool.cfg.Base.Contains(to.Addr())
}

func (p policy) Pinned(a netip.Addr) bool { return p.Reaches(a) && p.pool.fw.pinned(p.slot, a) }

func (p policy) Pin(_ context.Context, name string, addrs []netip.Addr, ttl time.Duration) error {
	if p.rules().Open {
		return nil
	}
	return p.pool.fw.pin(p.slot, name, addrs, ttl)
}
