//go:build amd64 || arm64

package kvm

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// grace is what a guest gets to leave the processor once it was told to.
const grace = 100 * time.Millisecond

// judge runs the steps one after the other. It answers at the end of ctx even when the kernel does not let go of the
// processor: then one thread stays behind in the kernel, which is the kernel's fault and cannot be ended from here.
func judge(ctx context.Context, device string) Verdict {
	fd, v := open(device)
	if v.Reason != "" {
		return v
	}
	defer unix.Close(fd)
	done := make(chan Verdict, 1)
	// The measuring goroutine has a descriptor of its own, so that it never works on a closed or reused one.
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		v.Reason = fmt.Sprintf("duplicate descriptor of %s: %v", device, err)
		return v
	}
	go func(v Verdict) {
		defer unix.Close(own)
		done <- measure(ctx, own, v)
	}(v)
	// The vcpu is kicked when ctx ends; this is only for a kernel that does not react to that.
	overdue := time.NewTimer(limit + grace)
	defer overdue.Stop()
	select {
	case v = <-done:
	case <-overdue.C:
		v.Reason = fmt.Sprintf("no verdict within %s: this host is overloaded, or its KVM is stuck", limit+grace)
	}
	return v
}

// measure times the steps and tries the required instructions, each on a virtual machine that is known to be good.
func measure(ctx context.Context, kvm int, v Verdict) Verdict {
	m, err := newMachine(kvm)
	if err != nil {
		v.Reason = err.Error()
		return v
	}
	defer func() { m.close() }()

	if v.OrdinaryNS, err = m.cost(ctx, spin, maxOrdinaryNS); err != nil {
		v.Reason = "a guest of a few ordinary instructions does not run: " + err.Error()
		return v
	}
	v.Ran = true
	for _, s := range slices.Concat(timed, required) {
		if !m.needs(s) {
			continue
		}
		ns, err := m.cost(ctx, s, maxPrivilegedNS)
		if ctx.Err() != nil {
			v.Reason = fmt.Sprintf("the guest did not get through %s in time (%s for everything)", s.name, limit)
			return v
		}
		if err != nil {
			v.Broken = append(v.Broken, fmt.Sprintf("%s (%v)", s.name, err))
			m.close() // in what state it is now nobody knows
			if m, err = newMachine(kvm); err != nil {
				v.Reason = err.Error()
				return v
			}
			continue
		}
		if s.count > 0 && ns > v.PrivilegedNS {
			v.PrivilegedNS, v.Slowest = ns, s.name
		}
	}
	return v
}

// cost runs s until a run stays within enough nanoseconds a turn, at most five times, and returns the quickest: on a
// busy host a run that was interrupted says nothing about the processor.
func (m *machine) cost(ctx context.Context, s step, enough float64) (float64, error) {
	best := math.Inf(1)
	for range 5 {
		took, err := m.run(ctx, s)
		if err != nil {
			return 0, err
		}
		if best = min(best, float64(took)/float64(max(s.count, 1))); best <= enough || s.count == 0 {
			break
		}
	}
	return best, nil
}

func open(device string) (int, Verdict) {
	var v Verdict
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		v.Reason = device + " does not exist: the processor's virtualisation is off, or this machine is itself a virtual machine without nested virtualisation"
		return -1, v
	case err != nil:
		v.Present = true
		v.Reason = fmt.Sprintf("open %s: %v", device, err)
		if errors.Is(err, unix.EACCES) {
			v.Reason += "; run as root, join the kvm group, or `sudo chmod 666 /dev/kvm`"
		}
		return -1, v
	}
	v.Present, v.Openable = true, true
	version, err := ioctl(fd, getAPIVersion, 0)
	if err != nil || version != 12 { // 12 since Linux 2.6.22; the kernel's documentation says to refuse any other
		v.Reason = fmt.Sprintf("%s is not KVM: API version %d, %v", device, version, err)
	}
	if v.Reason != "" {
		unix.Close(fd)
		return -1, v
	}
	return fd, v
}
