package network

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/tartarus-sandbox/tartarus"
	"golang.org/x/sys/unix"
)

// pin is the way to an address that an answer to an allowed name opened.
type pin struct {
	name  string
	until time.Time
}

const (
	// maxPins bounds a slot's pins. The one that would end first makes room: a busy client has asked for the others since.
	maxPins = 1024
	// pinGrace is how long a way stays open after the answer has expired: clients connect a little later than they ask.
	pinGrace = 2 * time.Minute
)

func (a *applied) pinSet() string { return a.chain + "-pins" }

// keptPins are the pins that other rules keep: those of names that they allow too.
func (a *applied) keptPins(r Rules, now time.Time) map[netip.Addr]pin {
	kept := map[netip.Addr]pin{}
	for addr, p := range a.pins {
		if len(r.Domains) > 0 && r.resolves(p.name) && p.until.After(now) {
			kept[addr] = p
		}
	}
	return kept
}

// addPins makes the set of a slot's pins. Its members end by themselves.
func (b *batch) addPins(a *applied, now time.Time) {
	b.addSet(set{name: a.pinSet(), key: nftables.TypeIPAddr, flags: unix.NFT_SET_TIMEOUT}, 3)
	var elems []element
	for addr, p := range a.pins {
		elems = append(elems, element{key: addr.AsSlice(), timeout: p.until.Sub(now)})
	}
	b.put(a.pinSet(), elems...)
}

// pin opens the way to the addresses that an answer gave, until some time after the answer expires.
func (f *firewall) pin(s *Slot, name string, addrs []netip.Addr, ttl time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := &s.rules
	if len(a.rules.Domains) == 0 || !a.rules.resolves(name) {
		return tartarus.Errorf(tartarus.Denied, "rules have changed since %q was asked for", name)
	}
	now := time.Now()
	next := pin{name: name, until: now.Add(ttl + pinGrace)}
	var b batch
	var fresh []netip.Addr
	for _, addr := range addrs {
		// A way that stays open for longer than the answer is valid needs no change: most answers repeat an earlier one.
		if old, ok := a.pins[addr]; !ok || old.until.Before(now.Add(ttl)) {
			fresh = append(fresh, addr)
		}
	}
	evicted := a.makeRoom(len(fresh), now)
	for _, addr := range evicted {
		b.drop(a.pinSet(), element{key: addr.AsSlice()})
	}
	for _, addr := range fresh {
		b.drop(a.pinSet(), element{key: addr.AsSlice()}) // the time of a member that is there cannot be changed before Linux 6.12
		b.put(a.pinSet(), element{key: addr.AsSlice(), timeout: ttl + pinGrace})
	}
	if err := f.commit(&b); err != nil {
		return fmt.Errorf("pin addresses for %s: %w", s.name, err)
	}
	for _, addr := range evicted {
		delete(a.pins, addr)
	}
	for _, addr := range fresh {
		a.pins[addr] = next
	}
	return nil
}

// makeRoom forgets pins that have ended and picks those that must go for n more.
func (a *applied) makeRoom(n int, now time.Time) []netip.Addr {
	if len(a.pins)+n <= maxPins {
		return nil
	}
	for addr, p := range a.pins {
		if p.until.Before(now) {
			delete(a.pins, addr)
		}
	}
	var out []netip.Addr
	gone := map[netip.Addr]bool{}
	for len(a.pins)-len(out)+n > maxPins && len(out) < len(a.pins) {
		var first netip.Addr
		for addr, p := range a.pins {
			if !gone[addr] && (!first.IsValid() || p.until.Before(a.pins[first].until)) {
				first = addr
			}
		}
		gone[first] = true
		out = append(out, first)
	}
	return out
}

// pinned reports whether a pin opens the way to an address now.
func (f *firewall) pinned(s *Slot, a netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return s.rules.pins[a].until.After(time.Now())
}
