package vmmtest

import (
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

func network(e *env) {
	for _, n := range []int{20, 21} { // with and without the address on the device
		s := e.newSlot(n)
		c := e.config("net" + string(rune('a'+n-20)))
		e.attach(&c, s)
		m := e.start(c)
		e.count(m)
		t0 := time.Now()
		e.equal("answer", s.ask(e, GuestPath, "hostname"), c.Hostname)
		if took := time.Since(t0); took > 900*time.Millisecond && e.factory.Patience <= 1 {
			e.Errorf("the first packet took %s: it waited for an address", took)
		}
		// Its own address, the gateway, and nothing else.
		var l net.Listener
		if err := within(s.host, func() (err error) {
			l, err = net.Listen("tcp", s.guest.Gateway.String()+":0")
			return err
		}); err != nil {
			e.Fatal(err)
		}
		e.after = append(e.after, func() { _ = l.Close() })
		out := e.do(m, "dial", l.Addr().String())
		if c, err := l.Accept(); err == nil {
			c.Close()
		}
		if !strings.HasPrefix(out, "connected "+s.guest.Address.Addr().String()+":") {
			e.Errorf("the guest dials: %s", out)
		}
		if n == 20 {
			bulk(e, m, l)
		}
		dev := e.do(m, "cat", "/proc/net/dev")
		if !strings.Contains(dev, "eth0:") || !strings.Contains(dev, "lo:") || strings.Count(dev, ":") != 2 {
			e.Errorf("the guest's devices: %s", dev)
		}
	}
}

// bulk moves data both ways: large segments and partial checksums come only with it.
func bulk(e *env, m vmm.Machine, l net.Listener) {
	const size = 32 << 20
	sum := crc32.NewIEEE()
	sent := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			sent <- err
			return
		}
		defer c.Close()
		random := rand.NewChaCha8([32]byte{})
		_, err = io.Copy(io.MultiWriter(c, sum), io.LimitReader(random, size))
		sent <- err
	}()
	t0 := time.Now()
	out := e.do(m, "fetch", l.Addr().String())
	if err := <-sent; err != nil || out != fmt.Sprintf("fetched %d %d", size, sum.Sum32()) {
		e.Errorf("to the guest: %s, %v", out, err)
	}
	e.Logf("to the guest: %.0f MB/s", size/1e6/time.Since(t0).Seconds())
	got := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- -1
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}()
	t0 = time.Now()
	e.do(m, "send", l.Addr().String(), strconv.Itoa(size>>20))
	e.equal("bytes from the guest", <-got, int64(size))
	e.Logf("from the guest: %.0f MB/s", size/1e6/time.Since(t0).Seconds())
}

func noNetwork(e *env) {
	c := e.config("nonet")
	if e.factory.ByNetwork { // it cannot be asked: it looks around by itself and ends with what it found
		c.Interface, c.Args = nil, []string{GuestPath, "lonely"}
		x := e.ends(e.start(c))
		if !strings.HasSuffix(x.Message, "status 42") {
			e.Errorf("a guest without a network ended: %+v", x)
		}
		return
	}
	m := e.start(c)
	if out, code, err := e.try(m, "dial", "1.1.1.1:80"); err != nil || code != 1 || !strings.Contains(out, "unreachable") {
		e.Errorf("a guest without a network dials: %s, code %d, %v", out, code, err)
	}
	e.counts(m, 1)
	out := e.do(m, "dial", "127.0.0.1:7007")
	if !strings.HasPrefix(out, "connected 127.0.0.1") {
		e.Errorf("loopback: %s", out)
	}
	if dev := e.do(m, "cat", "/proc/net/dev"); strings.Count(dev, ":") != 1 {
		e.Errorf("the guest's devices: %s", dev)
	}
}
