package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// zone is what the name server of the tests knows.
const zone = `
good.example. 5 IN A 203.0.113.10
good.example. 5 IN A 203.0.113.11
alias.example. 300 IN CNAME middle.example.
middle.example. 300 IN CNAME good.example.
rebind.example. 300 IN A 169.254.169.254
mixed.example. 300 IN A 203.0.113.10
mixed.example. 300 IN A 10.0.0.1
text.example. 300 IN TXT "hello"
service.example. 300 IN HTTPS 1 . ipv4hint=203.0.113.10
long.example. 99999999 IN A 203.0.113.10
six.example. 300 IN AAAA 2606:4700::1111
10.113.0.203.in-addr.arpa. 300 IN PTR good.example.
1.0.0.10.in-addr.arpa. 300 IN PTR secret.corp.example.
secret.internal. 300 IN A 203.0.113.10
`

// nameServer serves the zone for real on a loopback address, by UDP and TCP.
type nameServer struct {
	addr netip.AddrPort
	mu   sync.Mutex
	asks []string
	hook func(w dns.ResponseWriter, q, r *dns.Msg) bool // may answer in its own way
}

func newNameServer(t *testing.T) *nameServer {
	t.Helper()
	n := &nameServer{}
	records := map[string][]dns.RR{}
	z := dns.NewZoneParser(strings.NewReader(zone), "", "")
	for rr, ok := z.Next(); ok; rr, ok = z.Next() {
		records[rr.Header().Name] = append(records[rr.Header().Name], rr)
	}
	if z.Err() != nil {
		t.Fatal(z.Err())
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { n.serve(w, q, records) })
	var pc net.PacketConn
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	for range 16 { // the port that TCP got may be taken for UDP
		if err != nil {
			t.Fatal(err)
		}
		n.addr = l.Addr().(*net.TCPAddr).AddrPort()
		if pc, err = net.ListenPacket("udp4", n.addr.String()); err == nil {
			break
		}
		l.Close()
		l, err = net.Listen("tcp4", "127.0.0.1:0")
	}
	if pc == nil {
		t.Fatal("no port is free for both protocols")
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		up, down := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(up) }
		go func() { down <- s.ActivateAndServe() }()
		<-up
		t.Cleanup(func() {
			s.Shutdown()
			<-down
		})
	}
	return n
}

func (n *nameServer) serve(w dns.ResponseWriter, q *dns.Msg, records map[string][]dns.RR) {
	ask := q.Question[0]
	n.mu.Lock()
	n.asks = append(n.asks, strings.TrimSuffix(ask.Name, "."))
	hook := n.hook
	n.mu.Unlock()
	r := new(dns.Msg)
	r.SetReply(q)
	name := strings.ToLower(ask.Name)
	for {
		var next string
		for _, rr := range records[name] {
			if c, ok := rr.(*dns.CNAME); ok {
				next = c.Target
				r.Answer = append(r.Answer, dns.Copy(rr))
			} else if rr.Header().Rrtype == ask.Qtype {
				r.Answer = append(r.Answer, dns.Copy(rr))
			}
		}
		if next == "" {
			break
		}
		name = next
	}
	if len(records[name]) == 0 {
		r.Rcode = dns.RcodeNameError
	}
	if hook == nil || !hook(w, q, r) {
		w.WriteMsg(r)
	}
}

func (n *nameServer) asked(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.asks, name)
}

// testPolicy allows names by their beginning and pins into a map.
type testPolicy struct {
	names   []string // nil allows all
	servers []netip.AddrPort
	pinErr  error

	mu   sync.Mutex
	pins map[netip.Addr]time.Duration
}

func (p *testPolicy) Name() string { return "slot" }
func (p *testPolicy) Resolves(name string) bool {
	return p.names == nil || slices.Contains(p.names, name)
}
func (p *testPolicy) Reaches(a netip.Addr) bool {
	return a.Is4() && !a.IsPrivate() && !a.IsLinkLocalUnicast()
}
func (p *testPolicy) Servers() []netip.AddrPort { return p.servers }
func (p *testPolicy) Pin(_ context.Context, _ string, addrs []netip.Addr, ttl time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range addrs {
		p.pins[a] = ttl
	}
	return p.pinErr
}

func (p *testPolicy) pinned() map[netip.Addr]time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.pins
	p.pins = map[netip.Addr]time.Duration{}
	return out
}

// start runs a resolver that serves 127.0.0.1 by this policy.
func start(t *testing.T, p Policy) (addr string) {
	t.Helper()
	s, err := New(t.Context(), Config{
		Asker: func(a netip.Addr) Policy {
			if a == netip.MustParseAddr("127.0.0.1") {
				return p
			}
			return nil
		},
		Source: netip.MustParsePrefix("127.0.0.0/30"), HostConfig: "/nonexistent", Log: slog.New(slog.DiscardHandler),
	})
	if errors.Is(err, os.ErrPermission) {
		t.Skip("this kernel lets only root attach socket filters: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return fmt.Sprintf("127.0.0.1:%d", s.Port())
}

func ask(t *testing.T, network, addr, name string, qtype uint16) *dns.Msg {
	t.Helper()
	var q dns.Msg
	q.SetQuestion(dns.Fqdn(name), qtype)
	c := dns.Client{Net: network, Timeout: 5 * time.Second}
	for try := 0; ; try++ { // as any stub resolver does
		r, _, err := c.Exchange(&q, addr)
		if err == nil {
			return r
		}
		if try == 2 {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

func addresses(r *dns.Msg) (out []string) {
	for _, rr := range r.Answer {
		if a, ok := rr.(*dns.A); ok {
			out = append(out, a.A.String())
		}
	}
	slices.Sort(out)
	return out
}

func TestAnswers(t *testing.T) {
	n := newNameServer(t)
	allowed := []string{"good.example", "alias.example", "rebind.example", "mixed.example", "service.example", "none.example"}
	rows := []struct {
		name    string
		ask     string
		qtype   uint16
		limited bool // only the allowed names
		rcode   int
		addrs   string
		records int           // in the answer
		ttl     time.Duration // of the pins; 0 where nothing may be pinned
		asked   bool          // whether the name server hears of it
	}{
		{"address", "good.example", dns.TypeA, false, 0, "203.0.113.10 203.0.113.11", 2, minTTL, true},
		{"any case", "GOOD.Example", dns.TypeA, true, 0, "203.0.113.10 203.0.113.11", 2, minTTL, true},
		{"alias", "alias.example", dns.TypeA, true, 0, "203.0.113.10 203.0.113.11", 4, minTTL, true},
		{"what an alias leads to is not allowed by itself", "middle.example", dns.TypeA, true, dns.RcodeRefused, "", 0, 0, false},
		{"not allowed", "text.example", dns.TypeTXT, true, dns.RcodeRefused, "", 0, 0, false},
		{"text", "text.example", dns.TypeTXT, false, 0, "", 1, 0, true},
		{"unknown", "none.example", dns.TypeA, true, dns.RcodeNameError, "", 0, 0, true},
		{"answer into a denied range", "rebind.example", dns.TypeA, true, dns.RcodeRefused, "", 0, 0, true},
		{"answer partly into a denied range", "mixed.example", dns.TypeA, true, 0, "203.0.113.10", 1, 5 * time.Minute, true},
		{"endless", "long.example", dns.TypeA, false, 0, "203.0.113.10", 1, maxTTL, true},
		{"IPv6 is as if there were none", "six.example", dns.TypeAAAA, false, 0, "", 0, 0, false},
		{"service records are hidden", "service.example", dns.TypeHTTPS, true, 0, "", 0, 0, false},
		{"all records", "good2.example", dns.TypeANY, false, dns.RcodeRefused, "", 0, 0, false},
		{"reverse of a public address", "10.113.0.203.in-addr.arpa", dns.TypePTR, false, 0, "", 1, 0, true},
		{"reverse of a private address", "1.0.0.10.in-addr.arpa", dns.TypePTR, false, dns.RcodeNameError, "", 0, 0, false},
		{"reverse of a private network", "168.192.in-addr.arpa", dns.TypeNS, false, dns.RcodeNameError, "", 0, 0, false},
		{"metadata by name", "metadata.google.internal", dns.TypeA, false, dns.RcodeNameError, "", 0, 0, false},
		{"host's own names", "secret.internal", dns.TypeA, false, dns.RcodeNameError, "", 0, 0, false},
		{"localhost", "localhost", dns.TypeA, false, dns.RcodeNameError, "", 0, 0, false},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			for _, network := range []string{"udp", "tcp"} {
				p := &testPolicy{servers: []netip.AddrPort{n.addr}, pins: map[netip.Addr]time.Duration{}}
				if r.limited {
					p.names = allowed
				}
				got := ask(t, network, start(t, p), r.ask, r.qtype)
				if got.Rcode != r.rcode || strings.Join(addresses(got), " ") != r.addrs || len(got.Answer) != r.records {
					t.Errorf("%s: %s with %v", network, dns.RcodeToString[got.Rcode], got.Answer)
				}
				pins := p.pinned()
				if len(pins) != len(addresses(got)) {
					t.Errorf("%s: pinned %v", network, pins)
				}
				for a, ttl := range pins {
					if ttl != r.ttl || !strings.Contains(r.addrs, a.String()) {
						t.Errorf("%s: %s is pinned for %v", network, a, ttl)
					}
				}
				if n.asked(r.ask) != r.asked {
					t.Errorf("%s: the name server was asked: %v", network, !r.asked)
				}
			}
		})
	}
}

func TestPinBeforeAnswer(t *testing.T) {
	n := newNameServer(t)
	p := &testPolicy{servers: []netip.AddrPort{n.addr}, pins: map[netip.Addr]time.Duration{}, pinErr: errors.New("no")}
	if r := ask(t, "udp", start(t, p), "good.example", dns.TypeA); r.Rcode != dns.RcodeServerFailure || len(r.Answer) > 0 {
		t.Errorf("an answer whose addresses could not be pinned: %v", r)
	}
}

func TestForgedAnswers(t *testing.T) {
	n := newNameServer(t)
	stray := func(name string) dns.RR {
		rr, err := dns.NewRR(name + " 300 IN A 203.0.113.66")
		if err != nil {
			t.Fatal(err)
		}
		return rr
	}
	rows := []struct {
		name  string
		hook  func(w dns.ResponseWriter, q, r *dns.Msg) bool
		rcode int
	}{
		{"records of another name", func(w dns.ResponseWriter, q, r *dns.Msg) bool {
			r.Answer = append(r.Answer, stray("other.example."))
			return false
		}, 0},
		{"additional records", func(w dns.ResponseWriter, q, r *dns.Msg) bool {
			r.Extra = append(r.Extra, stray("good.example."))
			return false
		}, 0},
		{"another question", func(w dns.ResponseWriter, q, r *dns.Msg) bool { r.Question[0].Name = "other.example."; return false }, dns.RcodeServerFailure},
		{"a loop of aliases", func(w dns.ResponseWriter, q, r *dns.Msg) bool {
			a, _ := dns.NewRR("good.example. 300 IN CNAME x.example.")
			b, _ := dns.NewRR("x.example. 300 IN CNAME good.example.")
			r.Answer = append([]dns.RR{b, a}, r.Answer...)
			return false
		}, 0},
		{"too long for UDP", func(w dns.ResponseWriter, q, r *dns.Msg) bool {
			if w.LocalAddr().Network() == "udp" {
				r.Answer, r.Truncated = nil, true
			}
			return false
		}, 0},
		{"refused by the server", func(w dns.ResponseWriter, q, r *dns.Msg) bool {
			r.Answer, r.Rcode = nil, dns.RcodeRefused
			return false
		}, dns.RcodeRefused},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			n.mu.Lock()
			n.hook = r.hook
			n.mu.Unlock()
			p := &testPolicy{servers: []netip.AddrPort{n.addr}, pins: map[netip.Addr]time.Duration{}}
			got := ask(t, "udp", start(t, p), "good.example", dns.TypeA)
			want := "203.0.113.10 203.0.113.11"
			if r.rcode != 0 {
				want = ""
			}
			if got.Rcode != r.rcode || strings.Join(addresses(got), " ") != want || len(got.Extra) > 0 {
				t.Errorf("got %v", got)
			}
			if _, ok := p.pinned()[netip.MustParseAddr("203.0.113.66")]; ok {
				t.Error("a stray record was pinned")
			}
		})
	}
}

// TestBadMessages sends what is not a question, and then one to see that the server lives.
func TestBadMessages(t *testing.T) {
	n := newNameServer(t)
	p := &testPolicy{servers: []netip.AddrPort{n.addr}, pins: map[netip.Addr]time.Duration{}}
	addr := start(t, p)
	var two, update, chaos dns.Msg
	two.SetQuestion("good.example.", dns.TypeA)
	two.Question = append(two.Question, two.Question[0])
	update.SetUpdate("example.")
	chaos.SetQuestion("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	for want, q := range map[int]*dns.Msg{dns.RcodeFormatError: &two, dns.RcodeNotImplemented: &update, dns.RcodeRefused: &chaos} {
		c := dns.Client{Net: "tcp", Timeout: 5 * time.Second}
		if r, _, err := c.Exchange(q, addr); err != nil || r.Rcode != want {
			t.Errorf("want %s, got %v, %v", dns.RcodeToString[want], r, err)
		}
	}
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, junk := range [][]byte{{}, {1}, make([]byte, 12), []byte(strings.Repeat("\xff", 4096)), []byte(strings.Repeat("\xc0\x0c", 300))} {
		c.Write(junk)
	}
	if r := ask(t, "udp", addr, "good.example", dns.TypeA); len(r.Answer) != 2 {
		t.Errorf("after junk: %v", r)
	}
}

func TestStrangers(t *testing.T) {
	n := newNameServer(t)
	addr := start(t, &testPolicy{servers: []netip.AddrPort{n.addr}, pins: map[netip.Addr]time.Duration{}})
	var q dns.Msg
	q.SetQuestion("good.example.", dns.TypeA)
	for _, from := range []string{"127.0.0.2", "127.0.0.9"} { // in the range but nobody's; outside
		for _, network := range []string{"udp", "tcp"} {
			local := net.Addr(&net.UDPAddr{IP: net.ParseIP(from)})
			if network == "tcp" {
				local = &net.TCPAddr{IP: net.ParseIP(from)}
			}
			c := dns.Client{Net: network, Timeout: 100 * time.Millisecond, Dialer: &net.Dialer{LocalAddr: local, Timeout: 100 * time.Millisecond}}
			if r, _, err := c.Exchange(&q, addr); err == nil {
				t.Errorf("%s by %s got %v", from, network, r)
			}
		}
	}
	if n.asked("good.example") {
		t.Error("a stranger's question was passed on")
	}
}

// TestFlood has one asker send more than it may while its name server is silent; another asker must not notice.
func TestFlood(t *testing.T) {
	n := newNameServer(t)
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	flooder := &testPolicy{servers: []netip.AddrPort{silent.LocalAddr().(*net.UDPAddr).AddrPort()}, pins: map[netip.Addr]time.Duration{}}
	quiet := &testPolicy{servers: []netip.AddrPort{n.addr}, pins: map[netip.Addr]time.Duration{}}
	s, err := New(t.Context(), Config{Asker: func(a netip.Addr) Policy {
		if a == netip.MustParseAddr("127.0.0.1") {
			return quiet
		}
		return flooder
	}, Source: netip.MustParsePrefix("127.0.0.0/8"), HostConfig: "/nonexistent", Log: slog.New(slog.DiscardHandler)})
	if errors.Is(err, os.ErrPermission) {
		t.Skip("this kernel lets only root attach socket filters: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { stop(); <-done }()
	addr := fmt.Sprintf("127.0.0.1:%d", s.Port())
	c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP("127.0.0.2")}}).Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 3 * burst {
		var q dns.Msg
		q.SetQuestion(fmt.Sprintf("n%d.example.", i), dns.TypeA)
		b, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		c.Write(b)
	}
	if r := ask(t, "udp", addr, "good.example", dns.TypeA); len(r.Answer) != 2 {
		t.Errorf("the other asker got %v", r)
	}
	if n := len(s.slots); n > atOnce+1 {
		t.Errorf("%d questions at a time", n)
	}
}

func TestHostServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string, at time.Time) {
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	h := newHostServers(path)
	if _, err := h.list(); err == nil {
		t.Error("servers without a file")
	}
	now := time.Now()
	write("# comment\nnameserver 192.0.2.1\nsearch x.example\nnameserver nonsense\nnameserver 2001:db8::1\n", now)
	got, err := h.list()
	if err != nil || fmt.Sprint(got) != "[192.0.2.1:53 [2001:db8::1]:53]" {
		t.Errorf("%v, %v", got, err)
	}
	write("nameserver 192.0.2.2\n", now.Add(time.Second))
	if got, _ := h.list(); len(got) != 2 {
		t.Error("the file is looked at for every question")
	}
	h.looked = time.Time{}
	if got, err := h.list(); err != nil || fmt.Sprint(got) != "[192.0.2.2:53]" {
		t.Errorf("after a change: %v, %v", got, err)
	}
	write("options edns0\n", now.Add(2*time.Second))
	h.looked = time.Time{}
	if got, err := h.list(); err == nil {
		t.Errorf("a file without servers: %v", got)
	}
}

func FuzzHandle(f *testing.F) {
	var q dns.Msg
	q.SetQuestion("good.example.", dns.TypeA)
	b, err := q.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	s := &Server{cfg: Config{}, log: slog.New(slog.DiscardHandler), servers: newHostServers("/nonexistent")}
	f.Fuzz(func(t *testing.T, question []byte) {
		out := s.handle(t.Context(), &testPolicy{names: []string{}}, question, true)
		if len(out) > maxUDP {
			t.Errorf("%d bytes by UDP", len(out))
		}
	})
}
