package network

import (
	"context"
	"errors"
	"fmt"

	"github.com/tartarus-sandbox/tartarus"
)

// Acquire lends a slot of the usual kind. A ready one costs no system call; where none is ready, one is reset or made.
// Its rules are closed until SetRules.
func (p *Pool) Acquire(ctx context.Context) (*Slot, error) { return p.acquire(ctx, Veth) }

// AcquireTAP lends a slot with a TAP device.
func (p *Pool) AcquireTAP(ctx context.Context) (*Slot, error) { return p.acquire(ctx, TAP) }

func (p *Pool) acquire(ctx context.Context, kind Kind) (*Slot, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("acquire slot: %w", err)
	}
	defer p.poke()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, tartarus.Errorf(tartarus.Unavailable, "network: the pool is closed")
	}
	if s := p.pop(kind); s != nil {
		p.mu.Unlock()
		return s, nil
	}
	p.mu.Unlock()
	if s := p.takeDirty(kind); s != nil {
		if p.clean(s) == nil {
			return p.lend(s)
		}
	}
	fresh, err := p.reserve(ctx, kind, 1)
	if err != nil {
		return nil, err
	}
	if err := p.create(fresh); err != nil {
		return nil, fmt.Errorf("acquire slot: %w", err)
	}
	return p.lend(fresh[0])
}

// pop takes the slot that has rested longest. The pool's lock is held.
func (p *Pool) pop(kind Kind) *Slot {
	list := p.ready[kind]
	if len(list) == 0 {
		return nil
	}
	s := list[0]
	list[0] = nil
	p.ready[kind] = list[1:]
	s.state = held
	return s
}

// lend hands out a slot that is in no list; a pool closed meanwhile takes it down instead.
func (p *Pool) lend(s *Slot) (*Slot, error) {
	p.mu.Lock()
	closed := p.closed
	if !closed {
		s.state = held
	}
	p.mu.Unlock()
	if closed {
		return nil, errors.Join(tartarus.Errorf(tartarus.Unavailable, "network: the pool is closed"), p.destroy([]*Slot{s}))
	}
	return s, nil
}

func (p *Pool) takeDirty(kind Kind) *Slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.dirty {
		if kind == "" || s.kind == kind {
			p.dirty = append(p.dirty[:i:i], p.dirty[i+1:]...)
			s.state = making
			return s
		}
	}
	return nil
}

// reserve takes up to n free numbers, at least one.
func (p *Pool) reserve(ctx context.Context, kind Kind, n int) ([]*Slot, error) {
	var got []*Slot
	take := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for len(got) < n && !p.closed {
			s := p.newSlot(kind)
			if s == nil {
				return
			}
			got = append(got, s)
		}
	}
	if take(); len(got) > 0 {
		return got, nil
	}
	unlock, err := lockHost(ctx, p.cfg.RunDir)
	if err != nil {
		return nil, err
	}
	err = p.claimRealm()
	unlock()
	if err != nil {
		return nil, err
	}
	if take(); len(got) == 0 {
		return nil, tartarus.Errorf(tartarus.Unavailable, "network: no slot is free")
	}
	return got, nil
}

// create builds reserved slots. When any fails none stays.
func (p *Pool) create(slots []*Slot) error {
	if err := p.fw.addSlots(slots); err != nil {
		p.forgetSlots(slots)
		return err
	}
	if err := p.build(slots); err != nil {
		return errors.Join(err, p.destroy(slots))
	}
	return nil
}

func (p *Pool) forgetSlots(slots []*Slot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range slots {
		s.state = gone
		delete(p.slots, s.name)
	}
}

// Release takes a slot back whose machine is gone; its rules close at once. It is reset for reuse before
// anybody gets it again, or taken down and replaced when that cannot be done. A second Release does nothing.
func (p *Pool) Release(ctx context.Context, s *Slot) error {
	p.mu.Lock()
	if s.state != held || p.slots[s.name] != s {
		p.mu.Unlock()
		return nil
	}
	closed := p.closed
	s.state = making
	p.mu.Unlock()
	if closed {
		return p.destroy([]*Slot{s})
	}
	if _, err := p.fw.apply(s, Rules{}); err != nil {
		p.log.Warn("close released slot", "slot", s.name, "error", err)
	}
	p.gate.Recheck(s.guest, true) // nobody's now: every connection is cut
	p.mu.Lock()
	closed = p.closed
	if !closed {
		s.state = dirty
		p.dirty = append(p.dirty, s)
	}
	p.mu.Unlock()
	if closed {
		return p.destroy([]*Slot{s})
	}
	p.poke()
	return nil
}

// clean resets a slot that is in no list; one that cannot be is taken down.
func (p *Pool) clean(s *Slot) error {
	err := p.fw.restore(s, nil, &Rules{})
	if err == nil {
		err = errors.Join(forget(s.guest), p.reset(s))
	}
	if err != nil {
		p.log.Warn("released slot is taken down", "slot", s.name, "reason", err)
		if down := p.destroy([]*Slot{s}); down != nil {
			p.log.Error("take slot down", "slot", s.name, "error", down)
		}
	}
	return err
}

// destroy takes slots down that are in no list, and forgets them. What cannot be removed is a leftover from then on.
func (p *Pool) destroy(slots []*Slot) error {
	if len(slots) == 0 {
		return nil
	}
	names := make([]string, len(slots))
	for i, s := range slots {
		names[i] = s.name
	}
	errs := p.host.tearDown(names...)
	for _, s := range slots {
		errs = errors.Join(errs, forget(s.guest))
	}
	errs = errors.Join(errs, p.fw.removeSlots(slots))
	p.forgetSlots(slots)
	if errs != nil {
		return fmt.Errorf("take slots down: %w", errs)
	}
	return nil
}

// refillStep is how many slots one turn of refill makes, so that what is released meanwhile gets its turn.
const refillStep = 16

// refill resets what came back and makes what is missing. Errors end this round; the next tick tries again.
func (p *Pool) refill(ctx context.Context) {
	for ctx.Err() == nil {
		if s := p.takeDirty(""); s != nil {
			if p.clean(s) == nil {
				p.keepOrDrop(s)
			}
			continue
		}
		kind, n := p.missing()
		if n == 0 {
			return
		}
		slots, err := p.reserve(ctx, kind, min(n, refillStep))
		if err == nil {
			err = p.create(slots)
		}
		if err != nil {
			if ctx.Err() == nil {
				p.log.Error("refill slots", "kind", kind, "error", err)
			}
			return
		}
		for _, s := range slots {
			p.keepOrDrop(s)
		}
	}
}

func (p *Pool) want(kind Kind) int {
	if kind == TAP {
		return p.cfg.TAPs
	}
	return p.cfg.Slots
}

func (p *Pool) missing() (Kind, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return "", 0
	}
	for _, kind := range []Kind{Veth, TAP} {
		if n := p.want(kind) - len(p.ready[kind]); n > 0 {
			return kind, n
		}
	}
	return "", 0
}

// keepOrDrop makes a clean slot ready, unless there are twice as many as wanted: a burst leaves some behind, not all.
func (p *Pool) keepOrDrop(s *Slot) {
	p.mu.Lock()
	keep := !p.closed && len(p.ready[s.kind]) < max(2*p.want(s.kind), 1)
	if keep {
		s.state = ready
		p.ready[s.kind] = append(p.ready[s.kind], s)
	}
	p.mu.Unlock()
	if keep {
		return
	}
	if err := p.destroy([]*Slot{s}); err != nil {
		p.log.Error("take slot down", "slot", s.name, "error", err)
	}
}

// SetRules replaces what may leave a slot that is lent, and ends the connections that the new rules deny.
// The change is one step: no packet sees half of it.
func (p *Pool) SetRules(ctx context.Context, s *Slot, r Rules) error {
	p.mu.Lock()
	ok := s.state == held && p.slots[s.name] == s
	p.mu.Unlock()
	if !ok {
		return tartarus.Errorf(tartarus.Conflict, "network: slot %s is not lent", s.name)
	}
	r = r.normal()
	before := s.current.Load()
	closed, err := p.fw.apply(s, r)
	if isMissing(err) { // the host's rules were flushed and Run has not been there yet
		if err = p.heal(ctx); err == nil {
			err = p.fw.reapply(s, nil, r)
		}
	}
	if err != nil || closed { // nothing can be open where everything was closed
		return err
	}
	p.gate.Recheck(s.guest, true)
	keeps := p.keeps(s, r)
	if before != nil && (r.Proxy != before.Proxy || before.gated() != r.gated()) {
		// What was connected before the gate came, or went, would go on beside it.
		return cutDenied(s.guest, func(f flow) bool { return f.proto != protoTCP && keeps(f) })
	}
	return cutDenied(s.guest, keeps)
}

// keeps tells which of a slot's connections rules let go on.
func (p *Pool) keeps(s *Slot, r Rules) func(flow) bool {
	return func(f flow) bool {
		if f.dst == s.gateway {
			return f.dstPort == 53 // our resolver, which looks at the rules itself
		}
		return r.permits(f.dst, f.proto, f.dstPort) || !(f.proto == protoUDP && f.dstPort == 443) && p.fw.pinned(s, f.dst)
	}
}

// Counters are what the sandbox in a slot was refused so far.
func (p *Pool) Counters(ctx context.Context, s *Slot) (Counters, error) { return p.fw.counters(s.name) }

// Tried counts, by the name of their slots, how many different addresses and ports sandboxes were refused in the last minute. Slots that were
// lent to another sandbox since may count what that one did.
func (p *Pool) Tried(context.Context) (map[string]int, error) { return p.fw.tried() }

// Adopt takes over a slot that an earlier process lent to a sandbox which still lives, and gives it these rules in one step.
// A slot that is gone, or is not the recorded one any more, is tartarus.NotFound.
func (p *Pool) Adopt(ctx context.Context, rec Record, r Rules) (*Slot, error) {
	_, number, ok := parseName(rec.Name)
	p.mu.Lock()
	rl := p.realmOf(rec.Name)
	t, found := p.foreign[rec.Name]
	if !ok || rl == nil || !found || p.closed {
		_, taken := p.slots[rec.Name]
		p.mu.Unlock()
		if taken {
			return nil, tartarus.Errorf(tartarus.Conflict, "network: slot %s is in use already", rec.Name)
		}
		return nil, tartarus.Errorf(tartarus.NotFound, "network: slot %s does not exist", rec.Name)
	}
	s := p.slotAt(rl, number, rec.Kind)
	s.inode = rec.Inode
	delete(p.foreign, rec.Name)
	p.slots[rec.Name] = s
	p.mu.Unlock()

	err := p.adopt(s, t.rules, r.normal())
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		delete(p.slots, s.name)
		p.foreign[s.name] = t // Leftovers will find what there is of it
		return nil, err
	}
	s.state = held
	return s, nil
}

func (p *Pool) adopt(s *Slot, there *parts, r Rules) error {
	if inode, err := inodeOf(s.path); err != nil || inode != s.inode {
		return tartarus.Errorf(tartarus.NotFound, "network: the namespace of slot %s is gone", s.name)
	}
	l, err := p.host.links.LinkByName(s.name)
	if err != nil {
		return tartarus.Errorf(tartarus.NotFound, "network: the link of slot %s is gone: %w", s.name, err)
	}
	s.mtu = l.Attrs().MTU
	if err := p.fw.reapply(s, there, r); err != nil {
		return err
	}
	return cutDenied(s.guest, p.keeps(s, r))
}
