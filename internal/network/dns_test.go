package network

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// nameServer runs one in the world, at 9.9.9.9, for zone; it returns the file that makes it the host's.
func (w *world) nameServer(zone string) (hostConfig string) {
	w.t.Helper()
	records := map[string][]dns.RR{}
	z := dns.NewZoneParser(strings.NewReader(zone), "", "")
	for rr, ok := z.Next(); ok; rr, ok = z.Next() {
		records[rr.Header().Name] = append(records[rr.Header().Name], rr)
	}
	must(w.t, z.Err())
	var pc net.PacketConn
	w.within(w.path, func() (err error) { pc, err = net.ListenPacket("udp4", "9.9.9.9:53"); return err })
	up, down := make(chan struct{}), make(chan error, 1)
	s := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(up) }, Handler: dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg)
		r.SetReply(q)
		r.Answer = records[strings.ToLower(q.Question[0].Name)]
		rw.WriteMsg(r)
	})}
	go func() { down <- s.ActivateAndServe() }()
	<-up
	w.t.Cleanup(func() {
		s.Shutdown()
		<-down
	})
	path := filepath.Join(w.t.TempDir(), "resolv.conf")
	must(w.t, os.WriteFile(path, []byte("nameserver 9.9.9.9\n"), 0o600))
	return path
}

// resolve asks a server from inside a slot and returns the answer's code and addresses.
func (w *world) resolve(path, network, server, name string, patience time.Duration) (code string, addrs []string) {
	w.t.Helper()
	var q dns.Msg
	q.SetQuestion(dns.Fqdn(name), dns.TypeA)
	var c net.Conn
	var err error
	w.within(path, func() error {
		ctx, cancel := context.WithTimeout(w.t.Context(), patience)
		defer cancel()
		c, err = (&net.Dialer{}).DialContext(ctx, network+"4", server)
		return nil
	})
	if err != nil {
		return "unreachable", nil
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	conn := &dns.Conn{Conn: c}
	must(w.t, conn.WriteMsg(&q))
	r, err := conn.ReadMsg()
	if err != nil {
		return "silent", nil
	}
	for _, rr := range r.Answer {
		addrs = append(addrs, rr.(*dns.A).A.String())
	}
	return dns.RcodeToString[r.Rcode], addrs
}

// running runs a pool until the test ends.
func running(t testing.TB, p *Pool) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- p.Run(ctx) }()
	t.Cleanup(func() { stop(); must(t, <-ran) })
}

const testZone = `
good.example. 60 IN A 203.0.113.10
sub.wild.example. 60 IN A 203.0.113.11
rebind.good.example. 60 IN A 169.254.169.254
slot.good.example. 60 IN A 198.18.0.3
`

func TestResolver(t *testing.T) {
	w := newWorld(t)
	p := openPool(t, Config{HostConfig: w.nameServer(testZone)})
	running(t, p)
	s, err := p.Acquire(t.Context())
	must(t, err)
	other, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, s, other)
	gateway := s.gateway.String() + ":53"

	domains := Rules{Domains: []string{"good.example", "*.good.example", "*.wild.example"}}
	rows := []struct {
		name         string
		rules        Rules
		server, ask  string
		code, answer string
	}{
		{"open", Rules{Open: true}, gateway, "good.example", "NOERROR", "203.0.113.10"},
		{"open, another server", Rules{Open: true}, "9.9.9.9:53", "good.example", "NOERROR", "203.0.113.10"},
		{"open, rebinding", Rules{Open: true}, gateway, "rebind.good.example", "REFUSED", ""},
		{"open, name of a slot", Rules{Open: true}, gateway, "slot.good.example", "REFUSED", ""},
		{"open, another slot's gateway", Rules{Open: true}, other.gateway.String() + ":53", "good.example", "silent", ""},
		{"open, host", Rules{Open: true}, hostAddr + ":53", "good.example", "silent", ""},
		{"open, the port behind", Rules{Open: true}, s.gateway.String() + ":" + strconv.Itoa(int(p.resolver.Port())), "good.example", "silent", ""},
		{"open, server of the rules is silent", Rules{Open: true, DNS: []netip.Addr{netip.MustParseAddr("203.0.113.10")}}, gateway, "good.example", "SERVFAIL", ""},
		{"denied address", Rules{Open: true, Deny: prefixes("203.0.113.10/32")}, gateway, "good.example", "REFUSED", ""},
		{"closed", Rules{}, gateway, "good.example", "REFUSED", ""},
		{"closed but for an address", Rules{Allow: prefixes("203.0.113.10/32")}, gateway, "good.example", "REFUSED", ""},
		{"domains", domains, gateway, "good.example", "NOERROR", "203.0.113.10"},
		{"domains, wildcard", domains, gateway, "sub.wild.example", "NOERROR", "203.0.113.11"},
		{"domains, not the wildcard's own", domains, gateway, "wild.example", "REFUSED", ""},
		{"domains, another", domains, gateway, "bad.example", "REFUSED", ""},
		{"domains, rebinding", domains, gateway, "rebind.good.example", "REFUSED", ""},
		{"domains, another server", domains, "9.9.9.9:53", "good.example", "silent", ""},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			must(t, p.SetRules(t.Context(), s, r.rules))
			for _, network := range []string{"udp", "tcp"} {
				want, patience := r.code, 4*soon
				if want == "silent" {
					patience = quiet
				}
				if network == "tcp" {
					if strings.HasPrefix(r.server, "9.9.9.9") || want == "SERVFAIL" {
						continue
					}
					if want == "silent" {
						want = "unreachable"
					}
				}
				code, addrs := w.resolve(s.path, network, r.server, r.ask, patience)
				if code != want || strings.Join(addrs, " ") != r.answer {
					t.Errorf("%s: %s %v", network, code, addrs)
				}
			}
		})
	}
}

// TestPins opens the way to a name's address by asking for it, and closes it by a change of rules.
func TestPins(t *testing.T) {
	w := newWorld(t)
	c := Config{HostConfig: w.nameServer(testZone), StateDir: t.TempDir(), RunDir: runDir(t)}
	p := openPool(t, c)
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- p.Run(ctx) }()
	s, err := p.Acquire(t.Context())
	must(t, err)
	w.serve(w.path, ":2222")
	w.watchLink("world", w.path, "outside")
	both := Rules{Domains: []string{"good.example", "*.wild.example"}}
	must(t, p.SetRules(t.Context(), s, both))
	reach := func(addr string) (net.Conn, bool) {
		patience := quiet
		if p.fw.pinned(s, netip.MustParseAddr(addr)) {
			patience = soon
		}
		c, _, err := w.dial(s.path, addr+":2222", patience)
		return c, err == nil
	}
	ask := func(s *Slot, name string) string {
		code, _ := w.resolve(s.path, "udp", s.gateway.String()+":53", name, soon)
		return code
	}
	if _, ok := reach("203.0.113.10"); ok {
		t.Error("an address is reached before its name was asked for")
	}
	if code := ask(s, "good.example"); code != "NOERROR" {
		t.Fatal(code)
	}
	first, ok := reach("203.0.113.10")
	if !ok {
		t.Fatal("a pinned address is not reached")
	}
	if _, ok := reach("203.0.113.11"); ok {
		t.Error("an address that nobody asked for is reached")
	}
	ask(s, "sub.wild.example")
	second, ok := reach("203.0.113.11")
	if !ok {
		t.Fatal("the second pinned address is not reached")
	}
	x := w.wire(s)
	checkPacket(t, w, p, x, destination{addr: "203.0.113.10", src: s.guest.String(), proto: protoUDP, port: 443}, false)
	checkPacket(t, w, p, x, destination{addr: "203.0.113.10", src: s.guest.String(), proto: protoUDP, port: 9999}, true)

	for i := range 2 * maxPins { // more than fit: those that end first make room
		must(t, p.fw.pin(s, "sub.wild.example", []netip.Addr{netip.AddrFrom4([4]byte{20, 0, byte(i >> 8), byte(i)})}, 10*time.Second+time.Duration(i)*time.Millisecond))
	}
	members, err := listMembers(s.rules.pinSet())
	must(t, err)
	if len(members) > maxPins || len(members) != len(s.rules.pins) {
		t.Errorf("%d pins in the kernel, %d known", len(members), len(s.rules.pins))
	}
	if !echoes(first, soon) {
		t.Error("an open connection ended with its pin")
	}
	ask(s, "good.example")
	ask(s, "sub.wild.example")
	must(t, p.SetRules(t.Context(), s, Rules{Domains: []string{"good.example"}}))
	if !echoes(first, soon) {
		t.Error("a connection to a name that is still allowed was cut")
	}
	if echoes(second, quiet) {
		t.Error("a connection to a name that is not allowed any more goes on")
	}
	if _, ok := reach("203.0.113.10"); !ok {
		t.Error("the pin of a name that is still allowed is gone")
	}
	stop()
	must(t, <-ran)
	unwire(x)
	must(t, p.Close(t.Context()))

	next := openPool(t, c)
	running(t, next)
	adopted, err := next.Adopt(t.Context(), s.Record(), Rules{Domains: []string{"good.example"}})
	must(t, err)
	if code := ask(adopted, "good.example"); code != "NOERROR" {
		t.Errorf("after adoption: %s", code)
	}
	if _, _, err := w.dial(adopted.path, "203.0.113.10:2222", soon); err != nil {
		t.Errorf("after adoption: %v", err)
	}
	releaseAll(t, next, adopted)
}

// TestQuestionFlood has one slot ask more than it may; the excess ends in the kernel and another slot is served.
func TestQuestionFlood(t *testing.T) {
	w := newWorld(t)
	p := openPool(t, Config{HostConfig: w.nameServer(testZone)})
	running(t, p)
	s, err := p.Acquire(t.Context())
	must(t, err)
	other, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, s, other)
	must(t, p.SetRules(t.Context(), other, Rules{Open: true}))
	x := w.wire(s)
	sent := 0
	eventually(t, "the excess is dropped", func() bool {
		for range 100 {
			sent++
			x.send(packet{src: s.guest, dst: s.gateway, proto: protoUDP, port: 53}.frame([]byte("not a question")))
		}
		c, err := p.Counters(t.Context(), s)
		must(t, err)
		if c.DroppedPackets > 0 && sent <= askBurst {
			t.Fatalf("%d of the first %d are dropped", c.DroppedPackets, sent)
		}
		return c.DroppedPackets > 0
	})
	if code, _ := w.resolve(other.path, "udp", other.gateway.String()+":53", "good.example", soon); code != "NOERROR" {
		t.Errorf("the other slot got %s", code)
	}
	unwire(x)
}
