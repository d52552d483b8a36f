package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// build makes the slots' namespaces and cables. Rules come first: until they are there, the base rules drop what a cable brings.
// Those that cannot be built are taken down again.
func (p *Pool) build(slots []*Slot) error {
	var errs error
	inside := make([]*netlink.Handle, len(slots))
	threadErr := p.host.onThread(func() error {
		for i, s := range slots {
			var err error
			if inside[i], err = p.buildOne(s); err != nil {
				errs = errors.Join(errs, fmt.Errorf("make slot %s: %w", s.name, err), p.host.back())
			}
		}
		return nil
	})
	for i, s := range slots {
		if inside[i] == nil {
			continue
		}
		if err := errors.Join(settle(inside[i], guestLink), settle(p.host.links, s.name)); err != nil {
			errs = errors.Join(errs, fmt.Errorf("make slot %s: %w", s.name, err))
		}
		inside[i].Close()
	}
	return errors.Join(errs, threadErr)
}

// settle waits until a device carries packets. The kernel starts the end of a cable that was brought up first a moment after the other one,
// and drops without a word what is sent before: a connection's first packet, which is sent again only after a second.
func settle(h *netlink.Handle, device string) error {
	const patience = 2 * time.Second
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		l, err := h.LinkByName(device)
		if err != nil {
			return fmt.Errorf("find %s: %w", device, err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not come up: it is %s", device, l.Attrs().OperState)
		}
	}
}

// buildOne makes one slot and leaves the calling thread in the host's namespace. The handle it returns reaches inside.
func (p *Pool) buildOne(s *Slot) (inside *netlink.Handle, err error) {
	if err := p.host.newNamespace(s); err != nil {
		return nil, err
	}
	if inside, err = newLinks(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			inside.Close()
			inside = nil
		}
	}()
	if s.kind == TAP {
		if err := makeTAP(); err != nil {
			return inside, err
		}
	}
	if err := p.host.back(); err != nil {
		return inside, err
	}
	if err := p.host.addCable(s); err != nil {
		return inside, err
	}
	if s.kind == TAP {
		err = bridgeTAP(inside, s)
	} else {
		err = dressGuest(inside, s)
	}
	if err != nil {
		return inside, err
	}
	return inside, p.host.dressHostEnd(s)
}

// newNamespace makes a namespace, pins it under the slot's name, and leaves the calling thread in it.
func (h *host) newNamespace(s *Slot) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("create namespace: %w", err)
	}
	// The guest's device never gets an IPv6 address; its loopback keeps ::1.
	if err := sysctl("ipv6/conf/default/disable_ipv6", "1"); err != nil {
		return err
	}
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("create namespace handle: %w", err)
	}
	f.Close()
	if err := unix.Mount("/proc/thread-self/ns/net", s.path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}
	s.inode, err = inodeOf(s.path)
	return err
}

func inodeOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat namespace: %w", err)
	}
	return st.Ino, nil
}

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err) // our own constants
	}
	return m
}

// addCable makes the veth pair with each end in its place from the start. The calling thread is in the host's namespace.
func (h *host) addCable(s *Slot) error {
	ns, err := os.Open(s.path)
	if err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	defer ns.Close()
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.HardwareAddr, a.TxQLen = s.name, s.mtu, mac(gatewayMAC), 1000
	v := netlink.NewVeth(a)
	v.PeerName, v.PeerMTU, v.PeerNamespace = guestLink, uint32(s.mtu), netlink.NsFd(int(ns.Fd()))
	v.PeerHardwareAddr = mac(guestMAC)
	if s.kind == TAP {
		v.PeerHardwareAddr = mac(portMAC)
	}
	if err := h.links.LinkAdd(v); err != nil {
		return fmt.Errorf("create veth pair: %w", err)
	}
	return nil
}

// hostEndSysctls make the host's end answer for nothing but its own address. (Directories are those below net/.)
var hostEndSysctls = []struct{ name, value string }{
	{"ipv4/conf/%s/rp_filter", "1"},
	{"ipv4/conf/%s/arp_ignore", "1"}, // no answer for the host's other addresses
	{"ipv4/conf/%s/arp_announce", "2"},
	{"ipv4/conf/%s/proxy_arp", "0"},
	{"ipv4/conf/%s/accept_redirects", "0"},
	{"ipv4/conf/%s/send_redirects", "0"},
	{"ipv4/conf/%s/accept_source_route", "0"},
	{"ipv4/conf/%s/accept_local", "0"},
	{"ipv4/conf/%s/route_localnet", "0"},
	{"ipv4/conf/%s/forwarding", "1"},
	{"ipv6/conf/%s/disable_ipv6", "1"},
}

// dressHostEnd gives the host's end its address and the guest as a permanent neighbour. The calling thread is in the host's namespace.
func (h *host) dressHostEnd(s *Slot) error {
	for _, c := range hostEndSysctls {
		if err := sysctl(fmt.Sprintf(c.name, s.name), c.value); err != nil {
			return err
		}
	}
	l, err := h.links.LinkByName(s.name)
	if err != nil {
		return fmt.Errorf("find host end: %w", err)
	}
	return dress(h.links, l, s.gateway, s.guest, guestMAC)
}

// dressGuest brings the inside to what a machine expects to find; it changes nothing that is right already.
func dressGuest(inside *netlink.Handle, s *Slot) error {
	lo, err := inside.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := inside.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	l, err := inside.LinkByName(guestLink)
	if err != nil {
		return fmt.Errorf("find guest end: %w", err)
	}
	if err := dress(inside, l, s.guest, s.gateway, gatewayMAC); err != nil {
		return err
	}
	err = inside.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: s.gateway.AsSlice(), Dst: nil})
	if err != nil {
		return fmt.Errorf("set default route: %w", err)
	}
	return nil
}

// dress gives a cable's end its address, brings it up, and makes the other end a permanent neighbour: no start waits for ARP.
func dress(h *netlink.Handle, l netlink.Link, own, peer netip.Addr, peerMAC string) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: own.AsSlice(), Mask: net.CIDRMask(31, 32)}}
	if err := h.AddrReplace(l, addr); err != nil {
		return fmt.Errorf("set address %s: %w", own, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring link up: %w", err)
	}
	n := &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: peer.AsSlice(), HardwareAddr: mac(peerMAC)}
	if err := h.NeighSet(n); err != nil {
		return fmt.Errorf("set neighbour %s: %w", peer, err)
	}
	return nil
}

// sysctl sets a value of the calling thread's namespace, unless it is that already. A kernel without IPv6 lacks its names.
func sysctl(name, value string) error {
	path := filepath.Join("/proc/sys/net", name)
	err := os.WriteFile(path, []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(name, "ipv6/") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}

// errUnclean says that a slot cannot be used again and has to be made anew.
var errUnclean = errors.New("slot is not clean")

// reset brings a slot that came back to the state of a new one. Runtimes take the address off the guest's end.
// A slot in which anything still holds a socket is refused: nothing of the old sandbox may hear the new one.
func (p *Pool) reset(s *Slot) error {
	return p.host.onThread(func() error {
		if inode, err := inodeOf(s.path); err != nil || inode != s.inode {
			return fmt.Errorf("%w: namespace was replaced: %w", errUnclean, err)
		}
		if err := p.host.enter(s.name); err != nil {
			return err
		}
		if err := noSockets(); err != nil {
			return err
		}
		inside, err := newLinks()
		if err != nil {
			return err
		}
		defer inside.Close()
		if s.kind == TAP {
			if err := disownTAP(); err != nil {
				return err
			}
		}
		if err := p.host.back(); err != nil {
			return err
		}
		if err := onlyOurLinks(inside, s.kind); err != nil {
			return err
		}
		if s.kind == Veth {
			if err := dressGuest(inside, s); err != nil {
				return err
			}
		}
		return p.host.redressHostEnd(s)
	})
}

// redressHostEnd renews what somebody on the host may have changed since the slot was made.
func (h *host) redressHostEnd(s *Slot) error {
	l, err := h.links.LinkByName(s.name)
	if err != nil {
		return fmt.Errorf("find host end: %w", err)
	}
	return dress(h.links, l, s.gateway, s.guest, guestMAC)
}

// noSockets checks the calling thread's namespace. The kernel counts a closed socket for some milliseconds more.
func noSockets() error {
	const patience = 250 * time.Millisecond
	for wait := time.Millisecond; ; wait *= 2 {
		b, err := os.ReadFile("/proc/thread-self/net/sockstat")
		if err != nil {
			return fmt.Errorf("count sockets: %w", err)
		}
		first, _, _ := strings.Cut(string(b), "\n")
		if first == "sockets: used 0" {
			return nil
		}
		if wait > patience {
			return fmt.Errorf("%w: %s", errUnclean, first)
		}
		time.Sleep(wait)
	}
}

func onlyOurLinks(inside *netlink.Handle, kind Kind) error {
	links, err := whole(inside.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	want := map[string]bool{"lo": true, guestLink: true}
	if kind == TAP {
		want[tapLink], want[bridgeLink] = true, true
	}
	for _, l := range links {
		if !want[l.Attrs().Name] {
			return fmt.Errorf("%w: it has a device %s", errUnclean, l.Attrs().Name)
		}
		delete(want, l.Attrs().Name)
	}
	if len(want) > 0 {
		return fmt.Errorf("%w: a device is missing", errUnclean)
	}
	return nil
}

// doomedGroup marks links that are to be removed together. (The letters "tart".)
const doomedGroup = 0x74617274

// tearDown removes slots' cables and namespaces, whatever is there of them. The kernel waits tens of milliseconds for every
// removal of a link, so that all go in one.
func (h *host) tearDown(names ...string) error {
	var errs error
	found := 0
	for _, name := range names {
		l, err := h.links.LinkByName(name)
		if err == nil {
			found++
			err = h.links.LinkSetGroup(l, doomedGroup)
		}
		if _, absent := errors.AsType[netlink.LinkNotFoundError](err); err != nil && !absent {
			errs = errors.Join(errs, fmt.Errorf("find link %s: %w", name, err))
		}
	}
	if found > 0 {
		req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(doomedGroup)))
		// Another process may have removed ours together with its own.
		if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = errors.Join(errs, fmt.Errorf("remove links: %w", err))
		}
	}
	for _, name := range names {
		errs = errors.Join(errs, h.dropNamespace(name))
	}
	return errs
}
