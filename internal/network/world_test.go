package network

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// world is what lies beyond the host in the tests: a namespace at the end of the host's uplink that has every
// address the tests send to, so that a packet is missing there only if the host did not forward it.
type world struct {
	t    testing.TB
	path string
	h    *host // for its threads
	eyes []*eye
}

const (
	hostAddr  = "198.51.100.1" // of the host on its uplink
	worldAddr = "198.51.100.2"
	hostLink  = "uplink"
)

var worldAddrs = []string{"203.0.113.10", "203.0.113.11", "9.9.9.9", "10.1.2.3", "100.64.1.1", "169.254.169.254", "172.16.3.3",
	"192.0.0.8", "192.168.5.5", "198.19.255.1", "240.0.0.1"}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newWorld lays the uplink of the test's host.
func newWorld(t testing.TB) *world {
	needRoot(t)
	h, err := openHost(t.TempDir())
	must(t, err)
	must(t, h.mountNamespaces())
	w := &world{t: t, path: h.nsPath("world"), h: h}
	s := &Slot{name: "world", path: w.path}
	must(t, h.onThread(func() error {
		if err := h.newNamespace(s); err != nil {
			return err
		}
		in, err := newLinks()
		if err != nil {
			return err
		}
		defer in.Close()
		if err := h.back(); err != nil {
			return err
		}
		return w.connect(in)
	}))
	t.Cleanup(w.close)
	return w
}

func (w *world) connect(in *netlink.Handle) error {
	ns, err := os.Open(w.path)
	if err != nil {
		return err
	}
	defer ns.Close()
	a := netlink.NewLinkAttrs()
	a.Name = hostLink
	v := netlink.NewVeth(a)
	v.PeerName, v.PeerNamespace = "outside", netlink.NsFd(int(ns.Fd()))
	if err := w.h.links.LinkAdd(v); err != nil {
		return err
	}
	up := func(h *netlink.Handle, name string, addrs ...string) error {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		for _, s := range addrs {
			addr, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			if err := h.AddrAdd(l, addr); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
		return h.LinkSetUp(l)
	}
	if err := up(w.h.links, "lo"); err != nil {
		return err
	}
	if err := up(w.h.links, hostLink, hostAddr+"/24"); err != nil {
		return err
	}
	if err := up(in, "outside", worldAddr+"/24"); err != nil {
		return err
	}
	var all []string
	for _, s := range worldAddrs {
		all = append(all, s+"/32")
	}
	if err := up(in, "lo", all...); err != nil {
		return err
	}
	if err := in.RouteAdd(&netlink.Route{Dst: cidr("198.18.0.0/15"), Gw: net.ParseIP(hostAddr)}); err != nil {
		return err
	}
	return w.h.links.RouteAdd(&netlink.Route{Gw: net.ParseIP(worldAddr)})
}

func cidr(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return n
}

func (w *world) close() {
	for _, e := range w.eyes {
		e.close()
	}
	if l, err := w.h.links.LinkByName(hostLink); err == nil {
		must(w.t, w.h.links.LinkDel(l))
	}
	must(w.t, w.h.dropNamespace("world"))
	must(w.t, w.h.unmountNamespaces())
	w.h.close()
}

// within runs f on a thread in the namespace at path; sockets made there stay there.
func (w *world) within(path string, f func() error) {
	w.t.Helper()
	must(w.t, w.h.onThread(func() error {
		ns, err := os.Open(path)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	}))
}

// eye sees every packet that arrives at one place.
type eye struct {
	name string
	fd   int
	conn net.PacketConn
	done chan struct{}

	mu   sync.Mutex
	seen [][]byte
}

// watchLink opens an eye on a device in a namespace.
func (w *world) watchLink(name, path, device string) {
	w.t.Helper()
	e := &eye{name: name, done: make(chan struct{})}
	w.within(path, func() (err error) { e.fd, err = packetSocket(device); return err })
	f := os.NewFile(uintptr(e.fd), name)
	go e.look(f.Read)
	e.conn = fileConn{f}
	w.eyes = append(w.eyes, e)
}

type fileConn struct{ *os.File }

func (fileConn) ReadFrom([]byte) (int, net.Addr, error) { return 0, nil, nil }
func (fileConn) WriteTo([]byte, net.Addr) (int, error)  { return 0, nil }
func (fileConn) LocalAddr() net.Addr                    { return nil }

// watchPort opens an eye on a UDP port of the host, at every address.
func (w *world) watchPort(name string, port int) {
	w.t.Helper()
	c, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
	must(w.t, err)
	e := &eye{name: name, conn: c, done: make(chan struct{})}
	go e.look(func(b []byte) (int, error) { n, _, err := c.ReadFrom(b); return n, err })
	w.eyes = append(w.eyes, e)
}

func (e *eye) look(read func([]byte) (int, error)) {
	defer close(e.done)
	buf := make([]byte, 4096)
	for {
		n, err := read(buf)
		if err != nil {
			return
		}
		e.mu.Lock()
		e.seen = append(e.seen, bytes.Clone(buf[:n]))
		e.mu.Unlock()
	}
}

func (e *eye) close() {
	e.conn.Close()
	<-e.done
}

func (e *eye) saw(mark []byte) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.seen {
		if bytes.Contains(p, mark) {
			return true
		}
	}
	return false
}

// whoSaw names the first eye that saw the mark.
func (w *world) whoSaw(mark []byte) string {
	for _, e := range w.eyes {
		if e.saw(mark) {
			return e.name
		}
	}
	return ""
}

// packetSocket is what a runtime opens on the guest's end. Only packets that come in are delivered.
func packetSocket(device string) (int, error) {
	iface, err := net.InterfaceByName(device)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return -1, err
	}
	all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: iface.Index})
}

// wire sends raw frames from a slot, as a compromised guest would.
type wire struct {
	t    testing.TB
	fd   int
	slot *Slot
}

func (w *world) wire(s *Slot) *wire {
	w.t.Helper()
	x := &wire{t: w.t, slot: s}
	w.within(s.path, func() (err error) { x.fd, err = packetSocket(guestLink); return err })
	w.t.Cleanup(func() { unwire(x) })
	return x
}

// unwire lets go of the slot, once.
func unwire(x *wire) {
	if x.fd >= 0 {
		unix.Close(x.fd)
		x.fd = -1
	}
}

func (x *wire) send(frame []byte) {
	x.t.Helper()
	if _, err := unix.Write(x.fd, frame); err != nil {
		x.t.Fatalf("send frame: %v", err)
	}
}

var markCount atomic.Uint32

// newMark makes a payload that no other packet of the run has.
func newMark() []byte { return fmt.Appendf(nil, "<<mark-%08d>>", markCount.Add(1)) }

// packet is one to send.
type packet struct {
	src, dst netip.Addr
	proto    uint8
	port     uint16
	v6       bool
}

func ether(proto uint16, payload []byte) []byte {
	f := append([]byte(mac(gatewayMAC)), mac(guestMAC)...)
	return append(binary.BigEndian.AppendUint16(f, proto), payload...)
}

func (p packet) frame(mark []byte) []byte {
	l4 := p.transport(mark)
	if p.v6 {
		h := []byte{0x60, 0, 0, 0, 0, 0, p.proto, 64}
		binary.BigEndian.PutUint16(h[4:], uint16(len(l4)))
		src, dst := p.src.As16(), p.dst.As16()
		return ether(unix.ETH_P_IPV6, append(append(append(h, src[:]...), dst[:]...), l4...))
	}
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, p.proto
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(l4)))
	copy(h[12:], p.src.AsSlice())
	copy(h[16:], p.dst.AsSlice())
	binary.BigEndian.PutUint16(h[10:], ^fold(h, 0))
	return ether(unix.ETH_P_IP, append(h, l4...))
}

func (p packet) transport(mark []byte) []byte {
	var b []byte
	sum := 0
	switch p.proto {
	case protoTCP:
		b = make([]byte, 20)
		b[12], b[13] = 5<<4, 2 // SYN
		sum = 16
	case protoUDP:
		b = make([]byte, 8)
		binary.BigEndian.PutUint16(b[4:], uint16(8+len(mark)))
		sum = 6
	case protoICMP:
		b = append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, mark...)
		binary.BigEndian.PutUint16(b[2:], ^fold(b, 0))
		return b
	default:
		return append(make([]byte, 8), mark...)
	}
	binary.BigEndian.PutUint16(b, uint16(20000+markCount.Load()%20000))
	binary.BigEndian.PutUint16(b[2:], p.port)
	b = append(b, mark...)
	pseudo := append(append([]byte{}, p.src.AsSlice()...), p.dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[sum:], ^fold(b, uint32(p.proto)+uint32(len(b))+uint32(fold(pseudo, 0))))
	return b
}

// fold is the Internet checksum before it is inverted.
func fold(b []byte, sum uint32) uint16 {
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// eventually polls until f is true, for two seconds.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

func runDir(t testing.TB) string {
	dir := filepath.Join(t.TempDir(), "run")
	must(t, os.Mkdir(dir, 0o755))
	return dir
}
