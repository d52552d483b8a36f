package qemu_test

import (
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/qemu"
)

// TestDiskRate has guests fill their disks, 10 MiB or more, and end: one as fast as it can, one with 1 MiB per second, and one with 4 operations per second. How
// much one of those writes is the guest's to choose: mostly 256 KiB, up to the 1280 KiB that Linux puts into a request, and then it takes 3 s for 15 MiB.
func TestDiskRate(t *testing.T) {
	fill := func(bytes, ops int64) (took time.Duration, wrote int64) {
		t.Helper()
		m, _ := rated(t, bytes, ops, "fill", "/full")
		begin := time.Now()
		if _, err := m.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		took = time.Since(begin)
		u, err := m.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return took, u.DiskBytes
	}
	free, wrote := fill(0, 0)
	if wrote < 10<<20 {
		t.Skipf("the guest wrote only %d bytes", wrote)
	}
	for what, rate := range map[string]struct {
		bytes, ops int64
		least      time.Duration
	}{"1 MiB per second": {1 << 20, 0, 7 * time.Second}, "4 operations per second": {0, 4, 2 * time.Second}} {
		took, wrote := fill(rate.bytes, rate.ops)
		t.Logf("%s: %s for %d MiB, without %s", what, took.Round(time.Millisecond), wrote>>20, free.Round(time.Millisecond))
		if took < rate.least || took < free {
			t.Errorf("%s: %d MiB took %s only", what, wrote>>20, took)
		}
	}
}

func TestRatesThatCannotBe(t *testing.T) {
	c := config(t.TempDir())
	c.DiskOps = -1
	if _, err := qemu.New(c); !tartarus.Is(err, tartarus.Invalid) {
		t.Error(err)
	}
}
