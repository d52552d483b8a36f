package daemon

import (
	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/firecracker"
)

// Rates bound what each sandbox may move per second, where its runtime can hold it to that: Firecracker can, and QEMU for its disk. 0 sets no bound. What was not
// used of a second may be used in the next, on Firecracker.
type Rates struct {
	// DiskMB is MiB that it may read and write per second on its writable disk, and DiskOps how many operations.
	DiskMB  int64 `key:"diskMB" env:"TARTARUS_RATES_DISK_MB"`
	DiskOps int64 `key:"diskOps" env:"TARTARUS_RATES_DISK_OPS"`
	// NetworkMbit is millions of bits per second in each direction, NetworkPackets how many frames.
	NetworkMbit    int64 `key:"networkMbit" env:"TARTARUS_RATES_NETWORK_MBIT"`
	NetworkPackets int64 `key:"networkPackets" env:"TARTARUS_RATES_NETWORK_PACKETS"`
}

// The highest rates: a terabyte, a terabit and a thousand million operations per second are beyond every device.
const (
	mostRateMB   = 1 << 20
	mostRateMbit = 1_000_000
	mostRateOps  = 1_000_000_000
)

// The lowest rates with which a guest still starts: it reads some MiB and sends some frames until its agent answers.
const (
	leastRateMbit = 1
	leastRateOps  = 50
)

func (r Rates) validate() (errs []error) {
	between := func(key string, v, lo, hi int64) {
		if v != 0 && (v < lo || v > hi) {
			errs = append(errs, tartarus.Errorf(tartarus.Invalid, "rates.%s %d must be 0 for no bound, or between %d and %d", key, v, lo, hi))
		}
	}
	between("diskMB", r.DiskMB, 1, mostRateMB)
	between("diskOps", r.DiskOps, leastRateOps, mostRateOps)
	between("networkMbit", r.NetworkMbit, leastRateMbit, mostRateMbit)
	between("networkPackets", r.NetworkPackets, leastRateOps, mostRateOps)
	return errs
}

// disk and network are the limiters of Firecracker's devices; nil for none.
func (r Rates) disk() *firecracker.RateLimiter { return firecracker.PerSecond(r.DiskMB<<20, r.DiskOps) }

func (r Rates) network() *firecracker.RateLimiter {
	return firecracker.PerSecond(r.NetworkMbit*1_000_000/8, r.NetworkPackets)
}
