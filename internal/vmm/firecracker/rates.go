package firecracker

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// refillMS is the time in which a bucket fills: what was not used of a second may be used in the next.
const refillMS = 1000

// PerSecond is a limiter of so many bytes and operations per second; 0 bounds nothing, and nil is what two zeros are.
func PerSecond(bytes, ops int64) *RateLimiter {
	var l RateLimiter
	if bytes > 0 {
		l.Bandwidth = &TokenBucket{Size: bytes, RefillMS: refillMS}
	}
	if ops > 0 {
		l.Ops = &TokenBucket{Size: ops, RefillMS: refillMS}
	}
	if l == (RateLimiter{}) {
		return nil
	}
	return &l
}

// valid refuses buckets that let nothing through for ever.
func (l *RateLimiter) valid() error {
	if l == nil {
		return nil
	}
	for _, b := range []*TokenBucket{l.Bandwidth, l.Ops} {
		if b != nil && (b.Size <= 0 || b.RefillMS <= 0 || b.Burst < 0) {
			return tartarus.Errorf(tartarus.Invalid, "a rate of %d in %d ms, with a burst of %d, cannot be", b.Size, b.RefillMS, b.Burst)
		}
	}
	return nil
}

// whole is l with both buckets, as a change has to have them: one that is left out stays what it was, and one of size 0 is taken away.
func (l *RateLimiter) whole() RateLimiter {
	out := RateLimiter{Bandwidth: &TokenBucket{}, Ops: &TokenBucket{}}
	if l != nil && l.Bandwidth != nil {
		out.Bandwidth = l.Bandwidth
	}
	if l != nil && l.Ops != nil {
		out.Ops = l.Ops
	}
	return out
}

// rates says what machines of this driver are held to; empty when to nothing.
func (d *Driver) rates() string {
	if d.cfg.DiskLimit == nil && d.cfg.NetLimit == nil {
		return ""
	}
	b, err := json.Marshal([]*RateLimiter{d.cfg.DiskLimit, d.cfg.NetLimit})
	if err != nil {
		panic(err) // numbers only
	}
	return string(b)
}

// setRates holds the devices of a restored machine to what this driver has, in place of what its snapshot had.
func (d *Driver) setRates(ctx context.Context, m *machine, c vmm.Config) error {
	if err := m.api.LimitDrive(ctx, diskName, d.cfg.DiskLimit.whole()); err != nil {
		return fmt.Errorf("set rates: %w", err)
	}
	if c.Interface == nil {
		return nil
	}
	both := d.cfg.NetLimit.whole()
	if err := m.api.LimitNetwork(ctx, interfaceID, &both, &both); err != nil {
		return fmt.Errorf("set rates: %w", err)
	}
	return nil
}
