package hecatoncheir

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/fake"
)

// TestBlindSamples holds that the first reading of a machine, after its start or a resume, is nothing to call a sandbox idle by.
func TestBlindSamples(t *testing.T) {
	var s samples
	at := time.Unix(1000, 0)
	type machine struct{ vmm.Machine }
	one, two := &machine{}, &machine{}
	for i, r := range []struct {
		m   *machine
		cpu time.Duration
	}{{one, time.Second}, {one, 6 * time.Second}, {two, 7 * time.Second}, {two, 12 * time.Second}} {
		s.add(at.Add(time.Duration(i)*5*time.Second), r.m, vmm.Usage{CPU: r.cpu}, nil, tartarus.Resources{VCPU: 1})
	}
	if got := s.between(time.Time{}, time.Time{}); len(got) != 4 || got[0].CPUPercent != 0 || got[1].CPUPercent != 100 || got[2].CPUPercent != 0 {
		t.Errorf("all: %+v", got)
	}
	got := s.telling(time.Time{}, time.Time{})
	if len(got) != 2 || got[0].CPUPercent != 100 || got[1].CPUPercent != 100 {
		t.Errorf("telling: %+v", got)
	}
}

// devices is a Meter that keeps what devices did.
type devices struct {
	unmetered
	mu  sync.Mutex
	sum tartarus.DeviceCounts
}

func (d *devices) Devices(c tartarus.DeviceCounts) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sum.Add(c)
}

// TestWhatMonitorsSay holds that what a guest says of its memory is in its sandbox's metrics and in the node's sum, that devices are counted, and that
// a monitor which does not answer takes nothing away from what the host sees.
func TestWhatMonitorsSay(t *testing.T) {
	var meter devices
	var mute atomic.Bool
	host := fake.NewHost()
	r := newRig(t, func(c *Config) {
		c.Meter = &meter
		driver, err := fake.New(fake.Config{Host: host, Inside: func(string) (vmm.Inside, error) {
			if mute.Load() {
				return vmm.Inside{}, tartarus.Errorf(tartarus.Unavailable, "busy")
			}
			return vmm.Inside{
				Guest: &tartarus.GuestMemory{Total: 100, Free: 10, Available: 60, Cached: 40, Returned: 5}, Since: tartarus.DeviceCounts{DiskRead: 7},
			}, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		c.Drivers = []vmm.Driver{driver}
	})
	r.host = host
	one, two := r.create(), r.create()
	for _, sb := range []tartarus.Sandbox{one, two} {
		r.agent.sample(t.Context(), r.mustFind(sb.ID), nil)
	}
	got, err := r.agent.Samples(t.Context(), one.ID, time.Time{}, time.Time{})
	if err != nil || len(got) == 0 || got[0].MemUsed != 40 || got[0].MemCache != 40 || got[0].MemTotal != 128<<20 {
		t.Fatalf("samples %+v, %v", got, err)
	}
	if s := r.agent.Stats(); s.Guests != 2 || s.Guest.Total != 200 || s.Guest.Returned != 10 {
		t.Errorf("the node's sum is %+v", s)
	}
	meter.mu.Lock()
	if meter.sum.DiskRead < 14 || meter.sum.DiskRead%7 != 0 {
		t.Errorf("counted %+v", meter.sum)
	}
	meter.mu.Unlock()
	mute.Store(true)
	r.agent.sample(t.Context(), r.mustFind(two.ID), nil)
	got, err = r.agent.Samples(t.Context(), two.ID, time.Time{}, time.Time{})
	if last := got[len(got)-1]; err != nil || last.MemUsed != 20<<20 || last.MemCache != 0 {
		t.Errorf("without a word of the monitor: %+v, %v", last, err)
	}
	if err := r.agent.Stop(t.Context(), one.ID, tartarus.ReasonUser); err != nil {
		t.Fatal(err)
	}
	if s := r.agent.Stats(); s.Guests != 0 {
		t.Errorf("%d guests say something, of which one has ended and one is mute", s.Guests)
	}
}
