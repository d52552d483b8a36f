package hecatoncheir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// snapshotTime bounds writing one sandbox to disk: tens of gigabytes on a slow one.
const snapshotTime = 10 * time.Minute

// Pause writes a running sandbox to disk, processes and memory and files as they are at one instant, and frees what it held
// of the host. The source goes only once the snapshot is durable; when anything fails before, the sandbox runs on.
// With healthy, a sandbox whose agent does not answer is left running.
func (a *Agent) Pause(ctx context.Context, id string, healthy bool) (tartarus.Sandbox, error) {
	h, err := a.find(id)
	if err != nil {
		return tartarus.Sandbox{}, err
	}
	return a.pauseFor(ctx, h, healthy, "", "")
}

// pauseFor is Pause with the reason why, where it was not simply asked for. One that is hibernated keeps its deadline: asleep or not, its time runs.
func (a *Agent) pauseFor(ctx context.Context, h *held, healthy bool, reason tartarus.Reason, message string) (tartarus.Sandbox, error) {
	h.op.Lock()
	defer h.op.Unlock()
	if healthy {
		if err := h.answers(ctx); err != nil {
			return h.sandbox(), err
		}
	}
	if h.pending() != nil {
		return h.sandbox(), tartarus.Errorf(tartarus.Conflict, "sandbox %s is being terminated", h.spec.ID)
	}
	sb, err := h.change(func(sb *tartarus.Sandbox) error { return sb.Transition(tartarus.Pausing, reason, message) })
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
const answerTime = 3 * time.Second

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
	dir, err := a.snapshot(ctx, h)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.saved = dir
	h.mu.Unlock()
	if _, err := h.change(func(sb *tartarus.Sandbox) error {
		if sb.Reason != tartarus.ReasonIdle {
			sb.Deadline = time.Time{} // a paused sandbox waits for as long as nobody kills it
		}
		return sb.Transition(tartarus.Paused, "", "")
	}); err != nil {
		return err
	}
	// From here on the snapshot is the sandbox. What follows frees the host and is finished by the next agent if this one dies.
	if err := a.journal(ctx, h); err != nil {
		return err
	}
	if err := a.letGo(ctx, h); err != nil {
		a.log.Error("paused sandbox still holds its machine", "sandbox", h.spec.ID, "tenant", h.spec.Tenant, "error", err)
		return nil
	}
	return a.journal(ctx, h)
}

// snapshot writes the machine into a folder that appears under its final name only when all of it is on the disk.
func (a *Agent) snapshot(ctx context.Context, h *held) (string, error) {
	final := filepath.Join(a.savedDir(), h.spec.ID)
	tmp := final + ".tmp"
	if err := errors.Join(os.RemoveAll(tmp), os.RemoveAll(final), os.MkdirAll(tmp, 0o700)); err != nil {
		return "", fmt.Errorf("make snapshot folder: %w", err)
	}
	err := h.machine.Snapshot(ctx, tmp)
	if err == nil {
		err = syncFolder(tmp)
	}
	if err == nil {
		err = os.Rename(tmp, final)
	}
	if err == nil {
		err = syncPath(a.savedDir())
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	return final, nil
}

// wakeAgain undoes a pause that failed. A machine that does not run on has crashed.
func (a *Agent) wakeAgain(ctx context.Context, h *held, cause error) error {
	h.mu.Lock()
	m := h.machine
	h.mu.Unlock()
	err := m.Resume(ctx)
	if err == nil {
		_, err = h.change(func(sb *tartarus.Sandbox) error {
			sb.Phase, sb.Reason, sb.Message = tartarus.Running, "", ""
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

// unpause brings a paused sandbox back to life under the time it is given. When that fails it is paused as before.
func (a *Agent) unpause(ctx, job context.Context, h *held, timeout time.Duration) (tartarus.Sandbox, error) {
	h.op.Lock()
	defer h.op.Unlock()
	job, cancel := context.WithCancel(job)
	defer cancel()
	sb, err := h.begin(cancel)
	if err != nil {
		if sb.Phase == tartarus.Running {
			return sb, nil // an earlier delivery did it
		}
		return sb, err
	}
	err = a.restore(job, h, timeout)
	if err == nil {
		a.settle(ctx, h)
		return h.sandbox(), nil
	}
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancelLast()
	undo := a.letGo(last, h)
	_, back := h.change(func(sb *tartarus.Sandbox) error { return sb.Transition(tartarus.Paused, "", "") })
	if back == nil {
		back = a.journal(last, h)
	}
	close(h.up)
	return h.sandbox(), errors.Join(err, undo, back)
}

// begin moves a paused sandbox to starting, with a new gate for those who want to end it meanwhile.
func (h *held) begin(cancel context.CancelFunc) (tartarus.Sandbox, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := h.sb
	if err := next.Transition(tartarus.Starting, "", ""); err != nil || h.sb.Phase != tartarus.Paused {
		return h.sb, tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s, not paused", h.sb.ID, h.sb.Phase)
	}
	h.sb, h.up, h.cancel = next, make(chan struct{}), cancel
	return next, nil
}

// restore does the steps of a resume in order.
func (a *Agent) restore(ctx context.Context, h *held, timeout time.Duration) error {
	template, err := a.cfg.Templates.Template(ctx, h.spec.TemplateID, h.spec.BuildID)
	if err != nil {
		return err
	}
	driver, err := a.driver(h.sandbox().Driver)
	if err != nil {
		return err
	}
	rules, err := network.ParseRules(h.sandbox().Network) // which may have been changed since it was created
	if err != nil {
		return err
	}
	done, err := a.bootTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := a.attach(ctx, h, driver, rules); err != nil {
		return err
	}
	if err := a.journal(ctx, h); err != nil {
		return err
	}
	m, err := driver.Restore(ctx, a.machineConfig(h, template), h.saved)
	if err != nil {
		return err
	}
	return a.bringAlive(ctx, h, template, m, driver, timeout, false)
}

// bringAlive is what a first start and a resume have in common once there is a machine: the agent is told who it is, and the sandbox runs.
// A machine that was booted, not restored, is then prepared.
func (a *Agent) bringAlive(ctx context.Context, h *held, t Template, m vmm.Machine, d vmm.Driver, timeout time.Duration, booted bool) error {
	h.mu.Lock()
	h.machine = m
	h.mu.Unlock()
	if err := a.initGuest(ctx, h, t, booted); err != nil {
		return err
	}
	return a.alive(ctx, h, d, timeout)
}

// alive records that a sandbox runs.
func (a *Agent) alive(ctx context.Context, h *held, d vmm.Driver, timeout time.Duration) error {
	now := time.Now()
	if _, err := h.change(func(sb *tartarus.Sandbox) error {
		sb.Driver, sb.Tier = d.Name(), a.support[d.Name()].Tier
		if sb.StartedAt.IsZero() {
			sb.StartedAt = now
		}
		sb.Deadline, sb.Reason, sb.Message = now.Add(timeout), "", ""
		return sb.Transition(tartarus.Running, "", "")
	}); err != nil {
		return err
	}
	h.mu.Lock()
	saved := h.saved
	h.saved = ""
	h.mu.Unlock()
	if err := a.journal(ctx, h); err != nil {
		return err
	}
	if saved != "" { // the journal no longer points at it
		return os.RemoveAll(saved)
	}
	return nil
}

// settle starts what accompanies a sandbox that has come up.
func (a *Agent) settle(ctx context.Context, h *held) {
	h.conns.allow()
	watch, stop := context.WithCancel(ctx)
	h.mu.Lock()
	h.cancel = stop
	close(h.up)
	h.mu.Unlock()
	go a.watch(watch, h)
	a.rewind()
}

// savedDir holds the snapshots of paused sandboxes, a folder each.
func (a *Agent) savedDir() string { return filepath.Join(a.cfg.Dir, "paused") }

// sweepSaved removes snapshots that no record speaks of: an agent died while it wrote them, or just after a resume.
func (a *Agent) sweepSaved() error {
	entries, err := os.ReadDir(a.savedDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	keep := map[string]bool{}
	for _, h := range a.all() {
		h.mu.Lock()
		keep[h.saved] = true
		h.mu.Unlock()
	}
	var errs []error
	for _, e := range entries {
		if path := filepath.Join(a.savedDir(), e.Name()); !keep[path] {
			errs = append(errs, os.RemoveAll(path))
		}
	}
	return errors.Join(errs...)
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
