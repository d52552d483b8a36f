package firecracker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// insideTime bounds what is asked of a monitor for statistics. Measured: 1 ms. One that does not answer at all is the watchdog's affair.
const insideTime = 2 * time.Second

var _ vmm.Insider = (*machine)(nil)

// Inside implements vmm.Insider.
func (m *machine) Inside(ctx context.Context) (vmm.Inside, error) {
	in, err := m.inside(ctx)
	if err != nil {
		return vmm.Inside{}, fmt.Errorf("ask monitor of machine %s: %w", m.id, err)
	}
	return in, nil
}

func (m *machine) inside(ctx context.Context) (in vmm.Inside, err error) {
	release, ok := m.life.TryTake()
	if !ok {
		return in, tartarus.Errorf(tartarus.Unavailable, "something is under way with it")
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, insideTime)
	defer cancel()
	before := m.counts.seen()
	if err := m.api.FlushMetrics(ctx); err != nil {
		return in, m.ended(err)
	}
	if in.Guest, err = m.api.guestMemory(ctx); err != nil {
		return in, m.ended(err)
	}
	m.counts.after(ctx, before)
	in.Since = m.counts.take()
	return in, nil
}

// guestMemory is what the guest's balloon driver says; nil when it says nothing.
func (c *Client) guestMemory(ctx context.Context) (*tartarus.GuestMemory, error) {
	s, err := c.BalloonStats(ctx)
	if _, refused := errors.AsType[*Fault](err); refused { // no driver has taken the device up
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// A guest says what it likes: more memory than there can be is nothing that it has.
	const most = 1 << 50
	for _, n := range []int64{s.TotalMemory, s.FreeMemory, s.AvailableMemory, s.DiskCaches} {
		if n < 0 || n > most || n > s.TotalMemory {
			return nil, nil
		}
	}
	if s.TotalMemory == 0 || s.ActualMiB < 0 || s.ActualMiB > most>>20 {
		return nil, nil
	}
	return &tartarus.GuestMemory{
		Total: s.TotalMemory, Free: s.FreeMemory, Available: s.AvailableMemory, Cached: s.DiskCaches, Returned: s.ActualMiB << 20,
	}, nil
}
