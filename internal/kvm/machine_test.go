//go:build amd64 || arm64

package kvm

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// device opens KVM or skips the test with the reason.
func device(t *testing.T) int {
	fd, v := open(Device)
	if v.Reason != "" {
		t.Skip(v.Reason)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func TestWatchdogEndsAGuestThatNeverExits(t *testing.T) {
	m, err := newMachine(device(t))
	if err != nil {
		t.Skip(err)
	}
	defer m.close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := m.run(ctx, hang); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Fatalf("took %s", took)
	}
	// And the machine still runs the next step.
	if _, err := m.run(t.Context(), spin); err != nil {
		t.Fatalf("after the watchdog: %v", err)
	}
}

func TestExceptionIsTold(t *testing.T) {
	m, err := newMachine(device(t))
	if err != nil {
		t.Skip(err)
	}
	defer m.close()
	_, err = m.run(t.Context(), undefined)
	if err == nil {
		t.Fatal("an undefined instruction went through")
	}
	t.Log(err)
}
