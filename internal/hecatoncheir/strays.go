package hecatoncheir

import "sync"

// strays are the machines of this agent that no sandbox has: those on the shelves, and those just being made or thrown away. Without
// them, looking for leftovers would find them.
type strays struct {
	mu  sync.Mutex
	all map[*pristine]struct{}
}

func (s *strays) add(p *pristine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[*pristine]struct{}{}
	}
	s.all[p] = struct{}{}
}

func (s *strays) remove(p *pristine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, p)
}

// hold reports whether one of them has the network slot.
func (s *strays) hold(slot string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.all {
		if p.slot != nil && p.slot.Name() == slot {
			return true
		}
	}
	return false
}

// ownsMachine reports whether a sandbox or stray of this node has the machine.
func (a *Agent) ownsMachine(id string) bool {
	a.strays.mu.Lock()
	for p := range a.strays.all {
		if p.id == id {
			a.strays.mu.Unlock()
			return true
		}
	}
	a.strays.mu.Unlock()
	for _, h := range a.all() {
		h.mu.Lock()
		has := h.spec.ID == id || h.machineID == id
		h.mu.Unlock()
		if has {
			return true
		}
	}
	return false
}
