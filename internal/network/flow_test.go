package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// serve answers every connection with the address it comes from, and then repeats each line. Listener and
// connections end with the test.
func (w *world) serve(path, addr string) {
	w.t.Helper()
	var l net.Listener
	w.within(path, func() (err error) { l, err = net.Listen("tcp4", addr); return err })
	done := make(chan struct{})
	conns := make(chan net.Conn, 64)
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
			go func() {
				fmt.Fprintln(c, c.RemoteAddr())
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	w.t.Cleanup(func() {
		l.Close()
		<-done
		close(conns)
		for c := range conns {
			c.Close()
		}
	})
}

// dial connects from a namespace and reads the greeting.
func (w *world) dial(path, addr string, patience time.Duration) (c net.Conn, greeting string, err error) {
	run := func() error {
		ctx, cancel := context.WithTimeout(w.t.Context(), patience)
		defer cancel()
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp4", addr)
		return nil
	}
	if path == "" {
		run()
	} else {
		w.within(path, run)
	}
	if err != nil {
		return nil, "", err
	}
	w.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	host, _, _ := net.SplitHostPort(strings.TrimSpace(line))
	return c, host, err
}

func echoes(c net.Conn, patience time.Duration) bool {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(c, "x"); err != nil {
		return false
	}
	b := make([]byte, 2)
	_, err := io.ReadFull(c, b)
	return err == nil
}

const soon = 2 * time.Second

func TestFlows(t *testing.T) {
	w := newWorld(t)
	p := openPool(t, Config{})
	s, err := p.Acquire(t.Context())
	must(t, err)
	other, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, s, other)
	w.serve(w.path, ":80")
	w.serve(s.path, ":8080")
	w.serve(other.path, ":8080")
	hostNS := fmt.Sprintf("/proc/self/fd/%d", p.host.ns.Fd())
	w.serve(hostNS, ":7777")

	for _, addr := range []string{"203.0.113.10:80"} {
		if _, _, err := w.dial(s.path, addr, quiet); err == nil {
			t.Errorf("a slot without rules reaches %s", addr)
		}
	}
	for _, slot := range []*Slot{s, other} {
		must(t, p.SetRules(t.Context(), slot, Rules{Open: true}))
	}
	rows := []struct {
		name, from, to string
		as             string // the source that the server sees; empty where the connection must fail
	}{
		{"slot to outside goes as the host", s.path, "203.0.113.10:80", hostAddr},
		{"host to slot goes as the gateway", "", s.guest.String() + ":8080", s.gateway.String()},
		{"slot to slot", other.path, s.guest.String() + ":8080", ""},
		{"slot to host", s.path, hostAddr + ":7777", ""},
		{"slot to its gateway", s.path, s.gateway.String() + ":7777", ""},
		{"slot to another gateway", s.path, other.gateway.String() + ":7777", ""},
		{"outside to slot", w.path, s.guest.String() + ":8080", ""},
		{"outside to gateway address", w.path, hostAddr + ":7777", worldAddr},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			patience := soon
			if r.as == "" {
				patience = quiet
			}
			_, as, err := w.dial(r.from, r.to, patience)
			if (r.as == "") != (err != nil) || as != r.as {
				t.Errorf("seen as %q, error %v; want %q", as, err, r.as)
			}
		})
	}
}

func TestSetRulesCutsFlows(t *testing.T) {
	w := newWorld(t)
	p := openPool(t, Config{})
	s, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, s)
	must(t, p.SetRules(t.Context(), s, Rules{Open: true}))
	w.serve(w.path, ":80")
	w.serve(s.path, ":8080")
	kept, _, err := w.dial(s.path, "203.0.113.10:80", soon)
	must(t, err)
	cutOff, _, err := w.dial(s.path, "203.0.113.11:80", soon)
	must(t, err)
	inward, _, err := w.dial("", s.guest.String()+":8080", soon)
	must(t, err)
	if !echoes(kept, soon) || !echoes(cutOff, soon) || !echoes(inward, soon) {
		t.Fatal("a flow does not work before the change")
	}
	must(t, p.SetRules(t.Context(), s, Rules{Open: true, Deny: prefixes("203.0.113.11/32")}))
	if flows := tracked(t, "dst=203.0.113.11"); len(flows) > 0 {
		t.Errorf("still tracked: %v", flows)
	}
	if echoes(cutOff, quiet) {
		t.Error("a denied flow goes on")
	}
	if !echoes(kept, soon) || !echoes(inward, soon) {
		t.Error("a flow that nothing denies was cut")
	}
	must(t, p.SetRules(t.Context(), s, Rules{}))
	if echoes(kept, quiet) {
		t.Error("a flow survives the loss of the internet")
	}
	if !echoes(inward, soon) {
		t.Error("ingress was cut")
	}
}

// tracked lists the host's connections that mention all words.
func tracked(t testing.TB, words ...string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("the kernel does not list connections in /proc")
	}
	must(t, err)
	var out []string
lines:
	for l := range strings.Lines(string(b)) {
		for _, word := range words {
			if !strings.Contains(l+" ", word+" ") {
				continue lines
			}
		}
		out = append(out, l)
	}
	return out
}

// TestReuse uses a slot as a runtime does, gives it back, and looks for what the next one could find.
func TestReuse(t *testing.T) {
	w := newWorld(t)
	p := openPool(t, Config{Slots: 1})
	p.refill(t.Context())
	s, err := p.Acquire(t.Context())
	must(t, err)
	must(t, p.SetRules(t.Context(), s, Rules{Open: true, Deny: prefixes("203.0.113.11/32"), Mail: true, Exempt: prefixes("10.1.0.0/16")}))
	w.serve(w.path, ":80")
	c, _, err := w.dial(s.path, "203.0.113.10:80", soon)
	must(t, err)
	if _, _, err := w.dial(s.path, "203.0.113.11:80", quiet); err == nil {
		t.Fatal("denied address is reached")
	}
	c.(*net.TCPConn).SetLinger(0) // a closed socket that still waits for its peer is one that is left behind
	c.Close()
	w.within(s.path, func() error { return exec.Command("ip", "addr", "flush", "dev", guestLink).Run() })

	must(t, p.Release(t.Context(), s))
	p.refill(t.Context())
	again, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, again)
	if again != s {
		t.Fatal("the slot was not reused")
	}
	if flows := tracked(t, "src="+s.guest.String()); len(flows) > 0 {
		t.Errorf("connections carried over: %v", flows)
	}
	if n, err := p.Counters(t.Context(), again); err != nil || n != (Counters{}) {
		t.Errorf("counters carried over: %+v, %v", n, err)
	}
	if _, _, err := w.dial(again.path, "203.0.113.10:80", quiet); err == nil {
		t.Error("rules carried over")
	}
	checkDressed(t, w, again)
	must(t, p.SetRules(t.Context(), again, Rules{Open: true}))
	if _, _, err := w.dial(again.path, "203.0.113.11:80", soon); err != nil {
		t.Errorf("a reused slot does not work: %v", err)
	}
}

// checkDressed compares both ends of a cable with what Interface promises.
func checkDressed(t testing.TB, w *world, s *Slot) {
	t.Helper()
	i := s.Interface()
	w.within(i.NetNS, func() error {
		in, err := newLinks()
		must(t, err)
		defer in.Close()
		checkEnd(t, in, guestLink, i.MAC, i.Address, i.Gateway, i.GatewayMAC, i.MTU)
		routes, err := in.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_DST)
		must(t, err)
		if len(routes) != 1 || routes[0].Gw.String() != i.Gateway.String() {
			t.Errorf("default routes %v", routes)
		}
		lo, err := in.LinkByName("lo")
		must(t, err)
		if lo.Attrs().Flags&net.FlagUp == 0 {
			t.Error("loopback is down")
		}
		return nil
	})
	h, err := newLinks()
	must(t, err)
	defer h.Close()
	checkEnd(t, h, s.name, i.GatewayMAC, netip.PrefixFrom(i.Gateway, 31), s.guest, i.MAC, i.MTU)
}

func checkEnd(t testing.TB, h *netlink.Handle, name, mac string, addr netip.Prefix, peer netip.Addr, peerMAC string, mtu int) {
	t.Helper()
	l, err := h.LinkByName(name)
	must(t, err)
	if a := l.Attrs(); a.HardwareAddr.String() != mac || a.MTU != mtu || a.Flags&net.FlagUp == 0 {
		t.Errorf("%s: MAC %s, MTU %d, flags %s", name, a.HardwareAddr, a.MTU, a.Flags)
	}
	addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
	must(t, err)
	if len(addrs) != 1 || addrs[0].IPNet.String() != addr.String() {
		t.Errorf("%s: addresses %v, want %s alone", name, addrs, addr)
	}
	neighs, err := h.NeighList(l.Attrs().Index, unix.AF_INET)
	must(t, err)
	found := false
	for _, n := range neighs {
		found = found || n.IP.String() == peer.String() && n.State == netlink.NUD_PERMANENT && n.HardwareAddr.String() == peerMAC
	}
	if !found {
		t.Errorf("%s: neighbours %v, want %s permanent", name, neighs, peer)
	}
}

// TestSocketLeftBehind: a process that survived the machine must not hear its successor.
func TestSocketLeftBehind(t *testing.T) {
	w := newWorld(t)
	p := openPool(t, Config{Slots: 1})
	p.refill(t.Context())
	s, err := p.Acquire(t.Context())
	must(t, err)
	x := w.wire(s) // closed by the test's end only
	must(t, p.Release(t.Context(), s))
	p.refill(t.Context())
	next, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, next)
	if next == s || next.inode == s.inode {
		t.Error("a slot was reused in which somebody holds a socket")
	}
	if _, err := unix.Write(x.fd, make([]byte, 64)); err == nil {
		t.Error("what held the old slot still has a link")
	}
}

// TestFlowLimit opens one connection more than a sandbox may have.
func TestFlowLimit(t *testing.T) {
	w := newWorld(t)
	p := openPool(t, Config{})
	s, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, s)
	must(t, p.SetRules(t.Context(), s, Rules{Open: true}))
	x := w.wire(s)
	dst := netip.MustParseAddr("203.0.113.10")
	sent := 0
	eventually(t, "the excess is dropped", func() bool { // some frames are lost where they come too fast for the link
		for range 200 {
			sent++
			x.send(packet{src: s.guest, dst: dst, proto: protoUDP, port: uint16(1000 + sent)}.frame([]byte("flood")))
		}
		c, err := p.Counters(t.Context(), s)
		must(t, err)
		if c.DroppedPackets > 0 && sent <= maxFlows {
			t.Fatalf("%d of the first %d are dropped", c.DroppedPackets, sent)
		}
		return c.DroppedPackets > 0
	})
	if n := len(tracked(t, "src="+s.guest.String())); n > maxFlows || n < maxFlows-200 {
		t.Errorf("%d connections are tracked, the limit is %d", n, maxFlows)
	}
}
