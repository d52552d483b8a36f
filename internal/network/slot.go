package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// namePrefix begins the name of everything a pool puts on the host; the base rules judge whatever comes in from
// a device with this beginning, known or not.
const namePrefix = "tart"

const (
	// The two ends of every cable have the same addresses in every slot: each cable is a network of its own, and a
	// snapshot restored in another slot finds the gateway where it left it. Locally administered, unicast.
	guestMAC   = "02:74:61:72:74:02"
	gatewayMAC = "02:74:61:72:74:01"
	// The cable's inner end where it is a bridge's port: a bridge keeps frames for its ports' own addresses to itself.
	portMAC = "02:74:61:72:74:03"

	guestLink  = "eth0" // the cable's end inside the namespace
	tapLink    = "tap0"
	bridgeLink = "br0"
)

type state int

const (
	making state = iota
	ready
	held
	dirty
	gone
)

// Slot is one sandbox's piece of network. What it returns never changes during its life.
type Slot struct {
	name    string
	kind    Kind
	gateway netip.Addr // host's end
	guest   netip.Addr
	mtu     int
	path    string
	inode   uint64 // of the namespace
	state   state  // under Pool.mu

	rules   applied               // under firewall.mu: what the host's rules hold for this slot
	current atomic.Pointer[Rules] // the same rules, for who serves the slot's packets
}

// setRules notes what the host's rules hold now. firewall.mu is held.
func (s *Slot) setRules(a applied) {
	s.rules = a
	s.current.Store(&a.rules)
}

// Record is what a later process needs to take the slot over.
type Record struct {
	Name  string `json:"name"`
	Kind  Kind   `json:"kind"`
	Inode uint64 `json:"inode"` // of its network namespace
}

// Name is the slot's name on the host: that of the cable's host end, its namespace handle and its rules.
func (s *Slot) Name() string { return s.name }

// Kind is the sort of device that Interface names.
func (s *Slot) Kind() Kind { return s.kind }

// Address is the guest's address.
func (s *Slot) Address() netip.Addr { return s.guest }

// Gateway is the address of the host's end, which is also the guest's name server.
func (s *Slot) Gateway() netip.Addr { return s.gateway }

// Record describes the slot for Pool.Adopt.
func (s *Slot) Record() Record { return Record{Name: s.name, Kind: s.kind, Inode: s.inode} }

// Interface is what a driver needs to connect a machine.
func (s *Slot) Interface() *vmm.Interface {
	device := guestLink
	if s.kind == TAP {
		device = tapLink
	}
	return &vmm.Interface{
		NetNS: s.path, Device: device, MAC: guestMAC, MTU: s.mtu,
		Address: netip.PrefixFrom(s.guest, 31),
		Gateway: s.gateway, GatewayMAC: gatewayMAC,
	}
}

func slotName(realm, number int) string { return fmt.Sprintf("%s%dx%d", namePrefix, realm, number) }

// parseName takes a slot name apart. Only what slotName can have made is accepted.
func parseName(name string) (realm, number int, ok bool) {
	rest, ok := strings.CutPrefix(name, namePrefix)
	if !ok {
		return 0, 0, false
	}
	a, b, ok := strings.Cut(rest, "x")
	if !ok {
		return 0, 0, false
	}
	realm, err1 := strconv.Atoi(a)
	number, err2 := strconv.Atoi(b)
	if err1 != nil || err2 != nil || realm < 0 || number < 0 || number >= slotsPerRealm || slotName(realm, number) != name {
		return 0, 0, false
	}
	return realm, number, true
}

func isSlotName(name string) bool { _, _, ok := parseName(name); return ok }

// pair gives the two addresses of a slot: the host's is the even one.
func (r *realm) pair(number int) (gateway, guest netip.Addr) {
	b := r.prefix.Addr().As4()
	n := binary.BigEndian.Uint32(b[:]) + uint32(number)*2
	binary.BigEndian.PutUint32(b[:], n)
	gateway = netip.AddrFrom4(b)
	return gateway, gateway.Next()
}

// realmOf finds the claimed realm that a slot name belongs to; nil when it is not ours. The pool's lock is held,
// or nothing else runs.
func (p *Pool) realmOf(name string) *realm {
	number, _, ok := parseName(name)
	if !ok {
		return nil
	}
	for _, r := range p.realms {
		if r.number == number {
			return r
		}
	}
	return nil
}

func (p *Pool) ours(name string) bool { return p.realmOf(name) != nil }

// newSlot reserves a free number; nil when every realm is full. The pool's lock is held.
func (p *Pool) newSlot(kind Kind) *Slot {
	for _, r := range p.realms {
		for i := range slotsPerRealm {
			number := (r.next + i) % slotsPerRealm
			name := slotName(r.number, number)
			if _, taken := p.slots[name]; taken {
				continue
			}
			if _, taken := p.foreign[name]; taken {
				continue
			}
			r.next = number + 1
			s := p.slotAt(r, number, kind)
			p.slots[name] = s
			return s
		}
	}
	return nil
}

func (p *Pool) slotAt(r *realm, number int, kind Kind) *Slot {
	name := slotName(r.number, number)
	gateway, guest := r.pair(number)
	return &Slot{name: name, kind: kind, gateway: gateway, guest: guest, mtu: p.mtu, path: p.host.nsPath(name), state: making}
}
