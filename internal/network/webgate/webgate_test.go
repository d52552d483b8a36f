package webgate

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testPolicy allows one name at one address, and another address for any name.
type testPolicy struct {
	name   string
	pinned netip.Addr
	free   netip.AddrPort
	ended  atomic.Bool
}

func (p *testPolicy) Name() string                  { return "slot" }
func (p *testPolicy) Resolves(name string) bool     { return name == p.name && !p.ended.Load() }
func (p *testPolicy) Passes(to netip.AddrPort) bool { return to == p.free }
func (p *testPolicy) Pinned(a netip.Addr) bool      { return a == p.pinned }
func (p *testPolicy) Proxy() *Proxy                 { return nil }
func (p *testPolicy) Transforms(string) bool        { return false }

func (p *testPolicy) Headers(context.Context, string) (map[string]string, error) { return nil, nil }

// rig is a gate between a client and real servers on loopback addresses.
type rig struct {
	t      *testing.T
	gate   *Gate
	policy *testPolicy
	target atomic.Pointer[netip.AddrPort] // where the next connection wants to go
	roots  *x509.CertPool
	tls    netip.AddrPort
}

// The HTTP server has to be at port 80 to be taken for one; unprivileged tests get another one through httpTarget.
func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, policy: &testPolicy{name: "example.com", pinned: netip.MustParseAddr("127.0.0.1")}, roots: x509.NewCertPool()}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { fmt.Fprintf(w, "secure %s", q.Host) }))
	t.Cleanup(s.Close)
	r.roots.AddCert(s.Certificate())
	r.tls = s.Listener.Addr().(*net.TCPAddr).AddrPort()
	g, err := New(t.Context(), Config{
		Client: func(a netip.Addr) Policy {
			if a == netip.MustParseAddr("127.0.0.1") {
				return r.policy
			}
			return nil
		},
		Source: netip.MustParsePrefix("127.0.0.0/8"), Log: slog.New(slog.DiscardHandler),
		Target: func(*net.TCPConn) (netip.AddrPort, error) {
			if to := r.target.Load(); to != nil {
				return *to, nil
			}
			return netip.AddrPort{}, errors.New("no target")
		},
	})
	if errors.Is(err, os.ErrPermission) {
		t.Skip("this kernel lets only root attach socket filters: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.gate = g
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

// dial opens a connection that wants to go to target.
func (r *rig) dial(target netip.AddrPort) net.Conn {
	r.t.Helper()
	r.target.Store(&target)
	c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", r.gate.Port()))
	if errors.Is(err, syscall.ECONNRESET) { // the gate was quicker than we
		dead, peer := net.Pipe()
		peer.Close()
		return dead
	}
	if err != nil {
		r.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(5 * time.Second))
	r.t.Cleanup(func() { c.Close() })
	return c
}

func TestTLS(t *testing.T) {
	rows := []struct {
		name, say string
		pinned    string
		free      bool
		ok        bool
	}{
		{"allowed", "example.com", "127.0.0.1", false, true},
		{"allowed in capitals", "EXAMPLE.com", "127.0.0.1", false, true},
		{"another name", "evil.example", "127.0.0.1", false, false},
		{"name below", "sub.example.com", "127.0.0.1", false, false},
		{"no name", "", "127.0.0.1", false, false},
		{"allowed name at another address", "example.com", "127.0.0.9", false, false},
		{"address allowed for itself", "", "127.0.0.9", true, true},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t)
			r.policy.pinned = netip.MustParseAddr(row.pinned)
			if row.free {
				r.policy.free = r.tls
			}
			c := tls.Client(r.dial(r.tls), &tls.Config{RootCAs: r.roots, ServerName: row.say, InsecureSkipVerify: row.say != "example.com"})
			err := c.HandshakeContext(t.Context())
			if err == nil {
				fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
				var b []byte
				if b, err = io.ReadAll(c); err == nil && !bytes.Contains(b, []byte("secure x")) {
					err = fmt.Errorf("got %q", b)
				}
			}
			if (err == nil) != row.ok {
				t.Errorf("error %v, want success %v", err, row.ok)
			}
		})
	}
}

func TestNotTLS(t *testing.T) {
	r := newRig(t)
	for _, junk := range []string{"SSH-2.0-OpenSSH\r\n", "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", "\x16\x03\x01\xff\xff" + strings.Repeat("x", 1<<17), "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"} {
		c := r.dial(r.tls)
		c.Write([]byte(junk))
		c.(*net.TCPConn).CloseWrite()
		if b, _ := io.ReadAll(c); len(b) > 0 {
			t.Errorf("%.20q got %q", junk, b)
		}
	}
	stranger, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}).Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", r.gate.Port()))
	if errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	stranger.SetDeadline(time.Now().Add(5 * time.Second))
	if n, err := stranger.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a stranger read %d bytes, %v", n, err)
	}
}

// site is a web server at port 80 of a loopback address; tests that need it skip where the port may not be opened.
func site(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.77:80")
	if err != nil {
		t.Skip("needs to listen at port 80: ", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, q *http.Request) {
		b, _ := io.ReadAll(q.Body)
		w.Header().Set("X-Seen", fmt.Sprint(q.Header["X-Forwarded-For"], q.Header["User-Agent"], q.Header["Forwarded"]))
		fmt.Fprintf(w, "%s %s %s %d", q.Method, q.Host, q.URL.Path, len(b))
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, q *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(c, rw)
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, q *http.Request) { // at once, not when the request is at its end
		_ = http.NewResponseController(w).EnableFullDuplex()
		first := make([]byte, 5)
		if _, err := io.ReadFull(q.Body, first); err != nil {
			return
		}
		_, _ = w.Write(first)
		w.(http.Flusher).Flush()
		_, _ = io.Copy(w, q.Body)
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, q *http.Request) { w.Write(make([]byte, 1<<22)) })
	s := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() { s.Serve(l); close(done) }()
	t.Cleanup(func() { s.Close(); <-done })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestRequests(t *testing.T) {
	to := site(t)
	rows := []struct {
		name, request string
		code          int
		body          string
	}{
		{"allowed", "GET /a HTTP/1.1\r\nHost: example.com\r\n\r\n", 200, "GET example.com /a 0"},
		{"with a port", "GET /a HTTP/1.1\r\nHost: example.com:80\r\n\r\n", 200, "GET example.com:80 /a 0"},
		{"with a final dot", "GET /a HTTP/1.1\r\nHost: Example.COM.\r\n\r\n", 200, "GET Example.COM. /a 0"},
		{"body", "POST /b HTTP/1.1\r\nHost: example.com\r\nContent-Length: 5\r\n\r\nhello", 200, "POST example.com /b 5"},
		{"chunked body", "PUT /c HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 200, "PUT example.com /c 3"},
		{"another name", "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403, ""},
		{"no name", "GET / HTTP/1.0\r\n\r\n", 403, ""},
		{"address", "GET / HTTP/1.1\r\nHost: 127.0.0.77\r\n\r\n", 403, ""},
		{"absolute, another name", "GET http://evil.example/ HTTP/1.1\r\nHost: example.com\r\n\r\n", 403, ""},
		{"absolute, allowed", "GET http://example.com/x HTTP/1.1\r\nHost: evil.example\r\n\r\n", 200, "GET example.com /x 0"},
		{"two hosts", "GET / HTTP/1.1\r\nHost: example.com\r\nHost: evil.example\r\n\r\n", 400, ""},
		{"tunnel", "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", 403, ""},
		{"not HTTP", "hello\r\n\r\n", 400, ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t)
			r.policy.pinned = to.Addr()
			c := r.dial(to)
			io.WriteString(c, row.request)
			q, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer q.Body.Close()
			b, _ := io.ReadAll(q.Body)
			if q.StatusCode != row.code || (row.body != "" && string(b) != row.body) {
				t.Errorf("%d %q", q.StatusCode, b)
			}
			if seen := q.Header.Get("X-Seen"); row.code == 200 && seen != "[] [] []" {
				t.Errorf("the server saw headers that the client did not send: %s", seen)
			}
		})
	}
}

// A server may answer before it has been sent the whole request: its answer passes at once, and the rest of the request too.
func TestAnswerBeforeTheEndOfTheRequest(t *testing.T) {
	to := site(t)
	r := newRig(t)
	r.policy.pinned = to.Addr()
	c := r.dial(to)
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, "POST /echo HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	io.WriteString(c, "4\r\nrest\r\n0\r\n\r\n")
	if got, err := io.ReadAll(res.Body); err != nil || string(got) != "firstrest" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestSecondRequest says another name on a connection whose first request was in order.
func TestSecondRequest(t *testing.T) {
	to := site(t)
	r := newRig(t)
	r.policy.pinned = to.Addr()
	c := r.dial(to)
	in := bufio.NewReader(c)
	for _, step := range []struct {
		host string
		code int
	}{{"example.com", 200}, {"example.com", 200}, {"evil.example", 403}} {
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", step.host)
		q, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, q.Body)
		q.Body.Close()
		if q.StatusCode != step.code {
			t.Errorf("%s: %d", step.host, q.StatusCode)
		}
	}
	if _, err := in.ReadByte(); err == nil {
		t.Error("the connection goes on after a refused request")
	}
}

// TestRecheck cuts what the policy does not allow any more: an upgraded connection, one inside a download, one in TLS.
func TestRecheck(t *testing.T) {
	to := site(t)
	r := newRig(t)
	r.policy.pinned = to.Addr()
	ws := r.dial(to)
	io.WriteString(ws, "GET /ws HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	in := bufio.NewReader(ws)
	if q, err := http.ReadResponse(in, nil); err != nil || q.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %v, %v", q, err)
	}
	echo := func() error {
		if _, err := io.WriteString(ws, "ping\n"); err != nil {
			return err
		}
		_, err := in.ReadString('\n')
		return err
	}
	if err := echo(); err != nil {
		t.Fatal(err)
	}
	big := r.dial(to)
	io.WriteString(big, "GET /big HTTP/1.1\r\nHost: example.com\r\n\r\n")
	if _, err := io.ReadFull(big, make([]byte, 1<<12)); err != nil {
		t.Fatal(err)
	}
	r.policy.free = r.tls
	secure := tls.Client(r.dial(r.tls), &tls.Config{InsecureSkipVerify: true})
	if err := secure.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}

	r.gate.Recheck(r.policy.pinned, true) // somebody else's
	r.gate.Recheck(netip.MustParseAddr("127.0.0.1"), true)
	if err := echo(); err != nil {
		t.Fatalf("an allowed connection was cut: %v", err)
	}
	r.policy.ended.Store(true)
	r.gate.Recheck(netip.MustParseAddr("127.0.0.1"), true)
	if err := echo(); err == nil {
		t.Error("an upgraded connection goes on")
	}
	if n, err := io.Copy(io.Discard, big); err == nil && n > 1<<22-1<<13 {
		t.Error("a download goes on")
	}
	fmt.Fprintf(secure, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if _, err := io.ReadAll(secure); err != nil {
		t.Errorf("a connection that needs no name was cut: %v", err)
	}
}

// TestLimit opens one connection more than a sandbox may have.
func TestLimit(t *testing.T) {
	r := newRig(t)
	for range perClient {
		r.dial(r.tls)
	}
	counted := func() int {
		r.gate.mu.Lock()
		defer r.gate.mu.Unlock()
		return len(r.gate.live)
	}
	for deadline := time.Now().Add(5 * time.Second); counted() < perClient; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections", counted())
		}
	}
	if _, err := r.dial(r.tls).Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one connection too many: %v", err)
	}
	if n := counted(); n != perClient {
		t.Errorf("%d connections", n)
	}
}
