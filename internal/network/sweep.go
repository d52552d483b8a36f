package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// trace is what the host holds under one slot's name.
type trace struct {
	link, netns bool
	rules       *parts
}

// survey looks at the whole host.
func (p *Pool) survey() (map[string]*trace, error) {
	found := map[string]*trace{}
	at := func(name string) *trace {
		if found[name] == nil {
			found[name] = &trace{}
		}
		return found[name]
	}
	links, err := whole(p.host.links.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if _, _, ok := parseName(l.Attrs().Name); ok {
			at(l.Attrs().Name).link = true
		}
	}
	names, err := p.host.namespaces()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if _, _, ok := parseName(name); ok {
			at(name).netns = true
		}
	}
	rules, err := p.fw.inventory()
	if err != nil {
		return nil, err
	}
	for name, parts := range rules {
		at(name).rules = parts
	}
	return found, nil
}

// Leftovers lists what slots have left on the host that nobody owns: in this pool's realms whatever it has not
// made or adopted itself and owned does not claim by slot name; in other realms, whatever an owner left who is gone for good.
// With remove it is taken away, and the numbers may be used again. Call it with remove after adopting.
func (p *Pool) Leftovers(ctx context.Context, owned func(slot string) bool, remove bool) ([]vmm.Leftover, error) {
	unlock, err := lockHost(ctx, p.cfg.RunDir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	stray, err := p.strays(owned)
	if err != nil {
		return nil, err
	}
	var out []vmm.Leftover
	var errs error
	for _, name := range slices.Sorted(maps.Keys(stray)) {
		t := stray[name]
		for _, part := range []struct {
			there bool
			kind  string
		}{{t.link, "link"}, {t.netns, "netns"}, {t.rules != nil, "nftables"}} {
			if part.there {
				out = append(out, vmm.Leftover{Kind: part.kind, Name: name})
			}
		}
		if remove {
			errs = errors.Join(errs, p.remove(name, t))
		}
	}
	if remove && errs == nil {
		errs = p.forgetRealms()
	}
	return out, errs
}

// Leftovers does the same for a process without a pool: whatever a living process or a StateDir that still exists may own is left
// alone, except that in the realms of c.StateDir itself, when no process holds them, owned decides.
func Leftovers(ctx context.Context, c Config, owned func(slot string) bool, remove bool) ([]vmm.Leftover, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	h, err := openHost(c.RunDir)
	if err != nil {
		return nil, err
	}
	defer h.close()
	p := &Pool{cfg: c, log: c.Log, host: h, fw: newFirewall(c.Log)}
	defer p.fw.close()
	return p.Leftovers(ctx, owned, remove)
}

// strays picks from the survey what nobody owns.
func (p *Pool) strays(owned func(string) bool) (map[string]*trace, error) {
	found, err := p.survey()
	if err != nil {
		return nil, err
	}
	states := map[int]realmState{}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.realms {
		states[r.number] = realmOwn
	}
	for name := range found {
		number, _, _ := parseName(name)
		state, known := states[number]
		if !known {
			if state, _, err = p.stateOf(number); err != nil {
				return nil, err
			}
			states[number] = state
		}
		_, mine := p.slots[name]
		if mine || state == realmOther || (state == realmOwn && owned != nil && owned(name)) {
			delete(found, name)
		}
	}
	return found, nil
}

// forgetRealms removes what is left of the realms of owners who are gone for good, once no slot is. The host's lock is held.
func (p *Pool) forgetRealms() error {
	numbers, err := p.knownRealms()
	if err != nil {
		return err
	}
	for _, n := range numbers {
		state, prefix, err := p.stateOf(n)
		if err != nil {
			return err
		}
		if state != realmAbandoned {
			continue
		}
		if prefix.IsValid() {
			if err := p.fw.removeRealm(prefix); err != nil {
				return err
			}
		}
		if err := os.Remove(p.realmPath(n)); err != nil {
			return fmt.Errorf("forget realm %d: %w", n, err)
		}
	}
	return p.leaveHost()
}

// remove takes away what is there of a slot.
func (p *Pool) remove(name string, t *trace) error {
	errs := p.host.tearDown(name)
	if t.rules != nil {
		errs = errors.Join(errs, p.fw.purge(name, t.rules))
	}
	if errs != nil {
		return fmt.Errorf("remove leftover %s: %w", name, errs)
	}
	p.mu.Lock()
	delete(p.foreign, name)
	p.mu.Unlock()
	return nil
}

// sweepRealm clears a realm whose owner is gone for good. The host's lock is held.
func (p *Pool) sweepRealm(number int) error {
	found, err := p.survey()
	if err != nil {
		return err
	}
	for name, t := range found {
		if n, _, _ := parseName(name); n == number {
			if err := p.remove(name, t); err != nil {
				return fmt.Errorf("sweep realm %s: %w", strconv.Itoa(number), err)
			}
		}
	}
	return nil
}
