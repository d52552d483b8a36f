package firecracker_test

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/firecracker"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/vmmtest"
)

// heldTo is what a monitor itself says its machine is held to.
type heldTo struct {
	Drives []struct {
		ID    string                   `json:"drive_id"`
		Limit *firecracker.RateLimiter `json:"rate_limiter"`
	} `json:"drives"`
	Networks []struct {
		RX *firecracker.RateLimiter `json:"rx_rate_limiter"`
		TX *firecracker.RateLimiter `json:"tx_rate_limiter"`
	} `json:"network-interfaces"`
}

// ratesOf asks the monitor of a machine on its own socket, past the driver.
func (r *rig) ratesOf(m vmm.Machine) (disk, image, rx, tx string) {
	r.Helper()
	sockets, err := filepath.Glob(filepath.Join(r.dir, "firecracker", m.Record().ID, "root", "api-*.sock"))
	if err != nil || len(sockets) != 1 {
		r.Fatalf("sockets %v, %v", sockets, err)
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sockets[0])
	}}}
	res, err := client.Get("http://localhost/vm/config")
	if err != nil {
		r.Fatal(err)
	}
	defer res.Body.Close()
	var h heldTo
	if err := json.NewDecoder(res.Body).Decode(&h); err != nil {
		r.Fatal(err)
	}
	for _, d := range h.Drives {
		if d.ID == "disk" {
			disk = said(d.Limit)
		} else {
			image = said(d.Limit)
		}
	}
	if len(h.Networks) > 0 {
		rx, tx = said(h.Networks[0].RX), said(h.Networks[0].TX)
	}
	return disk, image, rx, tx
}

// said is a limiter in short: bytes and operations per second.
func said(l *firecracker.RateLimiter) string {
	if l == nil {
		return "none"
	}
	var out [2]int64
	for i, b := range []*firecracker.TokenBucket{l.Bandwidth, l.Ops} {
		if b != nil {
			out[i] = b.Size * 1000 / max(b.RefillMS, 1)
		}
	}
	b, _ := json.Marshal(out)
	return string(b)
}

// TestRates has the monitor say what it holds its machine to: what the driver is configured for, at a boot, after a restore, and after a restore of what was
// made under other rates.
func TestRates(t *testing.T) {
	r := newRig(t, func(c *firecracker.Config) {
		c.DiskLimit, c.NetLimit = firecracker.PerSecond(8<<20, 500), firecracker.PerSecond(1_250_000, 0)
	})
	expect := func(what string, m vmm.Machine, disk, net string) {
		t.Helper()
		gotDisk, image, rx, tx := r.ratesOf(m)
		if gotDisk != disk || rx != net || tx != net || image != "none" {
			t.Errorf("%s: disk %s, image %s, network %s in and %s out; want %s and %s", what, gotDisk, image, rx, tx, disk, net)
		}
	}
	slots := vmmtest.TAP(t)
	config := func(id string) vmm.Config {
		c := r.config(id)
		c.Interface = slots()
		return c
	}
	src, err := r.driver.Boot(r.ctx, config("src"))
	if err != nil {
		t.Fatal(err)
	}
	r.keep(src)
	expect("booted", src, "[8388608,500]", "[1250000,0]")
	snap := r.snapshot(src)
	restore := func(id string) vmm.Machine {
		t.Helper()
		m, err := r.driver.Restore(r.ctx, config(id), snap)
		if err != nil {
			t.Fatal(err)
		}
		return r.keep(m)
	}
	expect("restored", restore("same"), "[8388608,500]", "[1250000,0]")

	r.change = func(c *firecracker.Config) { c.DiskLimit, c.NetLimit = firecracker.PerSecond(0, 50), nil }
	r.driver = r.open()
	m := restore("other")
	expect("restored under other rates", m, "[0,50]", "none")
	r.counts(m)

	r.change = nil
	r.driver = r.open()
	m = restore("none")
	expect("restored under no rates", m, "none", "none")
	r.counts(m)
}

func TestRatesThatCannotBe(t *testing.T) {
	c := firecracker.Config{Dir: t.TempDir(), Guest: firecracker.Guest{Bare: "x"}, DiskLimit: &firecracker.RateLimiter{Ops: &firecracker.TokenBucket{Size: 1}}}
	if _, err := firecracker.New(c); !tartarus.Is(err, tartarus.Invalid) {
		t.Error(err)
	}
}
