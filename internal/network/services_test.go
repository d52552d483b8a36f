package network

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/network/webgate"
)

// origin is a TLS server for example.com at port 443 of every address in the world, which says what header it got. It returns what its
// certificate leads to.
func (w *world) origin() *x509.CertPool {
	w.t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) {
		fmt.Fprintf(rw, "key %q via %s", q.Header.Get("X-Key"), q.Host)
	}))
	s.Listener.Close()
	w.within(w.path, func() (err error) { s.Listener, err = net.Listen("tcp4", ":443"); return err })
	s.StartTLS()
	w.t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return roots
}

// fetch asks addr for https://name from inside a slot, trusting roots alone.
func (w *world) fetch(s *Slot, name, host, addr string, roots *x509.CertPool) (string, error) {
	w.t.Helper()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
			w.within(s.path, func() error {
				c, err = (&net.Dialer{}).DialContext(ctx, "tcp4", net.JoinHostPort(addr, "443"))
				return nil
			})
			return c, err
		},
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: name},
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(w.t.Context(), "GET", "https://"+name+"/", nil)
	must(w.t, err)
	req.Host = host
	req.Header.Set("X-Key", "the guest's own")
	req.Header.Set("Connection", "X-Key") // would have a proxy take it out again
	res, err := (&http.Client{Transport: transport, Timeout: soon}).Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%d %s", res.StatusCode, b)
	}
	return string(b), err
}

// TestTransform has headers put into requests: only for the servers that rules name, only where the server proves its name, with values that
// the guest never sees.
func TestTransform(t *testing.T) {
	w := newWorld(t)
	origin := w.origin()
	var owners sync.Map
	p := openPool(t, Config{Roots: origin, Fill: func(_ context.Context, o Owner, value string) (string, error) {
		owners.Store(o.Sandbox, true)
		if strings.Contains(value, "none") {
			return "", tartarus.Errorf(tartarus.NotFound, "there is no secret none")
		}
		return strings.ReplaceAll(value, "${e2b.secrets.key}", "hunter2"), nil
	}})
	running(t, p)
	s, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, s)
	ours := x509.NewCertPool()
	if !ours.AppendCertsFromPEM(p.CACertificate()) {
		t.Fatal("no authority")
	}
	rules := Rules{Open: true, Owner: Owner{Sandbox: "i1"}, Transforms: map[string]map[string]string{"example.com": {"X-Key": "Bearer ${e2b.secrets.key}"}}}
	must(t, p.SetRules(t.Context(), s, rules))
	const addr = "203.0.113.10"
	if got, err := w.fetch(s, "example.com", "", addr, ours); err != nil || got != `key "Bearer hunter2" via example.com` {
		t.Fatalf("got %q, %v", got, err)
	}
	if _, ok := owners.Load("i1"); !ok {
		t.Error("the values were not asked for in the sandbox's name")
	}
	if got, err := w.fetch(s, "example.com", "evil.example", addr, ours); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("a request for another server: %q, %v", got, err)
	}
	if got, err := w.fetch(s, "example.com", "", "169.254.169.254", ours); err == nil {
		t.Errorf("metadata: %q", got)
	}
	// Other names are passed on untouched: it is their own certificate that the guest sees.
	if got, err := w.fetch(s, "other.example.com", "", addr, ours); err == nil {
		t.Errorf("another name is answered for: %q", got)
	}
	// A server that cannot prove the name gets nothing.
	rules.Transforms = map[string]map[string]string{"*.example": {"X-Key": "${e2b.secrets.key}"}}
	must(t, p.SetRules(t.Context(), s, rules))
	if got, err := w.fetch(s, "api.example", "", addr, ours); err == nil || !strings.Contains(err.Error(), "502") {
		t.Errorf("a server with another's certificate: %q, %v", got, err)
	}
	// A value that cannot be had keeps the request from being sent.
	rules.Transforms = map[string]map[string]string{"example.com": {"X-Key": "${e2b.secrets.none}"}}
	must(t, p.SetRules(t.Context(), s, rules))
	if got, err := w.fetch(s, "example.com", "", addr, ours); err == nil || !strings.Contains(err.Error(), "no secret none") {
		t.Errorf("without its secret: %q, %v", got, err)
	}
	must(t, p.SetRules(t.Context(), s, Rules{Open: true}))
	if got, err := w.fetch(s, "example.com", "", addr, origin); err != nil || got != `key "" via example.com` && got != `key "the guest's own" via example.com` {
		t.Errorf("without rules: %q, %v", got, err)
	}
}

// socks is a SOCKS5 server in the world, with a user and a password.
type socks struct {
	mu      sync.Mutex
	targets []string
}

func (w *world) socks(addr string, secure *tls.Config) *socks {
	w.t.Helper()
	s := &socks{}
	var l net.Listener
	w.within(w.path, func() (err error) { l, err = net.Listen("tcp4", addr); return err })
	if secure != nil {
		l = tls.NewListener(l, secure)
	}
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = s.serve(w, c)
			}()
		}
	}()
	return s
}

func (s *socks) serve(w *world, c net.Conn) error {
	c.SetDeadline(time.Now().Add(time.Minute))
	read := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(c, b); err != nil {
			return make([]byte, n)
		}
		return b
	}
	read(int(read(2)[1])) // methods
	c.Write([]byte{5, 2})
	user := string(read(int(read(2)[1])))
	if pass := string(read(int(read(1)[0]))); user != "me" || pass != "secret" {
		c.Write([]byte{1, 1})
		return errors.New("wrong password")
	}
	c.Write([]byte{1, 0})
	var host string
	switch read(4)[3] {
	case 1:
		host = netip.AddrFrom4([4]byte(read(4))).String()
	case 3:
		host = string(read(int(read(1)[0])))
	}
	target := net.JoinHostPort(host, fmt.Sprint(binary.BigEndian.Uint16(read(2))))
	s.mu.Lock()
	s.targets = append(s.targets, target)
	s.mu.Unlock()
	c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	b := make([]byte, 4)
	io.ReadFull(c, b)
	fmt.Fprintf(c, "%s for %s", b, target)
	return nil
}

func (s *socks) saw() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.targets, " ")
}

// say connects from inside a slot, says four letters and returns the answer.
func (w *world) say(s *Slot, addr string) string {
	w.t.Helper()
	var c net.Conn
	var err error
	w.within(s.path, func() error {
		c, err = (&net.Dialer{Timeout: 2 * quiet}).DialContext(w.t.Context(), "tcp4", addr)
		return nil
	})
	if err != nil {
		return "refused"
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(soon))
	fmt.Fprint(c, "ping")
	b, err := io.ReadAll(c)
	if err != nil || len(b) == 0 {
		return "refused"
	}
	return string(b)
}

// TestEgressProxy sends all TCP of a sandbox through a SOCKS5 server: what rules deny is not sent there either, and where the proxy is away or may not
// be one, nothing leaves.
func TestEgressProxy(t *testing.T) {
	w := newWorld(t)
	plain := w.socks(":1080", nil)
	cert := httptest.NewTLSServer(nil)
	defer cert.Close()
	roots := x509.NewCertPool()
	roots.AddCert(cert.Certificate())
	secure := w.socks(":1081", cert.TLS)
	p := openPool(t, Config{})
	running(t, p)
	s, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, s)
	via := func(x webgate.Proxy) Rules {
		x.Username, x.Password = "me", "secret"
		return Rules{Open: true, Deny: prefixes("9.9.9.9/32"), Proxy: &x}
	}
	must(t, p.SetRules(t.Context(), s, via(webgate.Proxy{Address: "203.0.113.11:1080"})))
	if got := w.say(s, "203.0.113.10:7000"); got != "ping for 203.0.113.10:7000" {
		t.Fatalf("got %q", got)
	}
	for _, denied := range []string{"9.9.9.9:7000", "169.254.169.254:80", "10.1.2.3:443", "203.0.113.10:25", hostAddr + ":7000", s.gateway.String() + ":7000"} {
		if got := w.say(s, denied); got != "refused" {
			t.Errorf("%s: %q", denied, got)
		}
	}
	if got := plain.saw(); got != "203.0.113.10:7000" {
		t.Errorf("the proxy was asked for %s", got)
	}
	must(t, p.SetRules(t.Context(), s, via(webgate.Proxy{Address: "203.0.113.11:1081", TLS: true, ServerName: "example.com", Roots: roots})))
	if got := w.say(s, "203.0.113.10:443"); got != "ping for 203.0.113.10:443" || secure.saw() != "203.0.113.10:443" {
		t.Errorf("through TLS: %q, and the proxy was asked for %s", got, secure.saw())
	}
	bad := via(webgate.Proxy{Address: "203.0.113.11:1080"})
	bad.Proxy.Password = "wrong"
	for name, r := range map[string]Rules{
		"away":              via(webgate.Proxy{Address: "203.0.113.11:1099"}),
		"wrong password":    bad,
		"another's name":    via(webgate.Proxy{Address: "203.0.113.11:1081", TLS: true, ServerName: "other.example", Roots: roots}),
		"the host":          via(webgate.Proxy{Address: hostAddr + ":1080"}),
		"loopback":          via(webgate.Proxy{Address: "127.0.0.1:1080"}),
		"loopback, by name": via(webgate.Proxy{Address: "localhost:1080"}),
		"metadata":          via(webgate.Proxy{Address: "169.254.169.254:1080"}),
	} {
		must(t, p.SetRules(t.Context(), s, r))
		if got := w.say(s, "203.0.113.10:7000"); got != "refused" {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := plain.saw(); got != "203.0.113.10:7000" {
		t.Errorf("the proxy was asked for %s", got)
	}
	must(t, p.SetRules(t.Context(), s, Rules{}))
	if got := w.say(s, "203.0.113.10:7000"); got != "refused" {
		t.Errorf("closed again: %q", got)
	}
}

func TestServicesRefuse(t *testing.T) {
	for name, n := range map[string]tartarus.Network{
		"name server by name":  {DNS: []string{"dns.example"}},
		"private name server":  {DNS: []string{"10.0.0.53"}},
		"proxy without port":   {Proxy: &tartarus.EgressProxy{Address: "proxy.example"}},
		"proxy on loopback":    {Proxy: &tartarus.EgressProxy{Address: "127.0.0.1:1080"}},
		"password alone":       {Proxy: &tartarus.EgressProxy{Address: "a.example:1080", Password: "x"}},
		"name without TLS":     {Proxy: &tartarus.EgressProxy{Address: "a.example:1080", ServerName: "b.example"}},
		"no certificates":      {Proxy: &tartarus.EgressProxy{Address: "a.example:1080", TLS: true, CACert: "x"}},
		"a header of the line": {Transforms: map[string]map[string]string{"a.example": {"Host": "x"}}},
		"a header with colon":  {Transforms: map[string]map[string]string{"a.example": {"A:b": "x"}}},
		"a value of two lines": {Transforms: map[string]map[string]string{"a.example": {"A": "x\r\nB: y"}}},
		"a bare wildcard":      {Transforms: map[string]map[string]string{"*": {"A": "x"}}},
	} {
		n.Internet = true
		if _, err := ParseRules(n); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r, err := ParseRules(tartarus.Network{Internet: true, DNS: []string{"9.9.9.9"}, Transforms: map[string]map[string]string{
		"a.b.example": {"X": "exact"}, "*.b.example": {"X": "near"}, "*.example": {"X": "far"}, "*.com": {"X": "broad"},
	}})
	must(t, err)
	for host, want := range map[string]string{"a.b.example": "exact", "x.b.example": "near", "x.y.b.example": "near", "b.example": "far", "example": "", "a.com": "broad", "com": ""} {
		if got, _ := r.transform(host); got["X"] != want {
			t.Errorf("%s: got %q, want %q", host, got["X"], want)
		}
	}
}
