package network

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// machine is the far side of a TAP device: what a virtual machine monitor holds.
type machine struct {
	t  testing.TB
	fd int
}

const vnetHeader = 10 // bytes of struct virtio_net_hdr before each frame

func (w *world) machine(s *Slot) *machine {
	m := &machine{t: w.t}
	w.within(s.path, func() (err error) { m.fd, err = openTAP(); return err })
	return m
}

func (m *machine) send(frame []byte) {
	m.t.Helper()
	if _, err := unix.Write(m.fd, append(make([]byte, vnetHeader), frame...)); err != nil {
		m.t.Fatalf("send frame: %v", err)
	}
}

// hears polls until a frame with the mark comes in.
func (m *machine) hears(what string, mark []byte) {
	m.t.Helper()
	buf := make([]byte, 4096)
	eventually(m.t, what, func() bool {
		n, err := unix.Read(m.fd, buf)
		return err == nil && n > vnetHeader && bytes.Contains(buf[vnetHeader:n], mark)
	})
}

func TestTAP(t *testing.T) {
	w := newWorld(t)
	p := openPool(t, Config{TAPs: 1})
	p.refill(t.Context())
	s, err := p.AcquireTAP(t.Context())
	must(t, err)
	must(t, p.SetRules(t.Context(), s, Rules{Open: true}))
	w.watchLink("world", w.path, "outside")
	m := w.machine(s)
	i := s.Interface()
	if i.Device != tapLink || i.MTU != 1500 {
		t.Errorf("interface %+v", i)
	}

	mark, start := newMark(), time.Now()
	eventually(t, "the world hears the machine", func() bool { // the kernel opens the bridge's port a moment after the device is attached to
		m.send(packet{src: s.guest, dst: netip.MustParseAddr("203.0.113.10"), proto: protoUDP, port: 9999}.frame(mark))
		return w.whoSaw(mark) == "world"
	})
	if took := time.Since(start); took > 500*time.Millisecond {
		t.Errorf("frames pass %v after a machine has attached", took)
	}
	mark = newMark()
	c := udpFrom(t, s.guest.String(), 5000)
	c.Write(mark)
	c.Close()
	m.hears("the machine hears the host, which asks nobody for its hardware address", mark)

	// The machine may ask for the gateway's.
	arp := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, mac(guestMAC)...)
	arp = append(append(arp, s.guest.AsSlice()...), append(make([]byte, 6), s.gateway.AsSlice()...)...)
	m.send(ether(unix.ETH_P_ARP, arp))
	m.hears("the gateway answers ARP", append(append([]byte{0, 2}, mac(gatewayMAC)...), s.gateway.AsSlice()...))

	checkPacketFrom(t, w, p, m.send, s)
	unix.Close(m.fd)
	must(t, p.Release(t.Context(), s))
	p.refill(t.Context())
	again, err := p.AcquireTAP(t.Context())
	must(t, err)
	if again != s {
		t.Error("a TAP slot was not reused")
	}
	releaseAll(t, p, again)
}

// checkPacketFrom has the rules of the matrix hold for frames that come through the TAP device too.
func checkPacketFrom(t *testing.T, w *world, p *Pool, send func([]byte), s *Slot) {
	t.Helper()
	for _, d := range []destination{
		{name: "metadata", addr: "169.254.169.254"}, {name: "host", addr: hostAddr}, {name: "forged", addr: "203.0.113.10", src: "203.0.113.99"},
	} {
		before, err := p.Counters(t.Context(), s)
		must(t, err)
		src := s.guest
		if d.src != "" {
			src = netip.MustParseAddr(d.src)
		}
		mark := newMark()
		send(packet{src: src, dst: netip.MustParseAddr(d.addr), proto: protoUDP, port: 9999}.frame(mark))
		eventually(t, d.name+" is dropped", func() bool {
			now, err := p.Counters(t.Context(), s)
			must(t, err)
			return now.DroppedPackets == before.DroppedPackets+1
		})
		if who := w.whoSaw(mark); who != "" {
			t.Errorf("%s was let through to %s", d.name, who)
		}
	}
}

// TestOwnTAP gives the device to an unprivileged user and takes it back.
func TestOwnTAP(t *testing.T) {
	w := newWorld(t)
	p := openPool(t, Config{})
	s, err := p.AcquireTAP(t.Context())
	must(t, err)
	defer releaseAll(t, p, s)
	const uid = 4242
	owner := func() (ids [2]uint32) {
		w.within(s.path, func() error {
			in, err := newLinks()
			must(t, err)
			defer in.Close()
			l, err := in.LinkByName(tapLink)
			must(t, err)
			tap := l.(*netlink.Tuntap)
			ids = [2]uint32{tap.Owner, tap.Group}
			return nil
		})
		return ids
	}
	must(t, p.OwnTAP(t.Context(), s, uid, uid))
	if got := owner(); got != [2]uint32{uid, uid} {
		t.Errorf("the device is owned by %v", got)
	}
	must(t, p.reset(s))
	if got := owner(); got != [2]uint32{} {
		t.Errorf("after reset the device is owned by %v", got)
	}
	veth, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, veth)
	if err := p.OwnTAP(t.Context(), veth, uid, uid); err == nil {
		t.Error("a slot without TAP device was given away")
	}
}
