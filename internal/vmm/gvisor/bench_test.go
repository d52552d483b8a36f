package gvisor_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/gvisor"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/vmmtest"
)

// percentiles reports the median and the worst hundredth of a series.
func percentiles(b *testing.B, name string, series []time.Duration) {
	slices.Sort(series)
	at := func(p float64) float64 { return float64(series[int(p*float64(len(series)-1))].Microseconds()) / 1000 }
	b.ReportMetric(at(0.5), name+"-p50-ms")
	b.ReportMetric(at(0.99), name+"-p99-ms")
}

type bench struct {
	*testing.B
	ctx    context.Context
	driver *gvisor.Driver
	image  string
	dir    string
	n      int
}

func newBench(b *testing.B) *bench {
	if program(b) != "" {
		b.Skip("the raw floor needs a static test binary: CGO_ENABLED=0")
	}
	d, err := gvisor.New(gvisor.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	if s := d.Probe(b.Context()); !s.Usable {
		b.Skip(s.Reason)
	}
	return &bench{B: b, ctx: b.Context(), driver: d, image: vmmtest.Image(b), dir: b.TempDir()}
}

func (b *bench) config() vmm.Config {
	b.n++
	return vmm.Config{
		ID: fmt.Sprintf("bench%d%d", os.Getpid(), b.n), RootFS: b.image, Args: []string{vmmtest.GuestPath, "init"},
		Resources: tartarus.Resources{VCPU: 2, MemoryMB: 512, DiskMB: 256, PIDs: 256},
	}
}

func (b *bench) raw() gvisor.RawConfig {
	b.n++
	dir := filepath.Join(b.dir, fmt.Sprint(b.n))
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	return gvisor.RawConfig{Dir: dir, RootFS: b.image, Args: []string{vmmtest.GuestPath, "init"}}
}

func (b *bench) exec(m vmm.Execer) {
	var out bytes.Buffer
	if code, err := m.Exec(b.ctx, []string{vmmtest.GuestPath, "args", "x"}, &out); err != nil || code != 0 {
		b.Fatalf("exec: %d, %v, %s", code, err, out.String())
	}
}

// BenchmarkBoot measures a cold start to the end of the first command, and the same by hand, in turn.
func BenchmarkBoot(bb *testing.B) {
	b := newBench(bb)
	var ours, boots, raw, stops []time.Duration
	for bb.Loop() {
		t0 := time.Now()
		m, err := b.driver.Boot(b.ctx, b.config())
		if err != nil {
			b.Fatal(err)
		}
		boots = append(boots, time.Since(t0))
		b.exec(m.(vmm.Execer))
		ours = append(ours, time.Since(t0))
		t0 = time.Now()
		if err := m.Stop(b.ctx); err != nil {
			b.Fatal(err)
		}
		stops = append(stops, time.Since(t0))
		c := b.raw()
		t0 = time.Now()
		r, err := gvisor.RawStart(c)
		if err != nil {
			b.Fatal(err)
		}
		b.exec(r)
		raw = append(raw, time.Since(t0))
		if err := r.Stop(); err != nil {
			b.Fatal(err)
		}
	}
	percentiles(bb, "boot", boots)
	percentiles(bb, "boot+exec", ours)
	percentiles(bb, "raw+exec", raw)
	percentiles(bb, "stop", stops)
}

// BenchmarkRestore measures a restore to the end of the first command, and the same by hand, in turn; and how long
// the source stood still.
func BenchmarkRestore(bb *testing.B) {
	b := newBench(bb)
	source, err := b.driver.Boot(b.ctx, b.config())
	if err != nil {
		b.Fatal(err)
	}
	defer source.Stop(b.ctx)
	hand, err := gvisor.RawStart(b.raw())
	if err != nil {
		b.Fatal(err)
	}
	defer hand.Stop()
	b.exec(source.(vmm.Execer))
	b.exec(hand)
	if _, err := hand.Exec(b.ctx, []string{vmmtest.GuestPath, "eat", "1"}, new(bytes.Buffer)); err != nil {
		b.Fatal(err)
	}
	var ours, raw, save, rawSave []time.Duration
	for bb.Loop() {
		dirs := []string{b.raw().Dir, b.raw().Dir}
		t0 := time.Now()
		if err := source.Snapshot(b.ctx, dirs[0]); err != nil {
			b.Fatal(err)
		}
		save = append(save, time.Since(t0))
		t0 = time.Now()
		if err := hand.Checkpoint(dirs[1]); err != nil {
			b.Fatal(err)
		}
		rawSave = append(rawSave, time.Since(t0))
		t0 = time.Now()
		m, err := b.driver.Restore(b.ctx, b.config(), dirs[0])
		if err != nil {
			b.Fatal(err)
		}
		b.exec(m.(vmm.Execer))
		ours = append(ours, time.Since(t0))
		if err := m.Stop(b.ctx); err != nil {
			b.Fatal(err)
		}
		c := b.raw()
		t0 = time.Now()
		r, err := gvisor.RawRestore(c, dirs[1])
		if err != nil {
			b.Fatal(err)
		}
		b.exec(r)
		raw = append(raw, time.Since(t0))
		if err := r.Stop(); err != nil {
			b.Fatal(err)
		}
	}
	percentiles(bb, "restore+exec", ours)
	percentiles(bb, "raw-restore+exec", raw)
	percentiles(bb, "snapshot", save)
	percentiles(bb, "raw-checkpoint", rawSave)
}
