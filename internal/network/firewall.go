package network

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/tartarus-sandbox/tartarus"
	"golang.org/x/sys/unix"
)

// firewall is the host's egress rules. The base is shared with other processes and changed only under the host's lock; what
// belongs to a slot is changed by its pool alone. Each change is one batch.
type firewall struct {
	log     *slog.Logger
	version string
	dnsPort uint16 // of our own resolver; like the next, set before the first slot
	webPort uint16 // of our own gate for web traffic

	mu    sync.Mutex
	slots map[string]*Slot // those that have a part of the table
	conn  *netlink.Conn    // opened when needed; closed after any error, so that no stale answer meets the next change
}

// applied is what the host's rules hold for a slot, apart from what every slot has.
type applied struct {
	rules      Rules
	generation int    // makes the names of chains and sets unlike those they replace
	chain      string // own rules, "" for none
	exempt     string
	pins       map[netip.Addr]pin
}

func newFirewall(log *slog.Logger) *firewall {
	return &firewall{log: log, version: baseVersion(), slots: map[string]*Slot{}}
}

func (f *firewall) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hangUp()
}

func (f *firewall) hangUp() {
	if f.conn != nil {
		f.conn.Close()
		f.conn = nil
	}
}

// commit makes one change. f.mu is held.
func (f *firewall) commit(b *batch) error {
	if f.conn == nil {
		conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return fmt.Errorf("open netfilter socket: %w", err)
		}
		f.conn = conn
	}
	err := b.commit(f.conn)
	if err != nil {
		f.hangUp()
	}
	return err
}

// ensure puts this build's base rules in place and leaves everything else in the table alone. The host's lock is held.
func (f *firewall) ensure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	there, err := f.baseThere()
	if err != nil || there == f.version {
		return err
	}
	var b batch
	b.addBase(f.version)
	err = f.commit(&b)
	if errors.Is(err, os.ErrExist) { // sets that another build shaped otherwise; what slots have in them, their owners restore
		b = batch{}
		b.delTable()
		b.addBase(f.version)
		err = f.commit(&b)
	}
	if err != nil {
		return fmt.Errorf("put base rules in place: %w", err)
	}
	return nil
}

func (b *batch) addBase(version string) {
	b.addTable()
	for i, s := range baseSets() {
		b.addSet(s, uint32(i+1))
	}
	b.flushSet(setDenied)
	b.put(setDenied, intervals(alwaysDenied)...)
	chains := baseChains()
	for _, c := range chains {
		b.addChain(c.name, c.hook)
	}
	for _, c := range chains {
		b.flushChain(c.name)
		for _, r := range c.rules {
			b.addRule(c.name, version, r...)
		}
	}
}

// baseThere is the version of the base rules that are in place; empty where there are none or not all of them. Every base rule carries
// the version as its comment, and the version says how many there are.
func (f *firewall) baseThere() (string, error) {
	there, err := tableExists()
	if err != nil {
		return "", tartarus.Errorf(tartarus.Unsupported, "network: nftables cannot be used here: %w", err)
	}
	if !there {
		return "", nil
	}
	chains, err := listChains()
	if err != nil {
		return "", err
	}
	version, count := "", 0
	for _, c := range chains {
		if _, _, owned := ownerOf(c); owned {
			continue
		}
		comments, err := listComments(c)
		if err != nil {
			return "", err
		}
		for _, comment := range comments {
			if comment == "" || (version != "" && comment != version) {
				return "", nil
			}
			version = comment
			count++
		}
	}
	if !strings.HasSuffix(version, versionCount(count)) {
		return "", nil
	}
	return version, nil
}

// removeWhenEmpty takes the table away when no realm is left in it. The host's lock is held.
func (f *firewall) removeWhenEmpty() (bool, error) {
	if there, err := tableExists(); err != nil || !there {
		return err == nil, err
	}
	members, err := listMembers(setRealms)
	if err != nil || len(members) > 0 {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var b batch
	b.delTable()
	if err := f.commit(&b); err != nil && !isMissing(err) {
		return false, fmt.Errorf("remove rules: %w", err)
	}
	return true, nil
}

func (f *firewall) addRealm(p netip.Prefix) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b batch
	b.drop(setRealms, intervals([]netip.Prefix{p})...) // the kernel calls a second identical interval an overlap
	b.put(setRealms, intervals([]netip.Prefix{p})...)
	if err := f.commit(&b); err != nil {
		return fmt.Errorf("add realm %s to rules: %w", p, err)
	}
	return nil
}

func (f *firewall) removeRealm(p netip.Prefix) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b batch
	b.drop(setRealms, intervals([]netip.Prefix{p})...)
	if err := f.commit(&b); err != nil && !isMissing(err) {
		return fmt.Errorf("remove realm %s from rules: %w", p, err)
	}
	return nil
}

func sourceKey(name string, a netip.Addr) []byte { return append(ifKey(name), a.AsSlice()...) }

// portKey is cable . port; parts of a key are padded to four bytes.
func portKey(name string, port uint16) []byte {
	return append(ifKey(name), byte(port>>8), byte(port), 0, 0)
}

func portData(port uint16) []byte { return []byte{byte(port >> 8), byte(port)} }

// addSlots lets packets with the slots' addresses in, towards rules that drop them all.
func (f *firewall) addSlots(slots []*Slot) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b batch
	for _, s := range slots {
		s.setRules(applied{generation: s.rules.generation})
	}
	b.basics(slots, f.dnsPort)
	if err := f.commit(&b); err != nil {
		return fmt.Errorf("add slots to rules: %w", err)
	}
	for _, s := range slots {
		f.slots[s.name] = s
	}
	return nil
}

// basics are what every slot has: its source, its counters, and the way to our resolver.
func (b *batch) basics(slots []*Slot, dnsPort uint16) {
	var sources, names, resolvers, services []element
	for _, s := range slots {
		resolvers = append(resolvers, element{key: sourceKey(s.name, s.gateway), data: portData(dnsPort)})
		services = append(services, element{key: portKey(s.name, dnsPort)})
		sources = append(sources, element{key: sourceKey(s.name, s.guest)})
		names = append(names, element{key: ifKey(s.name)})
	}
	b.put(setSources, sources...)
	b.drop(setDrops, names...) // counting starts from nothing
	b.drop(setFlows, names...)
	b.drop(setAsked, names...)
	b.put(setDrops, names...)
	if dnsPort != 0 {
		b.put(setServices, services...)
		b.put(mapDNS, resolvers...)
	}
}

// apply replaces the rules of a slot and tells whether those before let nothing out.
func (f *firewall) apply(s *Slot, r Rules) (wasClosed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := s.rules
	next := applied{rules: r, generation: old.generation + 1, pins: old.keptPins(r, time.Now())}
	var b batch
	b.unset(s, old, f.webPort)
	b.set(s, &next, f.webPort)
	if err := f.commit(&b); err != nil {
		return false, fmt.Errorf("change rules of %s: %w", s.name, err)
	}
	s.setRules(next)
	return !old.rules.Open && !old.rules.custom(), nil
}

// reapply replaces the rules of a slot whose part of the table is not as this process left it. What is there is looked
// up when it turns out to be something else than the caller believes.
func (f *firewall) reapply(s *Slot, there *parts, r Rules) error {
	err := f.restore(s, there, &r)
	if !isMissing(err) && !errors.Is(err, os.ErrExist) {
		return err
	}
	found, err := f.inventory()
	if err != nil {
		return err
	}
	return f.restore(s, found[s.name], &r)
}

// set adds what rules need, to a slot that has nothing but the basics.
func (b *batch) set(s *Slot, a *applied, webPort uint16) {
	r, me := a.rules, element{key: ifKey(s.name)}
	suffix := fmt.Sprintf("%s-%d", strings.TrimPrefix(s.name, namePrefix), a.generation)
	if len(r.Exempt) > 0 {
		a.exempt = "exempt-" + suffix
		b.addSet(set{name: a.exempt, key: nftables.TypeIPAddr, flags: unix.NFT_SET_INTERVAL}, 1)
		b.put(a.exempt, intervals(r.Exempt)...)
		b.addChain(a.exempt, nil)
		b.addRule(a.exempt, "", rule(daddr, in(a.exempt), jump(chainPermitted))...)
		b.put(mapExempt, element{key: me.key, chain: a.exempt})
	}
	if r.Mail {
		b.put(setMail, me)
	}
	if r.Proxy != nil {
		b.put(mapTCP, element{key: me.key, data: portData(webPort)})
	}
	if r.gated() {
		b.put(mapWeb, element{key: me.key, data: portData(webPort)})
		b.put(setServices, element{key: portKey(s.name, webPort)})
	}
	switch {
	case r.custom():
		a.chain = "custom-" + suffix
		b.customChain(a, time.Now())
		b.put(mapCustom, element{key: me.key, chain: a.chain})
	case r.Open:
		b.put(setOpen, me)
	}
}

// customChain makes the chain that judges what the base rules have let pass.
func (b *batch) customChain(a *applied, now time.Time) {
	b.addChain(a.chain, nil)
	if len(a.rules.Domains) > 0 {
		b.addRule(a.chain, "", rule(established, accept)...) // a connection outlives the answer that opened its way
	}
	list := func(what string, p []netip.Prefix, verdict part) {
		if len(p) == 0 {
			return
		}
		name := a.chain + "-" + what
		b.addSet(set{name: name, key: nftables.TypeIPAddr, flags: unix.NFT_SET_INTERVAL}, 2)
		b.put(name, intervals(p)...)
		b.addRule(a.chain, "", rule(daddr, in(name), verdict)...)
	}
	list("allow", a.rules.Allow, accept)
	list("deny", a.rules.Deny, jump(chainDropped))
	if len(a.rules.Domains) > 0 {
		b.addRule(a.chain, "", rule(isUDP, dport(443), jump(chainDropped))...) // QUIC hides the name it is for
		b.addPins(a, now)
		b.addRule(a.chain, "", rule(daddr, in(a.pinSet()), accept)...)
	}
	if a.rules.Open {
		b.addRule(a.chain, "", accept...)
	}
}

// unset removes what set added.
func (b *batch) unset(s *Slot, a applied, webPort uint16) {
	r, me := a.rules, element{key: ifKey(s.name)}
	if a.exempt != "" {
		b.del(mapExempt, me)
		b.delChainAndSets(a.exempt, a.exempt)
	}
	if r.Mail {
		b.del(setMail, me)
	}
	if r.Proxy != nil {
		b.del(mapTCP, me)
	}
	if r.gated() {
		b.del(mapWeb, me)
		b.del(setServices, element{key: portKey(s.name, webPort)})
	}
	switch {
	case a.chain != "":
		b.del(mapCustom, me)
		var sets []string
		if len(r.Allow) > 0 {
			sets = append(sets, a.chain+"-allow")
		}
		if len(r.Deny) > 0 {
			sets = append(sets, a.chain+"-deny")
		}
		if len(r.Domains) > 0 {
			sets = append(sets, a.pinSet())
		}
		b.delChainAndSets(a.chain, sets...)
	case r.Open:
		b.del(setOpen, me)
	}
}

func (b *batch) delChainAndSets(chain string, sets ...string) {
	b.flushChain(chain)
	b.delChain(chain)
	for _, name := range sets {
		b.delSet(name)
	}
}

// removeSlots takes everything of the slots out of the rules.
func (f *firewall) removeSlots(slots []*Slot) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b batch
	var sources, names, resolvers, services []element
	for _, s := range slots {
		delete(f.slots, s.name)
		b.unset(s, s.rules, f.webPort)
		s.setRules(applied{generation: s.rules.generation})
		sources = append(sources, element{key: sourceKey(s.name, s.guest)})
		names = append(names, element{key: ifKey(s.name)})
		resolvers = append(resolvers, element{key: sourceKey(s.name, s.gateway), data: portData(f.dnsPort)})
		services = append(services, element{key: portKey(s.name, f.dnsPort)})
	}
	b.drop(setSources, sources...)
	b.drop(setDrops, names...)
	b.drop(setFlows, names...)
	b.drop(setAsked, names...)
	if f.dnsPort != 0 {
		b.drop(setServices, services...)
		b.drop(mapDNS, resolvers...)
	}
	if err := f.commit(&b); err != nil && !isMissing(err) {
		return fmt.Errorf("remove slots from rules: %w", err)
	}
	return nil
}

// heal puts everything back when the table, or part of its base, is missing. The host's lock is held.
func (f *firewall) heal(realms []netip.Prefix) (bool, error) {
	f.mu.Lock()
	slots := slices.Collect(maps.Values(f.slots))
	there, err := f.baseThere()
	f.mu.Unlock()
	if err != nil || there != "" { // that of another build will do: two that put their own back would never end
		return false, err
	}
	if err := f.ensure(); err != nil {
		return false, err
	}
	for _, r := range realms {
		if err := f.addRealm(r); err != nil {
			return false, err
		}
	}
	found, err := f.inventory()
	if err != nil {
		return false, err
	}
	for _, s := range slots {
		if err := f.restore(s, found[s.name], nil); err != nil {
			return false, err
		}
	}
	return true, nil
}

// restore brings a slot's part of the rules to what it should be (r, or what it was when r is nil), given what is there now.
func (f *firewall) restore(s *Slot, there *parts, r *Rules) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := applied{rules: s.rules.rules, generation: s.rules.generation + 1}
	if r != nil {
		next.rules = *r
	}
	next.pins = s.rules.keptPins(next.rules, time.Now())
	if r == nil && f.slots[s.name] != s {
		return nil // taken down meanwhile
	}
	var b batch
	if there != nil {
		next.generation = max(next.generation, there.generation+1)
		b.purge(there)
	}
	b.basics([]*Slot{s}, f.dnsPort)
	b.set(s, &next, f.webPort)
	if err := f.commit(&b); err != nil {
		return fmt.Errorf("restore rules of %s: %w", s.name, err)
	}
	s.setRules(next)
	f.slots[s.name] = s
	return nil
}
