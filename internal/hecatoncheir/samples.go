package hecatoncheir

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// keepSamples bounds the measurements of one sandbox: half an hour at one in five seconds, about 30 KB.
const keepSamples = 360

// samples is the recent past of one sandbox's use.
type samples struct {
	mu   sync.Mutex
	ring []sample
	next int
	last vmm.Usage
	at   time.Time
	of   vmm.Machine // that last is of; a resume gives the sandbox another
	// guest is what the guest in machine of says of its memory; nil when it says nothing.
	guest *tartarus.GuestMemory
}

// sample is one measurement. A blind one has nothing before it to be compared with: its share of the processor is zero, and means nothing.
type sample struct {
	tartarus.Sample
	blind bool
}

// add turns a reading into a sample. The first reading of a machine is blind. What a guest says of its own memory goes before what it is charged for:
// that of a virtual machine is mostly caches of the guest's, which the host cannot tell from the rest.
func (s *samples) add(now time.Time, m vmm.Machine, u vmm.Usage, guest *tartarus.GuestMemory, r tartarus.Resources) {
	s.mu.Lock()
	defer s.mu.Unlock()
	blind := s.at.IsZero() || s.of != m || !now.After(s.at)
	out := sample{
		Sample: tartarus.Sample{
			Time: now, CPUCount: r.VCPU,
			MemUsed: u.MemoryBytes, MemTotal: r.MemoryMB << 20,
			DiskUsed: u.DiskBytes, DiskTotal: r.DiskMB << 20,
		},
		blind: blind,
	}
	if guest != nil {
		out.MemUsed, out.MemCache = max(0, guest.Total-guest.Available), guest.Cached
	}
	if !blind {
		out.CPUPercent = max(0, 100*float64(u.CPU-s.last.CPU)/float64(now.Sub(s.at)))
	}
	s.last, s.at, s.of, s.guest = u, now, m, guest
	if len(s.ring) < keepSamples {
		s.ring = append(s.ring, out)
		return
	}
	s.ring[s.next] = out
	s.next = (s.next + 1) % keepSamples
}

// cpu is the processor time up to the last measurement.
func (s *samples) cpu() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.CPU
}

// between returns the samples from start to end, oldest first.
func (s *samples) between(start, end time.Time) []tartarus.Sample {
	return s.choose(start, end, func(sample) bool { return true })
}

// telling is between without the blind ones: what is known of the use of processors.
func (s *samples) telling(start, end time.Time) []tartarus.Sample {
	return s.choose(start, end, func(one sample) bool { return !one.blind })
}

func (s *samples) choose(start, end time.Time, want func(sample) bool) []tartarus.Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]tartarus.Sample, 0, len(s.ring))
	for i := range s.ring {
		one := s.ring[(s.next+i)%len(s.ring)]
		if (start.IsZero() || !one.Time.Before(start)) && (end.IsZero() || !one.Time.After(end)) && want(one) {
			out = append(out, one.Sample)
		}
	}
	return out
}

// sampleAll measures every running sandbox at a steady pace.
func (a *Agent) sampleAll(ctx context.Context) error {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		g := errgroup.Group{}
		g.SetLimit(4)
		tried := a.tried(ctx)
		for _, h := range a.all() {
			if h.sandbox().Phase == tartarus.Running {
				g.Go(func() error { a.sample(ctx, h, tried); return nil })
			}
		}
		_ = g.Wait()
	}
}

// sample measures one sandbox. One that ends meanwhile has nothing to measure.
func (a *Agent) sample(ctx context.Context, h *held, tried map[string]int) {
	short, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	if m, u, err := h.usage(short); err == nil {
		guest := a.inside(short, h, m)
		now := time.Now()
		h.samples.add(now, m, u, guest, h.spec.Resources)
		a.suspect(ctx, h, now, u, tried)
	}
}

// inside asks the monitor of a machine, where there is one, what it knows: what the devices did is counted, and what the guest says of its memory returned.
func (a *Agent) inside(ctx context.Context, h *held, m vmm.Machine) *tartarus.GuestMemory {
	in, ok := m.(vmm.Insider)
	if !ok {
		return nil
	}
	told, err := in.Inside(ctx)
	if err != nil {
		a.log.Debug("monitor not asked", "sandbox", h.spec.ID, "tenant", h.spec.Tenant, "error", err)
		return nil
	}
	a.count.Devices(told.Since)
	return told.Guest
}

// guestMemory is what the guest said last; nil when it said nothing, or has another machine by now.
func (h *held) guestMemory() *tartarus.GuestMemory {
	h.mu.Lock()
	m := h.machine
	h.mu.Unlock()
	h.samples.mu.Lock()
	defer h.samples.mu.Unlock()
	if m == nil || h.samples.of != m {
		return nil
	}
	return h.samples.guest
}

// usage reads what the sandbox's machine uses now.
func (h *held) usage(ctx context.Context) (vmm.Machine, vmm.Usage, error) {
	h.mu.Lock()
	m := h.machine
	h.mu.Unlock()
	if m == nil {
		return nil, vmm.Usage{}, tartarus.Errorf(tartarus.GuestGone, "sandbox %s does not run", h.spec.ID)
	}
	u, err := m.Usage(ctx)
	return m, u, err
}

// Usage reads what a running sandbox and all that serves it use of the host now.
func (a *Agent) Usage(ctx context.Context, id string) (vmm.Usage, error) {
	h, err := a.running(id)
	if err != nil {
		return vmm.Usage{}, err
	}
	_, u, err := h.usage(ctx)
	return u, err
}

// Samples returns the kept measurements between start and end, oldest first; a sandbox too young to have one is measured now.
func (a *Agent) Samples(ctx context.Context, id string, start, end time.Time) ([]tartarus.Sample, error) {
	h, err := a.find(id)
	if err != nil {
		return nil, err
	}
	if sb := h.sandbox(); sb.Hibernated() { // looking at it does not wake it
		return h.samples.between(start, end), nil
	}
	if h, err = a.running(id); err != nil {
		return nil, err
	}
	h.samples.mu.Lock()
	young := h.samples.at.IsZero()
	h.samples.mu.Unlock()
	if young {
		a.sample(ctx, h, nil)
	}
	return h.samples.between(start, end), nil
}
