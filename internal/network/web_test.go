package network

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// sites serves HTTP at port 80 and TLS at 443 of every address in the world.
func (w *world) sites() {
	w.t.Helper()
	handler := http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) {
		fmt.Fprintf(rw, "%s from %s", q.Host, strings.Split(q.RemoteAddr, ":")[0])
	})
	for port, secure := range map[int]bool{80: false, 443: true} {
		s := httptest.NewUnstartedServer(handler)
		s.Listener.Close()
		w.within(w.path, func() (err error) {
			s.Listener, err = net.Listen("tcp4", fmt.Sprintf(":%d", port))
			return err
		})
		if secure {
			s.StartTLS()
		} else {
			s.Start()
		}
		w.t.Cleanup(s.Close)
	}
}

// get asks addr for a page by name, from inside a slot. It returns the page, or the code of another answer, or "refused".
func (w *world) get(s *Slot, scheme, name, addr string, patience time.Duration) string {
	w.t.Helper()
	port := map[string]string{"http": "80", "https": "443"}[scheme]
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
			w.within(s.path, func() error {
				c, err = (&net.Dialer{}).DialContext(ctx, "tcp4", net.JoinHostPort(addr, port))
				return nil
			})
			return c, err
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	defer transport.CloseIdleConnections()
	r, err := (&http.Client{Transport: transport, Timeout: patience}).Get(scheme + "://" + name + "/")
	if err != nil {
		return "refused"
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		return fmt.Sprint(r.StatusCode)
	}
	return string(b)
}

// TestWebGate browses under domain rules, through the redirection of the kernel.
func TestWebGate(t *testing.T) {
	w := newWorld(t)
	p := openPool(t, Config{HostConfig: w.nameServer(testZone)})
	running(t, p)
	w.sites()
	s, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, s)
	must(t, p.SetRules(t.Context(), s, Rules{Domains: []string{"good.example"}, Allow: prefixes("203.0.113.11/32")}))
	if got := w.get(s, "https", "good.example", "203.0.113.10", soon); got != "refused" {
		t.Errorf("before the name was asked for: %q", got)
	}
	if code, _ := w.resolve(s.path, "udp", s.gateway.String()+":53", "good.example", soon); code != "NOERROR" {
		t.Fatal(code)
	}
	rows := []struct{ name, scheme, host, addr, want string }{
		{"HTTPS", "https", "good.example", "203.0.113.10", "good.example from " + hostAddr},
		{"HTTP", "http", "good.example", "203.0.113.10", "good.example from " + hostAddr},
		{"HTTPS, another name", "https", "bad.example", "203.0.113.10", "refused"},
		{"HTTP, another name", "http", "bad.example", "203.0.113.10", "403"},
		{"HTTPS, no name", "https", "203.0.113.10", "203.0.113.10", "refused"},
		{"HTTPS, another address", "https", "good.example", "9.9.9.9", "refused"},
		{"HTTP, another address", "http", "good.example", "9.9.9.9", "refused"},
		{"HTTPS, metadata", "https", "good.example", "169.254.169.254", "refused"},
		{"HTTP, metadata", "http", "good.example", "169.254.169.254", "refused"},
		{"HTTP, private", "http", "good.example", "10.1.2.3", "refused"},
		{"HTTP, host", "http", "good.example", hostAddr, "refused"},
		{"HTTP, gateway", "http", "good.example", s.gateway.String(), "refused"},
		{"HTTPS, address allowed by itself", "https", "203.0.113.11", "203.0.113.11", "203.0.113.11 from " + hostAddr},
		{"HTTP, address allowed by itself", "http", "bad.example", "203.0.113.11", "bad.example from " + hostAddr},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			patience := soon
			if r.want == "refused" {
				patience = 2 * quiet
			}
			if got := w.get(s, r.scheme, r.host, r.addr, patience); got != r.want {
				t.Errorf("got %q, want %q", got, r.want)
			}
		})
	}

	var c net.Conn
	w.within(s.path, func() (err error) { c, err = net.Dial("tcp4", "203.0.113.10:443"); return err })
	defer c.Close()
	secure := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: "good.example"})
	c.SetDeadline(time.Now().Add(soon))
	must(t, secure.HandshakeContext(t.Context()))
	must(t, p.SetRules(t.Context(), s, Rules{Domains: []string{"other.example"}}))
	if n, err := secure.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("after the change of rules a connection is still open: %d bytes, %v", n, err)
	}
	must(t, p.SetRules(t.Context(), s, Rules{Open: true}))
	if got := w.get(s, "https", "bad.example", "203.0.113.10", soon); got != "bad.example from "+hostAddr {
		t.Errorf("open again: %q", got)
	}
	if p.fw.pinned(s, netip.MustParseAddr("203.0.113.10")) {
		t.Error("a pin survives the end of domain rules")
	}
}
