package vmm

import (
	"context"

	"github.com/tartarus-sandbox/tartarus"
)

// Insider is a Machine whose monitor knows more of it than the host sees.
type Insider interface {
	// Inside asks the monitor. It does not wait for what is under way with the machine: then it is tartarus.Unavailable. A monitor is not trusted: what it says
	// is read with bounds, and may be wrong.
	Inside(ctx context.Context) (Inside, error)
}

// Inside is what a monitor knows of its machine.
type Inside struct {
	// Guest is what the guest itself says of its memory; nil when it does not, for want of a driver or because it has just started.
	Guest *tartarus.GuestMemory
	// Since is what its devices did since the last time that Inside was asked, by whomever.
	Since tartarus.DeviceCounts
}
