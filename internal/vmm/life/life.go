// Package life follows the process that a machine is: how it ends, which is found out once and told to everybody, and whose turn it is with it. What has
// ended is asked nothing, and what has not by one caller at a time.
package life

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

// Life is a machine's, from New until its process has ended.
type Life struct {
	id   string
	turn chan struct{} // held by whoever took it

	watched bool          // ended will be closed
	ended   chan struct{} // closed when the process has ended and exit is set
	exit    vmm.Exit

	stopped atomic.Bool // Kill was called before it ended
	starved atomic.Bool // the kernel killed something in it for want of memory
}

// New is the life of the machine of this id, whose process is not watched yet.
func New(id string) *Life {
	return &Life{id: id, turn: make(chan struct{}, 1), ended: make(chan struct{})}
}

// Watch begins to wait for the end of the process, until ctx ends; then verdict says what it was, given what went wrong with the waiting. It is called
// once, before anybody else knows the machine.
func (l *Life) Watch(ctx context.Context, log *slog.Logger, h *process.Handle, g *cgroup.Group, verdict func(error) vmm.Exit) {
	l.watched = true
	alarm, err := g.WatchOOM()
	if err != nil {
		log.Warn("no early notice of memory shortage", "sandbox", l.id, "error", err)
	}
	if alarm != nil {
		go func() {
			if alarm.Wait() { // whatever the kernel chose to kill, the machine is no longer whole
				l.starved.Store(true)
				_ = h.Signal(unix.SIGKILL)
			}
		}()
	}
	go func() {
		defer close(l.ended)
		err := h.Wait(ctx)
		if alarm != nil {
			alarm.Close()
		}
		l.exit = verdict(err)
	}()
}

// Watched reports whether Watch was called.
func (l *Life) Watched() bool { return l.watched }

// Ended is closed when a process that is watched has ended.
func (l *Life) Ended() <-chan struct{} { return l.ended }

// Wait is vmm.Machine's.
func (l *Life) Wait(ctx context.Context) (vmm.Exit, error) {
	select {
	case <-l.ended:
		return l.exit, nil
	default:
	}
	select {
	case <-l.ended:
		return l.exit, nil
	case <-ctx.Done():
		return vmm.Exit{}, ctx.Err()
	}
}

// Kill ends the process, as a Stop does; nil and one that has ended are left alone.
func (l *Life) Kill(h *process.Handle) error {
	if h == nil || h.Ended() {
		return nil
	}
	l.stopped.Store(true)
	if err := h.Signal(unix.SIGKILL); err != nil && !errors.Is(err, process.ErrGone) {
		return fmt.Errorf("kill machine: %w", err)
	}
	return nil
}

// Reap waits for the end of the process, which was killed. A child that is not watched is collected here, because nobody else takes its zombie; it is killed
// first where there is no handle on it.
func (l *Life) Reap(ctx context.Context, h *process.Handle, child *exec.Cmd) error {
	switch {
	case l.watched:
		select {
		case <-l.ended:
		case <-ctx.Done():
			return fmt.Errorf("wait for the machine's process: %w", ctx.Err())
		}
	case child != nil:
		if h == nil {
			_ = child.Process.Kill() // still our child, so the number is its own
		}
		_ = child.Wait() // killed: the status is known
	}
	return nil
}

// Stopped reports whether it ended by Kill.
func (l *Life) Stopped() bool { return l.stopped.Load() }

// Starved reports whether the kernel killed something in it for want of memory.
func (l *Life) Starved(g *cgroup.Group) bool { return l.starved.Load() || g.OOMKills() > 0 }

// Take waits for a turn with a machine that lives: one of Pause, Resume, Snapshot and the like at a time.
func (l *Life) Take(ctx context.Context) (release func(), err error) {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-l.ended:
		<-l.turn
		return nil, tartarus.Errorf(tartarus.GuestGone, "machine %s has ended", l.id)
	default:
		return l.release, nil
	}
}

// TryTake takes a turn if nobody has one.
func (l *Life) TryTake() (release func(), ok bool) {
	select {
	case l.turn <- struct{}{}:
		return l.release, true
	default:
		return nil, false
	}
}

func (l *Life) release() { <-l.turn }

// Usage is what a machine uses whose group this is, and whose disk is written to this file where it has one.
func (l *Life) Usage(ctx context.Context, g *cgroup.Group, disk string) (vmm.Usage, error) {
	if err := ctx.Err(); err != nil {
		return vmm.Usage{}, err
	}
	u, err := g.Usage()
	if err != nil {
		return vmm.Usage{}, tartarus.Errorf(tartarus.GuestGone, "machine %s has ended: %w", l.id, err)
	}
	out := vmm.Usage{CPU: u.CPU, MemoryBytes: u.MemoryBytes, PIDs: u.PIDs}
	var st unix.Stat_t
	if err := unix.Lstat(disk, &st); err == nil {
		out.DiskBytes = st.Blocks * 512 // stat(2): always of 512 bytes
	}
	return out, nil
}
