package hecatoncheir

import (
	"context"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hypnos"
)

// Hibernation. What nothing uses is paused with the reason idle and goes on as the node's own affair: its connections are accepted as if it ran, and
// the first of them, or of the calls that concern it, wakes it and waits. Asleep or not, its time runs.

// lookForIdle puts idle sandboxes to sleep until ctx ends.
func (a *Agent) lookForIdle(ctx context.Context) error {
	if a.cfg.Hypnos == nil {
		return nil
	}
	// Often enough that sleep begins within an eighth of the idle time; seldom enough to cost nothing.
	tick := time.NewTicker(min(max(a.cfg.Hypnos.IdleAfter/8, 250*time.Millisecond), sampleEvery))
	defer tick.Stop()
	hands := make(chan struct{}, a.cfg.Hypnos.AtOnce)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, h := range a.all() {
			if !a.idle(h, time.Now()).Sleep {
				continue
			}
			select {
			case hands <- struct{}{}:
			default:
				continue // the next round finds it still idle, or used
			}
			a.starts.Add(1)
			go func() {
				defer a.starts.Done()
				defer func() { <-hands }()
				a.hibernate(ctx, h)
			}()
		}
	}
}

// idle judges one sandbox.
func (a *Agent) idle(h *held, now time.Time) hypnos.Verdict {
	f := hypnos.Facts{Sandbox: h.sandbox()}
	f.Connections, f.Used = h.conns.use()
	if f.Sandbox.Phase == tartarus.Running { // most are not idle because of what costs nothing to find out
		f.Samples = h.samples.telling(now.Add(-a.cfg.Hypnos.IdleAfter), now)
	}
	h.mu.Lock()
	f.Tried = h.tried
	h.mu.Unlock()
	return a.cfg.Hypnos.Decide(now, f)
}

// hibernate puts a sandbox to sleep that is idle, unless a command runs in it or somebody comes at the last moment. When it fails the sandbox runs
// on, and is left alone for a while.
func (a *Agent) hibernate(ctx context.Context, h *held) {
	began := time.Now()
	log := a.log.With("sandbox", h.spec.ID, "tenant", h.spec.Tenant)
	busy, err := a.commandRuns(ctx, h)
	if busy {
		h.conns.touch(time.Now())
		return
	}
	if err == nil {
		_, used := h.conns.use()
		if !h.conns.beginDoze(used) {
			return
		}
		freed := h.memory()
		h.mu.Lock()
		h.freed = freed // written with the record of the pause
		h.mu.Unlock()
		if _, err = a.pauseHow(ctx, h, tartarus.PauseHow{Healthy: true}, tartarus.ReasonIdle, "nothing used it"); err == nil {
			log.Info("sandbox hibernated", "took", time.Since(began).Round(time.Millisecond), "freed_bytes", freed)
		} else {
			h.conns.allow()
		}
	}
	if ctx.Err() != nil || tartarus.Is(err, tartarus.Conflict) { // it is ended, or paused, or moved on otherwise
		return
	}
	a.count.Hibernated(time.Since(began), err)
	if err != nil {
		h.mu.Lock()
		h.tried = time.Now()
		h.mu.Unlock()
		log.Warn("idle sandbox not hibernated", "error", err)
	}
}

// commandRuns asks the guest whether a command that a client started runs; the template's own start command is no such.
func (a *Agent) commandRuns(ctx context.Context, h *held) (bool, error) {
	h.mu.Lock()
	guest := h.guest
	h.mu.Unlock()
	if guest == nil {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	running, err := guest.Processes(ctx)
	for _, p := range running {
		if p.Tag != startTag {
			return true, nil
		}
	}
	return false, err
}

// memory is what the sandbox was last seen to hold of the host's.
func (h *held) memory() int64 {
	h.samples.mu.Lock()
	defer h.samples.mu.Unlock()
	return h.samples.last.MemoryBytes
}

// asleep reports whether the sandbox is hibernated, or about to be.
func (h *held) asleep() bool {
	sb := h.sandbox()
	if sb.Phase == tartarus.Running {
		return h.conns.dozing()
	}
	return sb.Reachable() && sb.Reason == tartarus.ReasonIdle
}

// awake returns a sandbox that runs. One that is hibernated is woken; of many at once one does it, and all wait.
func (a *Agent) awake(ctx context.Context, id string) (*held, error) {
	h, err := a.find(id)
	if err != nil {
		return nil, err
	}
	if !h.asleep() {
		return a.running(id)
	}
	woken := a.waking.DoChan(id, func() (any, error) { return nil, a.wake(context.WithoutCancel(ctx), h) })
	select {
	case r := <-woken:
		if r.Err != nil {
			return nil, r.Err
		}
		return a.running(id)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// wake brings a hibernated sandbox back, after the attempt to put it to sleep is over.
func (a *Agent) wake(ctx context.Context, h *held) error {
	began := time.Now()
	job, cancel := context.WithTimeout(ctx, a.cfg.StartTime)
	defer cancel()
	select {
	case a.wakers <- struct{}{}:
		defer func() { <-a.wakers }()
	case <-job.Done():
		return tartarus.Errorf(tartarus.Unavailable, "too many sandboxes wake at the moment")
	}
	a.mu.Lock()
	if a.going {
		a.mu.Unlock()
		return tartarus.Errorf(tartarus.Unavailable, "the node is going")
	}
	a.endings.Add(1)
	a.mu.Unlock()
	defer a.endings.Done()

	h.op.Lock() // a hibernation under way ends first
	sleeps := h.sandbox().Hibernated()
	h.op.Unlock()
	if !sleeps {
		return nil // it did not come to sleep, or woke meanwhile
	}
	_, err := a.unpause(ctx, job, h, tartarus.Resume{ID: h.spec.ID})
	if err != nil {
		a.log.Error("hibernated sandbox not woken", "sandbox", h.spec.ID, "tenant", h.spec.Tenant, "error", err)
		return err
	}
	a.told(ctx, h)
	a.log.Info("sandbox woken", "sandbox", h.spec.ID, "tenant", h.spec.Tenant, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// stayAsleep makes an ordinary paused sandbox of a hibernated one: it waits for as long as nobody kills it, and only a resume brings it back.
func (a *Agent) stayAsleep(ctx context.Context, h *held) (tartarus.Sandbox, error) {
	h.op.Lock()
	defer h.op.Unlock()
	sb, err := h.change(func(sb *tartarus.Sandbox) error {
		if !sb.Hibernated() {
			return tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s", sb.ID, sb.Phase)
		}
		sb.Reason, sb.Message, sb.Deadline = "", "", time.Time{}
		return nil
	})
	if err != nil {
		return sb, err
	}
	err = a.journal(ctx, h)
	a.told(ctx, h)
	return sb, err
}

// Stats counts what a node has.
type Stats struct {
	Phases      map[tartarus.Phase]int
	Terminating int
	Hibernated  int
	Freed       int64 // bytes of memory that hibernated sandboxes held before
	Guests      int   // that say of their memory how it stands
	Guest       tartarus.GuestMemory
}

// Stats counts what the node has now.
func (a *Agent) Stats() Stats {
	s := Stats{Phases: map[tartarus.Phase]int{}}
	for _, h := range a.all() {
		sb := h.sandbox()
		s.Phases[sb.Phase]++
		if g := h.guestMemory(); g != nil {
			s.Guests++
			s.Guest.Add(*g)
		}
		if sb.Terminating() {
			s.Terminating++
		}
		if sb.Hibernated() {
			h.mu.Lock()
			s.Freed += h.freed
			h.mu.Unlock()
			s.Hibernated++
		}
	}
	return s
}
