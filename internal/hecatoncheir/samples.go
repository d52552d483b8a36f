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
	ring []tartarus.Sample
	next int
	last vmm.Usage
	at   time.Time
}

// add turns a reading into a sample; the first reading gives a share of zero.
func (s *samples) add(now time.Time, u vmm.Usage, r tartarus.Resources) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := tartarus.Sample{
		Time: now, CPUCount: r.VCPU,
		MemUsed: u.MemoryBytes, MemTotal: r.MemoryMB << 20,
		DiskUsed: u.DiskBytes, DiskTotal: r.DiskMB << 20,
	}
	if !s.at.IsZero() && now.After(s.at) {
		out.CPUPercent = max(0, 100*float64(u.CPU-s.last.CPU)/float64(now.Sub(s.at)))
	}
	s.last, s.at = u, now
	if len(s.ring) < keepSamples {
		s.ring = append(s.ring, out)
		return
	}
	s.ring[s.next] = out
	s.next = (s.next + 1) % keepSamples
}

// between returns the samples from start to end, oldest first.
func (s *samples) between(start, end time.Time) []tartarus.Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]tartarus.Sample, 0, len(s.ring))
	for i := range s.ring {
		sample := s.ring[(s.next+i)%len(s.ring)]
		if (start.IsZero() || !sample.Time.Before(start)) && (end.IsZero() || !sample.Time.After(end)) {
			out = append(out, sample)
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
		for _, h := range a.all() {
			if h.sandbox().Phase == tartarus.Running {
				g.Go(func() error { a.sample(ctx, h); return nil })
			}
		}
		_ = g.Wait()
	}
}

// sample measures one sandbox. One that ends meanwhile has nothing to measure.
func (a *Agent) sample(ctx context.Context, h *held) {
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	if u, err := h.usage(ctx); err == nil {
		h.samples.add(time.Now(), u, h.spec.Resources)
	}
}

// usage reads what the sandbox's machine uses now.
func (h *held) usage(ctx context.Context) (vmm.Usage, error) {
	h.mu.Lock()
	m := h.machine
	h.mu.Unlock()
	if m == nil {
		return vmm.Usage{}, tartarus.Errorf(tartarus.GuestGone, "sandbox %s does not run", h.spec.ID)
	}
	return m.Usage(ctx)
}

// Usage reads what a running sandbox and all that serves it use of the host now.
func (a *Agent) Usage(ctx context.Context, id string) (vmm.Usage, error) {
	h, err := a.running(id)
	if err != nil {
		return vmm.Usage{}, err
	}
	return h.usage(ctx)
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
		a.sample(ctx, h)
	}
	return h.samples.between(start, end), nil
}
