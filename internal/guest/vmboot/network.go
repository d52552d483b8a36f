package vmboot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/guest/handover"
)

// device is the guest's only network device.
const device = "eth0"

// configure gives the device its addresses and brings it up. The old calls are used because four of them do, and a netlink library would
// make the agent a tenth larger.
func configure(i handover.Interface) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("configure network: %w", err)
	}
	defer unix.Close(fd)
	link, err := waitDevice()
	if err != nil {
		return err
	}
	c := control{fd: fd}
	if mac, err := net.ParseMAC(i.MAC); err == nil && link.HardwareAddr.String() != mac.String() {
		c.hardware(mac)
	}
	if i.MTU > 0 {
		c.number("set mtu", unix.SIOCSIFMTU, uint32(i.MTU))
	}
	c.address("set address", unix.SIOCSIFADDR, i.Address.Addr())
	c.address("set netmask", unix.SIOCSIFNETMASK, mask(i.Address.Bits()))
	c.up()
	if i.Gateway.Is4() {
		if mac, err := net.ParseMAC(i.GatewayMAC); err == nil {
			c.neighbour(i.Gateway, mac)
		}
		c.defaultRoute(i.Gateway)
	}
	return c.err
}

// waitDevice waits until the device is there: its driver has just been loaded.
func waitDevice() (*net.Interface, error) {
	for deadline := time.Now().Add(diskTime); ; time.Sleep(2 * time.Millisecond) {
		link, err := net.InterfaceByName(device)
		if err == nil {
			return link, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("find network device: %w", err)
		}
	}
}

func mask(bits int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], ^uint32(0)<<(32-bits))
	return netip.AddrFrom4(b)
}

// control makes ioctl calls on the device until one fails.
type control struct {
	fd  int
	err error
}

func (c *control) request(what string, fill func(*unix.Ifreq) error, call uint) {
	if c.err != nil {
		return
	}
	r, err := unix.NewIfreq(device)
	if err == nil {
		err = fill(r)
	}
	if err == nil {
		err = unix.IoctlIfreq(c.fd, call, r)
	}
	if err != nil {
		c.err = fmt.Errorf("%s of %s: %w", what, device, err)
	}
}

func (c *control) number(what string, call uint, n uint32) {
	c.request(what, func(r *unix.Ifreq) error { r.SetUint32(n); return nil }, call)
}

func (c *control) address(what string, call uint, a netip.Addr) {
	c.request(what, func(r *unix.Ifreq) error { return r.SetInet4Addr(a.AsSlice()) }, call)
}

func (c *control) up() {
	c.request("bring up", func(r *unix.Ifreq) error {
		r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		return nil
	}, unix.SIOCSIFFLAGS)
}

// raw is a call on a structure of the kernel's.
func (c *control) raw(what string, call uintptr, p unsafe.Pointer, ignore ...error) {
	if c.err != nil {
		return
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), call, uintptr(p)); errno != 0 {
		for _, e := range ignore {
			if errors.Is(errno, e) {
				return
			}
		}
		c.err = fmt.Errorf("%s of %s: %w", what, device, errno)
	}
}

// sockaddr is struct sockaddr.
type sockaddr struct {
	family uint16
	data   [14]byte
}

func inet(a netip.Addr) (s sockaddr) {
	s.family = unix.AF_INET
	b := a.As4()
	copy(s.data[2:], b[:])
	return s
}

// hardware sets the hardware address, which needs a device that is down in some drivers; ours takes it at any time.
func (c *control) hardware(mac net.HardwareAddr) {
	r := struct {
		name [unix.IFNAMSIZ]byte
		addr sockaddr
		rest [8]byte
	}{}
	copy(r.name[:], device)
	r.addr.family = unix.ARPHRD_ETHER
	copy(r.addr.data[:], mac)
	c.raw("set hardware address", unix.SIOCSIFHWADDR, unsafe.Pointer(&r))
}

// neighbour makes the gateway a permanent neighbour: nothing waits for ARP.
func (c *control) neighbour(ip netip.Addr, mac net.HardwareAddr) {
	r := struct {
		protocol, hardware sockaddr
		flags              int32
		netmask            sockaddr
		device             [16]byte
	}{protocol: inet(ip), flags: 0x02 | 0x04} // ATF_COM, ATF_PERM
	r.hardware.family = unix.ARPHRD_ETHER
	copy(r.hardware.data[:], mac)
	copy(r.device[:], device)
	c.raw("set neighbour", unix.SIOCSARP, unsafe.Pointer(&r))
}

// defaultRoute is gone with the address that it used, so it is only ever added.
func (c *control) defaultRoute(gateway netip.Addr) {
	r := struct {
		pad1                  uintptr
		dst, gateway, genmask sockaddr
		flags                 uint16
		pad2                  int16
		pad3                  uintptr
		tos, class            uint8
		pad4                  [3]int16
		metric                int16
		device                *byte
		mtu, window           uintptr
		irtt                  uint16
	}{dst: inet(netip.IPv4Unspecified()), gateway: inet(gateway), genmask: inet(netip.IPv4Unspecified()), flags: unix.RTF_UP | unix.RTF_GATEWAY}
	c.raw("set default route", unix.SIOCADDRT, unsafe.Pointer(&r), unix.EEXIST)
}

// Listen takes on new addresses that the host tells, until ctx ends. It does nothing on a machine without a network.
func (g *Guest) Listen(ctx context.Context, log *slog.Logger) {
	if g.Machine.Interface == nil {
		return
	}
	link, err := waitDevice()
	if err != nil {
		log.Error("no network device", "error", err)
		return
	}
	s, err := handover.Listen(link.Index, handover.EtherType)
	if err != nil {
		log.Error("host cannot be heard", "error", err)
		return
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, handover.MaxFrame)
	for ctx.Err() == nil {
		n, err := s.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil { // the device goes down for a moment when its address changes
			time.Sleep(time.Millisecond)
			continue
		}
		m, reply, ok := handover.Answer(buf[:n], link.HardwareAddr)
		if !ok {
			continue
		}
		if err := g.become(m); err != nil {
			log.Error("new identity not taken on", "error", err)
			continue
		}
		_, _ = s.Write(reply) // one that is lost is asked for again
	}
}
