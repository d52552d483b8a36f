package life

import (
	"context"
	"errors"
	"log/slog"
	"os/exec"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// begun is the life of a process that does nothing for long.
func begun(t *testing.T) (*Life, *process.Handle) {
	t.Helper()
	host, err := cgroup.Detect()
	if err != nil {
		t.Skipf("needs control groups: %v", err)
	}
	cmd := exec.Command("sleep", "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h, err := process.Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	id := tartarus.NewID()
	l := New(id)
	l.Watch(context.WithoutCancel(t.Context()), slog.New(slog.DiscardHandler), h, host.Group(id), func(err error) vmm.Exit {
		if werr := cmd.Wait(); werr == nil || err != nil {
			t.Errorf("waiting for the process: %v, %v", err, werr)
		}
		if l.Stopped() {
			return vmm.Exit{Reason: tartarus.ReasonUser}
		}
		return vmm.Exit{Reason: tartarus.ReasonCrashed}
	})
	t.Cleanup(func() {
		_ = l.Kill(h)
		<-l.Ended()
		h.Close()
	})
	return l, h
}

func TestEndIsToldToAll(t *testing.T) {
	for reason, end := range map[tartarus.Reason]func(*Life, *process.Handle) error{
		tartarus.ReasonUser:    (*Life).Kill,
		tartarus.ReasonCrashed: func(_ *Life, h *process.Handle) error { return h.Signal(9) },
	} {
		l, h := begun(t)
		given, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if _, err := l.Wait(given); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait for one that lives: %v", err)
		}
		cancel()
		if err := end(l, h); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for range 2 {
			if exit, err := l.Wait(ctx); err != nil || exit.Reason != reason {
				t.Errorf("it ended by %s, %v; want %s", exit.Reason, err, reason)
			}
		}
		if exit, err := l.Wait(given); err != nil || exit.Reason != reason { // what is known is told to whoever has no time, too
			t.Errorf("it ended by %s, %v", exit.Reason, err)
		}
		if _, err := l.Take(ctx); !tartarus.Is(err, tartarus.GuestGone) {
			t.Errorf("a turn with one that has ended: %v", err)
		}
		if err := l.Kill(h); err != nil || l.Stopped() != (reason == tartarus.ReasonUser) {
			t.Errorf("killed again: %v, stopped %v", err, l.Stopped())
		}
	}
}

func TestTurns(t *testing.T) {
	l, _ := begun(t)
	release, err := l.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := l.TryTake(); ok {
		t.Error("two have a turn")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := l.Take(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second turn: %v", err)
	}
	next := make(chan error, 1)
	go func() {
		release, err := l.Take(t.Context())
		if err == nil {
			release()
		}
		next <- err
	}()
	release()
	if err := <-next; err != nil {
		t.Error(err)
	}
	if release, ok := l.TryTake(); !ok {
		t.Error("the turn was not given back")
	} else {
		release()
	}
}

// TestReap has a child that nobody watches, with a handle on it and without, and a process that is watched.
func TestReap(t *testing.T) {
	for _, known := range []bool{true, false} {
		cmd := exec.Command("sleep", "300")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		l := New("ione")
		var h *process.Handle
		if known {
			var err error
			if h, err = process.Open(cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
			defer h.Close()
		}
		if err := errors.Join(l.Kill(h), l.Reap(t.Context(), h, cmd)); err != nil {
			t.Fatal(err)
		}
		if cmd.ProcessState == nil {
			t.Errorf("with a handle %t: its zombie is left", known)
		}
	}
	l, h := begun(t)
	given, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := l.Reap(given, h, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one that lives: %v", err)
	}
	if err := errors.Join(l.Kill(h), l.Reap(t.Context(), h, nil)); err != nil {
		t.Error(err)
	}
	select {
	case <-l.Ended():
	default:
		t.Error("it is not waited for")
	}
}
