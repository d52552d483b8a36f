package gvisor

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/config"

	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// guestDevice is what the guest calls its network device.
const guestDevice = "eth0"

// openDevice opens a packet socket on the slot's device, in whose namespace the calling thread must be. The guest's
// address is taken off the device: two network stacks must not answer for it.
func openDevice(i *vmm.Interface) (*os.File, error) {
	link, err := netlink.LinkByName(i.Device)
	if err != nil {
		return nil, fmt.Errorf("find network device %s: %w", i.Device, err)
	}
	if i.Address.IsValid() {
		ip := &net.IPNet{IP: i.Address.Addr().AsSlice(), Mask: net.CIDRMask(i.Address.Bits(), i.Address.Addr().BitLen())}
		if err := netlink.AddrDel(link, &netlink.Addr{IPNet: ip}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil, fmt.Errorf("take address off network device %s: %w", i.Device, err)
		}
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // protocol 0: bind is quicker so
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "packet")
	const allProtocols = 0x0300 // ETH_P_ALL in network order
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: link.Attrs().Index}); err != nil {
		f.Close()
		return nil, fmt.Errorf("bind packet socket to %s: %w", i.Device, err)
	}
	// The host cuts large segments only where the packet leaves it.
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		f.Close()
		return nil, fmt.Errorf("set up packet socket on %s: %w", i.Device, err)
	}
	const buffer = 4 << 20 // runsc's measure: less drops packets at high rates
	for _, opt := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, buffer) // without it: slower, not wrong
	}
	return f, nil
}

// gsoMaxSize is the largest segment handed to the host in one piece: Linux's own limit for devices that do not
// say otherwise.
const gsoMaxSize = 65536

// links describes the guest's network to the sandbox. device is nil for a guest without one.
func links(conf *config.Config, i *vmm.Interface, device *os.File, restore bool) (*boot.CreateLinksAndRoutesArgs, error) {
	loopback := boot.DefaultLoopbackLink
	loopback.GVisorGRO = conf.GVisorGRO
	args := &boot.CreateLinksAndRoutesArgs{LoopbackLinks: []boot.LoopbackLink{loopback}, IsRestore: restore}
	if i == nil {
		return args, nil
	}
	mac, err := net.ParseMAC(i.MAC)
	if err != nil {
		return nil, fmt.Errorf("parse guest hardware address: %w", err)
	}
	mtu := i.MTU
	if mtu == 0 {
		mtu = 1500
	}
	link := boot.FDBasedLink{
		Name: guestDevice, MTU: mtu, LinkAddress: mac, GSOMaxSize: gsoMaxSize, QDisc: conf.QDisc,
		TXChecksumOffload: conf.TXChecksumOffload, RXChecksumOffload: conf.RXChecksumOffload,
		NumChannels: 1, GVisorGRO: conf.GVisorGRO,
		Addresses: []boot.IPWithPrefix{{Address: i.Address.Addr().AsSlice(), PrefixLen: i.Address.Bits()}},
		Routes:    []boot.Route{{Destination: ipNet(i.Address.Masked())}},
	}
	if i.Gateway.IsValid() {
		if !i.Address.Contains(i.Gateway) {
			link.Routes = append(link.Routes, boot.Route{Destination: ipNet(netip.PrefixFrom(i.Gateway, i.Gateway.BitLen()))})
		}
		route := boot.DefaultRoute{Name: guestDevice, Route: boot.Route{
			Destination: ipNet(netip.PrefixFrom(unspecified(i.Gateway), 0)), Gateway: i.Gateway.AsSlice(),
		}}
		if i.Gateway.Is4() {
			args.Defaultv4Gateway = route
		} else {
			args.Defaultv6Gateway = route
		}
		if i.GatewayMAC != "" {
			hw, err := net.ParseMAC(i.GatewayMAC)
			if err != nil {
				return nil, fmt.Errorf("parse gateway hardware address: %w", err)
			}
			link.Neighbors = []boot.Neighbor{{IP: i.Gateway.AsSlice(), HardwareAddr: hw}}
		}
	}
	args.FDBasedLinks = []boot.FDBasedLink{link}
	args.FilePayload.Files = []*os.File{device}
	return args, nil
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
