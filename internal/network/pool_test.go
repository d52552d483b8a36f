package network

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

// TestTimings makes 50 slots, lends them all, and takes them back.
func TestTimings(t *testing.T) {
	const n = 50
	p := openPool(t, Config{Slots: n})
	took := func(what string, f func()) time.Duration {
		start := time.Now()
		f()
		d := time.Since(start)
		t.Logf("%s: %v", what, d)
		return d
	}
	if d := took("make 50 slots", func() { p.refill(t.Context()) }); d > 2*time.Second {
		t.Errorf("50 slots took %v", d)
	}
	var slots []*Slot
	var each []time.Duration
	took("acquire 50 ready ones", func() {
		for range n {
			start := time.Now()
			s, err := p.Acquire(t.Context())
			each = append(each, time.Since(start))
			must(t, err)
			slots = append(slots, s)
		}
	})
	slices.Sort(each)
	if d := each[n/2]; d > time.Millisecond {
		t.Errorf("acquiring a ready slot takes %v", d)
	}
	took("acquire one more", func() {
		s, err := p.Acquire(t.Context())
		must(t, err)
		slots = append(slots, s)
	})
	took("open 51", func() {
		for _, s := range slots {
			must(t, p.SetRules(t.Context(), s, Rules{Open: true}))
		}
	})
	took("change 1 to rules of its own", func() {
		must(t, p.SetRules(t.Context(), slots[0], Rules{Open: true, Deny: prefixes("203.0.113.0/24")}))
	})
	took("read counters", func() {
		_, err := p.Counters(t.Context(), slots[0])
		must(t, err)
	})
	took("release 51", func() { releaseAll(t, p, slots...) })
	took("reset 51", func() { p.refill(t.Context()) })
	took("close", func() { must(t, p.Close(t.Context())) })
}

// TestFirstPacket sends one frame from, and one to, each slot at the moment it is made.
func TestFirstPacket(t *testing.T) {
	w := newWorld(t)
	w.watchLink("world", w.path, "outside")
	p := openPool(t, Config{})
	for range 10 {
		s, err := p.Acquire(t.Context())
		must(t, err)
		must(t, p.SetRules(t.Context(), s, Rules{Open: true}))
		x := w.wire(s)
		out, in := newMark(), newMark()
		x.send(packet{src: s.guest, dst: netip.MustParseAddr("203.0.113.10"), proto: protoUDP, port: 9999}.frame(out))
		c := udpFrom(t, s.guest.String(), 9999)
		_, err = c.Write(in)
		must(t, err)
		c.Close()
		eventually(t, "the first packet out arrives", func() bool { return w.whoSaw(out) == "world" })
		buf := make([]byte, 2048)
		eventually(t, "the first packet in arrives", func() bool {
			n, err := unix.Read(x.fd, buf)
			return err == nil && bytes.Contains(buf[:n], in)
		})
		unwire(x)
		releaseAll(t, p, s)
		must(t, p.destroy([]*Slot{p.takeDirty("")})) // the next is made anew
	}
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

// hostState is everything a pool can leave on the host.
func hostState(t testing.TB, runDir string) map[string]int {
	t.Helper()
	count := func(cmd string) int {
		out, err := exec.Command("sh", "-c", cmd).CombinedOutput()
		must(t, err)
		return strings.Count(string(out), "\n")
	}
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	netns, err := os.ReadDir(filepath.Join(runDir, "netns"))
	must(t, err)
	return map[string]int{
		"links": count("ip -o link show | grep -c tart >/dev/null && ip -o link show | grep tart || true"),
		"rules": count("nft list ruleset"), "routes": count("ip route show table all | grep tart || true"),
		"neighbours": count("ip neigh show nud all | grep tart || true"), "mounts": count("grep netns/tart /proc/self/mounts || true"),
		"connections": count("cat /proc/self/net/nf_conntrack 2>/dev/null || true"), "netns": len(netns), "fds": len(fds), "goroutines": runtime.NumGoroutine(),
	}
}

// TestLeak has a pool lend and take back slots 200 times, with rules and traffic, while Run refills it.
func TestLeak(t *testing.T) {
	w := newWorld(t)
	dir := runDir(t)
	p := openPool(t, Config{Slots: 4, TAPs: 1, RunDir: dir})
	warm := hostState(t, dir)
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- p.Run(ctx) }()
	for i := range 200 {
		acquire := p.Acquire
		if i%10 == 9 {
			acquire = p.AcquireTAP
		}
		s, err := acquire(t.Context())
		must(t, err)
		switch i % 4 {
		case 0:
			must(t, p.SetRules(t.Context(), s, Rules{Open: true, Mail: true}))
		case 1:
			must(t, p.SetRules(t.Context(), s, Rules{Open: true, Deny: prefixes("203.0.113.11/32"), Exempt: prefixes("10.1.0.0/16")}))
		case 2:
			must(t, p.SetRules(t.Context(), s, Rules{Allow: prefixes("203.0.113.10/32")}))
		}
		w.within(s.path, func() error {
			c, err := net.Dial("udp4", "203.0.113.10:80")
			if err == nil {
				c.Write([]byte("x"))
				err = c.Close()
			}
			if s.kind == TAP { // no address inside: the machine has it
				return nil
			}
			return err
		})
		must(t, p.Release(t.Context(), s))
	}
	stop()
	must(t, <-ran)
	idle := hostState(t, dir)
	if n := len(p.slots); n > 12 {
		t.Errorf("%d slots after 200 cycles of one at a time", n)
	}
	must(t, p.Close(t.Context()))
	warm["rules"] = 0
	var more string
	for deadline := time.Now().Add(soon); ; time.Sleep(10 * time.Millisecond) { // threads and sockets take a moment to end
		more = ""
		for what, n := range hostState(t, dir) {
			if n > warm[what] {
				more += fmt.Sprintf("%s: %d before, %d in use, %d after. ", what, warm[what], idle[what], n)
			}
		}
		if more == "" || time.Now().After(deadline) {
			break
		}
	}
	if more != "" {
		t.Error(more)
	}
}
