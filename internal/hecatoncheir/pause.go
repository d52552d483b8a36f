package hecatoncheir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// snapshotTime bounds writing one sandbox to disk: tens of gigabytes on a slow one.
const snapshotTime = 10 * time.Minute

// Pause writes a running sandbox to disk, processes and memory and files as they are at one instant, and frees what it held
// of the host. The source goes only once the snapshot is durable; when anything fails before, the sandbox runs on.
func (a *Agent) Pause(ctx context.Context, id string, how tartarus.PauseHow) (tartarus.Sandbox, error) {
	h, err := a.find(id)
	if err != nil {
		return tartarus.Sandbox{}, err
	}
	if h.asleep() {
		if sb, err := a.stayAsleep(ctx, h); !tartarus.Is(err, tartarus.Conflict) {
			return sb, err
		}
	}
	return a.pauseHow(ctx, h, how, "", "")
}

// pauseFor is Pause with the reason why, where it was not simply asked for; then the sandbox's own wish decides whether its memory is kept. One that is
// hibernated keeps its deadline: asleep or not, its time runs.
func (a *Agent) pauseFor(ctx context.Context, h *held, healthy bool, reason tartarus.Reason, message string) (tartarus.Sandbox, error) {
	h.mu.Lock()
	_, can := h.machine.(vmm.DiskMachine) // one that cannot keep its disk alone, or does not answer, keeps more than it was asked to
	h.mu.Unlock()
	disk := can && h.spec.Lifecycle.PauseOnTimeout && !h.spec.Lifecycle.PauseMemory && h.answers(ctx) == nil
	return a.pauseHow(ctx, h, tartarus.PauseHow{Healthy: healthy, Disk: disk}, reason, message)
}

func (a *Agent) pauseHow(ctx context.Context, h *held, how tartarus.PauseHow, reason tartarus.Reason, message string) (tartarus.Sandbox, error) {
	h.op.Lock()
	defer h.op.Unlock()
	lost := h.answers(ctx)
	if lost != nil && (how.Healthy || how.Disk) {
		return h.sandbox(), lost
	}
	if h.pending() != nil {
		return h.sandbox(), tartarus.Errorf(tartarus.Conflict, "sandbox %s is being terminated", h.spec.ID)
	}
	sb, err := h.change(func(sb *tartarus.Sandbox) error {
		sb.DiskOnly, sb.AgentLost = how.Disk, lost != nil
		return sb.Transition(tartarus.Pausing, reason, message)
	})
	if err != nil {
		return sb, err
	}
	// Once begun it is finished or undone, whether or not the caller waits.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), snapshotTime)
	defer cancel()
	if err := a.sleep(work, h); err != nil {
		return sb, a.wakeAgain(work, h, err)
	}
	sb = h.sandbox()
	a.told(ctx, h)
	return sb, nil
}

// answerTime is how long a healthy agent may take to say so; it needs a millisecond.
const answerTime = 2 * time.Second

// answers reports whether the agent in the guest does.
func (h *held) answers(ctx context.Context) error {
	h.mu.Lock()
	guest := h.guest
	h.mu.Unlock()
	if guest == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err := guest.Health(ctx); err != nil {
		return tartarus.Errorf(tartarus.Unavailable, "the agent of sandbox %s does not answer: %w", h.spec.ID, err)
	}
	return nil
}

// sleep takes the snapshot and lets machine and slot go.
func (a *Agent) sleep(ctx context.Context, h *held) error {
	if err := h.machine.Pause(ctx); err != nil {
		return err
	}
	sb := h.sandbox()
	snap, err := a.save(ctx, h, snapshot.Meta{Kind: snapshot.Sandbox, Disk: sb.DiskOnly, Unwell: sb.AgentLost})
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.saved = snap.ID
	h.mu.Unlock()
	if _, err := h.change(func(sb *tartarus.Sandbox) error {
		if sb.Reason != tartarus.ReasonIdle {
			sb.Deadline = time.Time{} // a paused sandbox waits for as long as nobody kills it
		}
		sb.Saved = snap.ID
		return sb.Transition(tartarus.Paused, "", "")
	}); err != nil {
		return err
	}
	// From here on the snapshot is the sandbox. What follows frees the host and is finished by the next agent if this one dies.
	if err := a.journal(ctx, h); err != nil {
		return err
	}
	if err := a.dropBase(ctx, h); err != nil {
		a.log.Warn("snapshot that a paused sandbox came from not removed", "sandbox", h.spec.ID, "tenant", h.spec.Tenant, "error", err) // the next start does
	}
	if err := a.letGo(ctx, h); err != nil {
		a.log.Error("paused sandbox still holds its machine", "sandbox", h.spec.ID, "tenant", h.spec.Tenant, "error", err)
		return nil
	}
	return a.journal(ctx, h)
}

// wakeAgain undoes a pause that failed. A machine that does not run on has crashed.
func (a *Agent) wakeAgain(ctx context.Context, h *held, cause error) error {
	h.mu.Lock()
	m, saved := h.machine, h.saved
	h.saved = ""
	h.mu.Unlock()
	if saved != "" { // it was taken, and is not wanted
		if err := a.discard(ctx, saved); err != nil {
			a.log.Warn("snapshot of a pause that failed not removed", "sandbox", h.spec.ID, "tenant", h.spec.Tenant, "error", err)
		}
	}
	err := m.Resume(ctx)
	if err == nil {
		_, err = h.change(func(sb *tartarus.Sandbox) error {
			sb.Phase, sb.Reason, sb.Message, sb.DiskOnly, sb.AgentLost, sb.Saved = tartarus.Running, "", "", false, false, ""
			return nil
		})
	}
	if err != nil {
		err = errors.Join(err, a.end(ctx, h, tartarus.Failed, tartarus.ReasonCrashed, "it did not run on after a snapshot that failed: "+cause.Error()))
		return errors.Join(cause, err)
	}
	return fmt.Errorf("pause sandbox %s, which runs on: %w", h.spec.ID, cause)
}

// letGo frees machine and slot of a sandbox whose snapshot is durable.
func (a *Agent) letGo(ctx context.Context, h *held) error {
	h.mu.Lock()
	machine, slot, guest := h.machine, h.slot, h.guest
	h.cancel() // the watch: the machine ends because we want it to
	h.mu.Unlock()
	h.conns.breakAll()
	if guest != nil {
		guest.Close()
	}
	if machine != nil {
		if err := machine.Stop(ctx); err != nil {
			return err
		}
	}
	if slot != nil {
		if err := a.cfg.Slots.Release(ctx, slot); err != nil {
			return err
		}
	}
	h.mu.Lock()
	h.machine, h.machineID, h.slot, h.guest = nil, "", nil, nil
	h.mu.Unlock()
	return nil
}

// syncFolder makes the files of a folder, and their names, durable.
func syncFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := syncPath(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return syncPath(dir)
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
