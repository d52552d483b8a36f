package judges

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Limits are the static bounds of one sandbox, and what it gets when neither caller nor template say anything.
type Limits struct {
	MinMemoryMB int64 // what the guest agent and a shell need
	Default     tartarus.Resources
	Max         tartarus.Resources
	MaxTimeout  time.Duration
}

// DefaultLimits are those of a single machine. Two processors and 1024 MB are what users of the SDKs are used to.
func DefaultLimits() Limits {
	return Limits{
		MinMemoryMB: 128, // the wire protocol's own minimum
		Default:     tartarus.Resources{VCPU: 2, MemoryMB: 1024, DiskMB: 4 << 10, PIDs: 4096},
		Max:         tartarus.Resources{VCPU: 8, MemoryMB: 16 << 10, DiskMB: 64 << 10, PIDs: 4096},
		MaxTimeout:  24 * time.Hour,
	}
}

// Validate reports limits that no sandbox could meet.
func (l Limits) Validate() error {
	switch {
	case l.Default.VCPU < 1 || l.Default.VCPU > l.Max.VCPU:
		return errors.New("judges: the default of processors is not between 1 and the maximum")
	case l.Default.MemoryMB < l.MinMemoryMB || l.Default.MemoryMB > l.Max.MemoryMB:
		return errors.New("judges: the default of memory is not between minimum and maximum")
	case l.Default.DiskMB < 1 || l.Default.DiskMB > l.Max.DiskMB:
		return errors.New("judges: the default of disk is not between 1 MiB and the maximum")
	case l.Default.PIDs < 1 || l.Default.PIDs > l.Max.PIDs:
		return errors.New("judges: the default of processes is not between 1 and the maximum")
	case l.MaxTimeout < time.Second:
		return errors.New("judges: the longest timeout is below a second")
	}
	return nil
}

// Minos gives a sandbox its default resources and holds it to the limits.
type Minos struct {
	limits Limits
}

// Name is minos.
func (*Minos) Name() string { return "minos" }

// Amend sets the resources that are still zero.
func (m *Minos) Amend(r *Request) {
	res, def := &r.Spec.Resources, m.limits.Default
	if res.VCPU == 0 {
		res.VCPU = def.VCPU
	}
	if res.MemoryMB == 0 {
		res.MemoryMB = def.MemoryMB
	}
	if res.DiskMB == 0 {
		res.DiskMB = def.DiskMB
	}
	if res.PIDs == 0 {
		res.PIDs = def.PIDs
	}
}

// Judge refuses what no sandbox may have.
func (m *Minos) Judge(_ context.Context, r Request) Verdict {
	v, _ := m.AtOnce(r)
	return v
}

// AtOnce implements Prompt: this is arithmetic.
func (m *Minos) AtOnce(r Request) (Verdict, bool) {
	if r.Action != Create {
		return Verdict{Allow: true}, true
	}
	res, l := r.Spec.Resources, m.limits
	for _, b := range []struct {
		what          string
		got, min, max int64
		unit          string
	}{
		{"cpuCount", int64(res.VCPU), 1, int64(l.Max.VCPU), ""},
		{"memoryMB", res.MemoryMB, l.MinMemoryMB, l.Max.MemoryMB, " MiB"},
		{"diskSizeMB", res.DiskMB, 1, l.Max.DiskMB, " MiB"},
		{"the limit of processes", res.PIDs, 1, l.Max.PIDs, ""},
		{"timeout", int64(r.Spec.Timeout / time.Second), 1, int64(l.MaxTimeout / time.Second), " s"},
	} {
		if b.got < b.min || b.got > b.max {
			return Verdict{Kind: tartarus.Invalid, Reason: fmt.Sprintf("%s is %d%s, but must be between %d and %d%s", b.what, b.got, b.unit, b.min, b.max, b.unit)}, true
		}
	}
	return Verdict{Allow: true}, true
}
