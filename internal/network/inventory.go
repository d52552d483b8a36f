package network

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// parts is what the host's rules hold under one slot's name.
type parts struct {
	members    []member
	chains     []string
	sets       []string
	generation int // highest in a chain's name
}

type member struct {
	set string
	key []byte
}

// inventory lists what the host's rules hold, by slot name. A missing table holds nothing.
func (f *firewall) inventory() (map[string]*parts, error) {
	found := map[string]*parts{}
	at := func(name string) *parts {
		if found[name] == nil {
			found[name] = &parts{}
		}
		return found[name]
	}
	if there, err := tableExists(); err != nil || !there {
		return found, err
	}
	sets, err := listSets()
	if err != nil {
		return nil, err
	}
	for _, s := range sets {
		if name, _, ok := ownerOf(s); ok {
			at(name).sets = append(at(name).sets, s)
			continue
		}
		if s == setRealms || s == setDenied || s == setTried { // the last empties itself
			continue
		}
		keys, err := listMembers(s)
		if err != nil {
			return nil, err
		}
		for _, key := range keys {
			if len(key) < unix.IFNAMSIZ {
				continue
			}
			if dev := text(key[:unix.IFNAMSIZ]); isSlotName(dev) {
				at(dev).members = append(at(dev).members, member{s, key})
			}
		}
	}
	chains, err := listChains()
	if err != nil {
		return nil, err
	}
	for _, c := range chains {
		if name, generation, ok := ownerOf(c); ok {
			at(name).chains = append(at(name).chains, c)
			at(name).generation = max(at(name).generation, generation)
		}
	}
	return found, nil
}

// ownerOf reads the slot's name out of that of a chain or set made for it.
func ownerOf(object string) (name string, generation int, ok bool) {
	fields := strings.Split(object, "-") // custom-REALMxNUMBER-GENERATION, perhaps with more behind it
	if len(fields) < 3 || (fields[0] != "custom" && fields[0] != "exempt") {
		return "", 0, false
	}
	name = namePrefix + fields[1]
	generation, err := strconv.Atoi(fields[2])
	_, _, ok = parseName(name)
	return name, generation, ok && err == nil
}

// purge removes what is there of a slot.
func (b *batch) purge(p *parts) {
	for _, m := range p.members {
		if m.set == setFlows || m.set == setAsked { // made by packets
			b.drop(m.set, element{key: m.key})
		} else {
			b.del(m.set, element{key: m.key})
		}
	}
	for _, c := range p.chains {
		b.flushChain(c)
	}
	for _, c := range p.chains {
		b.delChain(c)
	}
	for _, s := range p.sets {
		b.delSet(s)
	}
}

// purge removes what the rules hold under a slot's name.
func (f *firewall) purge(name string, p *parts) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b batch
	b.purge(p)
	if err := f.commit(&b); err != nil {
		return fmt.Errorf("purge rules of %s: %w", name, err)
	}
	return nil
}
