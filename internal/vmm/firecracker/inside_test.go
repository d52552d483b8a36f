package firecracker_test

import (
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// TestInside asks a real monitor: its guest has no balloon driver, and writes on its serial port what it is asked to.
func TestInside(t *testing.T) {
	r := newRig(t, nil)
	m := r.boot("src")
	ask := func(m vmm.Machine) vmm.Inside {
		t.Helper()
		in, err := m.(vmm.Insider).Inside(r.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if in.Guest != nil || in.Since.Forbidden != 0 {
			t.Errorf("a guest without a balloon driver says %+v, %+v", in.Guest, in.Since)
		}
		return in
	}
	ask(m)
	r.count(m)
	if in := ask(m); in.Since.SerialWritten < 2 || in.Since.SerialWritten > 1000 {
		t.Errorf("a guest that answered wrote %d bytes", in.Since.SerialWritten)
	}
	// The end of its line may still have been on its way.
	r.eventually("a guest that does nothing is counted with nothing", func() bool { return ask(m).Since == (tartarus.DeviceCounts{}) })
	snap := r.snapshot(m)
	clone := r.restore("clone", snap)
	r.count(clone)
	if in := ask(clone); in.Since.SerialWritten < 2 {
		t.Errorf("a clone that answered: %+v", in.Since)
	}
	if err := m.Pause(r.ctx); err != nil {
		t.Fatal(err)
	}
	ask(m) // also while it stands still
	r.stop(m)
	if _, err := m.(vmm.Insider).Inside(r.ctx); !tartarus.Is(err, tartarus.GuestGone) {
		t.Errorf("of one that has ended: %v", err)
	}
}
