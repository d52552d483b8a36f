package network

import (
	"net/netip"
	"testing"
	"time"
)

// destinations are where the matrix sends to, all by UDP port 9999 unless the row says otherwise.
type destination struct {
	name  string
	addr  string
	proto uint8
	port  uint16
	src   string // forged source
	v6    bool
}

func matrixDestinations(other *Slot, own *Slot) []destination {
	d := []destination{
		{name: "public", addr: "203.0.113.10"},
		{name: "public2", addr: "203.0.113.11"},
		{name: "public tcp", addr: "203.0.113.10", proto: protoTCP, port: 443},
		{name: "public icmp", addr: "203.0.113.10", proto: protoICMP},
		{name: "mail tcp", addr: "203.0.113.10", proto: protoTCP, port: 25},
		{name: "mail udp", addr: "203.0.113.10", port: 25},
		{name: "public gre", addr: "203.0.113.10", proto: 47},
		{name: "public sctp", addr: "203.0.113.10", proto: 132},
		{name: "other slot", addr: other.guest.String()},
		{name: "other gateway", addr: other.gateway.String()},
		{name: "own gateway", addr: own.gateway.String()},
		{name: "other gateway dns", addr: other.gateway.String(), port: 53},
		{name: "host", addr: hostAddr},
		{name: "host tcp", addr: hostAddr, proto: protoTCP, port: 22},
		{name: "host icmp", addr: hostAddr, proto: protoICMP},
		{name: "host loopback", addr: "127.0.0.1"},
		{name: "uplink neighbour", addr: worldAddr},
		{name: "metadata", addr: "169.254.169.254"},
		{name: "metadata tcp", addr: "169.254.169.254", proto: protoTCP, port: 80},
		{name: "ten", addr: "10.1.2.3"},
		{name: "shared", addr: "100.64.1.1"},
		{name: "private172", addr: "172.16.3.3"},
		{name: "protocol", addr: "192.0.0.8"},
		{name: "private192", addr: "192.168.5.5"},
		{name: "benchmark", addr: "198.19.255.1"},
		{name: "this network", addr: "0.1.2.3"},
		{name: "unspecified", addr: "0.0.0.0"},
		{name: "multicast", addr: "224.0.0.251"},
		{name: "reserved", addr: "240.0.0.1"},
		{name: "broadcast", addr: "255.255.255.255"},
		{name: "forged public source", addr: "203.0.113.10", src: "203.0.113.99"},
		{name: "forged neighbour source", addr: "203.0.113.10", src: other.guest.String()},
		{name: "forged gateway source", addr: "203.0.113.10", src: own.gateway.String()},
		{name: "forged host source", addr: "203.0.113.10", src: hostAddr},
		{name: "forged loopback source", addr: own.gateway.String(), src: "127.0.0.1"},
		{name: "no source", addr: "255.255.255.255", port: 67, src: "0.0.0.0"},
		{name: "ipv6 public", addr: "2606:4700::1111", v6: true, src: "fd00::2"},
		{name: "ipv6 link-local", addr: "fe80::1", v6: true, src: "fe80::2"},
		{name: "ipv6 multicast", addr: "ff02::1", v6: true, src: "fe80::2"},
		{name: "ipv6 mapped", addr: "::ffff:203.0.113.10", v6: true, src: "::ffff:198.18.0.1"},
	}
	for i := range d {
		if d[i].proto == 0 {
			d[i].proto = protoUDP
		}
		if d[i].port == 0 {
			d[i].port = 9999
		}
		if d[i].src == "" {
			d[i].src = own.guest.String()
		}
	}
	return d
}

// TestEgressMatrix sends a raw frame for every pair of rules and destination. A packet has to be seen at its destination
// or to be counted as dropped, and never both or neither.
func TestEgressMatrix(t *testing.T) {
	w := newWorld(t)
	p := openPool(t, Config{})
	own, err := p.Acquire(t.Context())
	must(t, err)
	other, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, own, other)
	must(t, p.SetRules(t.Context(), other, Rules{Open: true}))
	w.watchLink("world", w.path, "outside")
	w.watchLink("other slot", other.path, guestLink)
	for _, port := range []int{9999, 53, 25, 67} {
		w.watchPort("host", port)
	}
	x := w.wire(own)

	public := []string{"public", "public2", "public tcp", "public icmp", "uplink neighbour"}
	rows := []struct {
		name  string
		rules Rules
		reach []string
	}{
		{"default", Rules{Open: true}, public},
		{"internet off", Rules{}, nil},
		{"allow an address", Rules{Allow: prefixes("203.0.113.10/32")}, []string{"public", "public tcp", "public icmp"}},
		{"allow a CIDR", Rules{Allow: prefixes("203.0.113.0/24")}, []string{"public", "public2", "public tcp", "public icmp"}},
		{"deny a CIDR", Rules{Open: true, Deny: prefixes("203.0.113.0/24")}, []string{"uplink neighbour"}},
		{"allow wins over deny", Rules{Open: true, Allow: prefixes("203.0.113.11/32"), Deny: prefixes("203.0.113.0/24")}, []string{"public2", "uplink neighbour"}},
		{"allow does not open denied ranges", Rules{Open: true, Allow: prefixes("0.0.0.0/0")}, public},
		{"allow private alone", Rules{Allow: prefixes("10.0.0.0/8", "169.254.169.254/32", "198.18.0.0/15")}, nil},
		{"exempt and open", Rules{Open: true, Exempt: prefixes("10.1.0.0/16", "169.254.169.254/32")}, append([]string{"ten", "metadata", "metadata tcp"}, public...)},
		{"exempt and closed", Rules{Exempt: prefixes("10.1.0.0/16")}, nil},
		{"exempt and allowed", Rules{Exempt: prefixes("10.1.0.0/16"), Allow: prefixes("10.1.2.3/32")}, []string{"ten"}},
		{"exempt and denied", Rules{Open: true, Exempt: prefixes("10.1.0.0/16"), Deny: prefixes("10.1.2.0/24")}, public},
		{"exempt never opens host or slots", Rules{Open: true, Exempt: prefixes("127.0.0.0/8", "240.0.0.0/4")}, append([]string{"reserved"}, public...)},
		{"mail", Rules{Open: true, Mail: true}, append([]string{"mail tcp", "mail udp"}, public...)},
		{"default again", Rules{Open: true}, public},
	}
	for _, row := range rows {
		must(t, p.SetRules(t.Context(), own, row.rules))
		reach := map[string]bool{}
		for _, name := range row.reach {
			reach[name] = true
		}
		for _, d := range matrixDestinations(other, own) {
			t.Run(row.name+"/"+d.name, func(t *testing.T) {
				checkPacket(t, w, p, x, d, reach[d.name])
				delete(reach, d.name)
			})
		}
		for name := range reach {
			t.Errorf("%s: no destination %q", row.name, name)
		}
	}
}

func checkPacket(t *testing.T, w *world, p *Pool, x *wire, d destination, want bool) {
	dropped := func() uint64 {
		c, err := p.Counters(t.Context(), x.slot)
		must(t, err)
		return c.DroppedPackets
	}
	mark, before := newMark(), dropped()
	x.send(packet{src: netip.MustParseAddr(d.src), dst: netip.MustParseAddr(d.addr), proto: d.proto, port: d.port, v6: d.v6}.frame(mark))
	if d.v6 { // IPv6 ends in the kernel before any rule could count it; a forged packet behind it tells when it has been dealt with
		x.send(packet{src: netip.MustParseAddr(hostAddr), dst: netip.MustParseAddr(worldAddr), proto: protoUDP, port: 1}.frame(newMark()))
	}
	var seen string
	var drops uint64
	eventually(t, "the packet arrives or is dropped", func() bool {
		seen, drops = w.whoSaw(mark), dropped()-before
		return seen != "" || drops > 0
	})
	switch {
	case want && (seen == "" || drops > 0):
		t.Errorf("did not arrive: %d dropped, seen by %q", drops, seen)
	case !want && (seen != "" || drops != 1):
		t.Errorf("was let through to %q, %d dropped", seen, drops)
	}
}

// TestEgressControl shows that every denied address of the matrix that can be routed at all is really there to be reached.
func TestEgressControl(t *testing.T) {
	w := newWorld(t)
	w.watchLink("world", w.path, "outside")
	for _, a := range worldAddrs {
		c := udpFrom(t, a, 9999)
		mark := newMark()
		if _, err := c.Write(mark); err != nil {
			t.Fatalf("%s: %v", a, err)
		}
		c.Close()
		eventually(t, a+" is reached from the host", func() bool { return w.whoSaw(mark) == "world" })
	}
}

// TestIPv6DroppedByRules shows that the rules hold IPv6 back by themselves where somebody enables it on the cable.
func TestIPv6DroppedByRules(t *testing.T) {
	w := newWorld(t)
	p := openPool(t, Config{})
	s, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, s)
	must(t, p.SetRules(t.Context(), s, Rules{Open: true}))
	if err := sysctl("ipv6/conf/"+s.name+"/disable_ipv6", "0"); err != nil {
		t.Skip(err)
	}
	w.watchLink("world", w.path, "outside")
	x := w.wire(s)
	mark := newMark()
	eventually(t, "a packet is counted", func() bool { // not the first: enabling takes the kernel a moment
		x.send(packet{src: netip.MustParseAddr("fd00::2"), dst: netip.MustParseAddr("2606:4700::1111"), proto: protoUDP, port: 9999, v6: true}.frame(mark))
		c, err := p.Counters(t.Context(), s)
		must(t, err)
		return c.DroppedPackets > 0
	})
	if who := w.whoSaw(mark); who != "" {
		t.Errorf("IPv6 got through to %s", who)
	}
}

// quiet is how long a packet that must not arrive is waited for where nothing counts it.
const quiet = 100 * time.Millisecond

// What a sandbox tries and may not reach is counted by address and port, each once, and for it alone.
func TestRefusedTargetsAreCounted(t *testing.T) {
	w := newWorld(t)
	p := openPool(t, Config{})
	s, err := p.Acquire(t.Context())
	must(t, err)
	other, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, s, other)
	x := w.wire(s)
	const targets = 30
	for range 2 {
		for port := range targets {
			x.send(packet{src: s.guest, dst: netip.MustParseAddr("203.0.113.10"), proto: []uint8{protoTCP, protoUDP}[port%2], port: uint16(1000 + port)}.frame(newMark()))
		}
	}
	eventually(t, "all packets are counted", func() bool {
		c, err := p.Counters(t.Context(), s)
		must(t, err)
		return c.DroppedPackets == 2*targets
	})
	tried, err := p.Tried(t.Context())
	must(t, err)
	if tried[s.Name()] != targets || tried[other.Name()] != 0 {
		t.Errorf("tried: %v, want %d of %s", tried, targets, s.Name())
	}
}
