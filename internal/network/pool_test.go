package network

import (
	"log/slog"
	"net"
	"os"
	"strconv"
	"testing"
	"time"
)

func openPool(t testing.TB, c Config) *Pool {
	t.Helper()
	needRoot(t)
	if c.RunDir == "" {
		c.RunDir = t.TempDir()
	}
	if c.StateDir == "" {
		c.StateDir = t.TempDir()
	}
	if testing.Verbose() {
		c.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	p, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(t.Context()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p
}

func TestTimings(t *testing.T) {
	p := openPool(t, Config{Slots: 50})
	start := time.Now()
	p.refill(t.Context())
	t.Logf("50 slots made in %v", time.Since(start))
	start = time.Now()
	s, err := p.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("acquire %v", time.Since(start))
	start = time.Now()
	if err := p.SetRules(t.Context(), s, Rules{Open: true}); err != nil {
		t.Fatal(err)
	}
	t.Logf("rules open %v", time.Since(start))
	start = time.Now()
	if err := p.SetRules(t.Context(), s, Rules{Open: true, Deny: prefixes("1.2.3.0/24")}); err != nil {
		t.Fatal(err)
	}
	t.Logf("rules custom %v", time.Since(start))
	start = time.Now()
	c, err := p.Counters(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("counters %v %v", c, time.Since(start))
	start = time.Now()
	if err := p.Release(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	t.Logf("release %v", time.Since(start))
	start = time.Now()
	s = p.takeDirty("")
	if err := p.clean(s); err != nil {
		t.Fatal(err)
	}
	p.keepOrDrop(s)
	t.Logf("clean %v", time.Since(start))
	start = time.Now()
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("close %v", time.Since(start))
}

func releaseAll(t testing.TB, p *Pool, slots ...*Slot) {
	t.Helper()
	for _, s := range slots {
		if err := p.Release(t.Context(), s); err != nil {
			t.Errorf("release %s: %v", s.name, err)
		}
	}
}

func udpFrom(t testing.TB, addr string, port int) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", net.JoinHostPort(addr, strconv.Itoa(port)))
	must(t, err)
	return c
}
