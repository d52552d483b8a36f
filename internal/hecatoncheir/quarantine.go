package hecatoncheir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
)

const (
	// lookTime is how long a guest may take to show what goes on in it, before it is frozen without.
	lookTime = 3 * time.Second
	// maxEvidence bounds what is kept, so that it can be carried from a node in one answer.
	maxEvidence = 6 << 20
	// keepEvidence is how long evidence is kept after the sandbox has gone.
	keepEvidence = 90 * 24 * time.Hour
)

// Quarantine cuts a running sandbox off, has it show what goes on in it, freezes it, and keeps what it is as evidence. It is cut off before anything
// else, and frozen whatever fails after that. One that sleeps stays as it is: nothing of it runs for this. Its time does not run out meanwhile.
func (a *Agent) Quarantine(ctx context.Context, id string, q tartarus.Quarantine) (tartarus.Sandbox, error) {
	h, err := a.find(id)
	if err != nil {
		return tartarus.Sandbox{}, err
	}
	h.op.Lock() // a pause or resume under way is over then
	defer h.op.Unlock()
	if h.pending() != nil {
		return h.sandbox(), tartarus.Errorf(tartarus.Conflict, "sandbox %s is being terminated", id)
	}
	q.Since = time.Now()
	if h.sandbox().Phase == tartarus.Paused {
		return a.seize(ctx, h, q)
	}
	if _, err := h.change(func(sb *tartarus.Sandbox) error {
		if sb.Phase != tartarus.Running {
			return tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s: only one that runs or is paused can be put into quarantine", id, sb.Phase)
		}
		sb.Quarantine = &q
		return sb.Transition(tartarus.Quarantined, tartarus.ReasonPolicy, q.Reason)
	}); err != nil {
		return h.sandbox(), err
	}
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), snapshotTime)
	defer cancel()
	if err := a.cutOff(work, h); err != nil {
		// What cannot be cut off must not run.
		return h.sandbox(), errors.Join(err, h.machine.Pause(work), a.journal(work, h))
	}
	e := a.evidence(work, h)
	if err := h.machine.Pause(work); err != nil {
		return h.sandbox(), errors.Join(fmt.Errorf("freeze sandbox %s: %w", id, err), a.end(work, h, tartarus.Failed, tartarus.ReasonPolicy, "it could not be frozen: "+q.Reason))
	}
	if snap, err := a.save(work, h, snapshot.Meta{Kind: snapshot.Evidence}); err != nil {
		e.Notes = append(e.Notes, "no snapshot: "+err.Error())
	} else {
		_, _ = h.change(func(sb *tartarus.Sandbox) error { q.Snapshot = snap.ID; sb.Quarantine = &q; return nil })
	}
	e.Sandbox = exhibit(h.sandbox())
	err = errors.Join(a.writeEvidence(id, e), a.journal(work, h))
	a.told(ctx, h)
	a.log.Warn("sandbox quarantined", "sandbox", id, "tenant", h.spec.Tenant, "by", q.By, "reason", q.Reason, "notes", e.Notes)
	return h.sandbox(), err
}

// seize puts a sandbox into quarantine that sleeps. Its snapshot is what it is, so that nothing has to be taken of it, and nothing of it runs.
func (a *Agent) seize(ctx context.Context, h *held, q tartarus.Quarantine) (tartarus.Sandbox, error) {
	h.mu.Lock()
	q.Snapshot = h.saved
	h.mu.Unlock()
	was, err := h.change(func(sb *tartarus.Sandbox) error {
		q.Paused, q.Was, sb.Quarantine = true, sb.Reason, &q
		return sb.Transition(tartarus.Quarantined, tartarus.ReasonPolicy, q.Reason)
	})
	if err != nil {
		return was, err
	}
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	e := tartarus.Evidence{TakenAt: q.Since, Sandbox: exhibit(h.sandbox()), Notes: []string{"it was paused: nothing of it ran for this, so that its guest shows nothing; an inspection looks at its disk"}}
	err = errors.Join(a.journal(work, h), a.writeEvidence(h.spec.ID, e))
	a.told(ctx, h)
	a.log.Warn("paused sandbox quarantined", "sandbox", h.spec.ID, "tenant", h.spec.Tenant, "by", q.By, "reason", q.Reason)
	return h.sandbox(), err
}

// letSleep ends the quarantine of a sandbox that slept: it sleeps on.
func (a *Agent) letSleep(ctx context.Context, h *held) (tartarus.Sandbox, error) {
	if sb, err := h.change(func(sb *tartarus.Sandbox) error {
		if !sb.Deadline.IsZero() {
			sb.Deadline = sb.Deadline.Add(time.Since(sb.Quarantine.Since))
		}
		was := sb.Quarantine.Was
		sb.Quarantine, sb.Message = nil, ""
		if err := sb.Transition(tartarus.Paused, "", ""); err != nil {
			return err
		}
		sb.Reason = was
		return nil
	}); err != nil {
		return sb, err
	}
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	err := a.journal(work, h)
	a.rewind()
	a.told(ctx, h)
	return h.sandbox(), err
}

// cutOff lets nothing more into a sandbox or out of it.
func (a *Agent) cutOff(ctx context.Context, h *held) error {
	h.conns.breakAll()
	if err := a.journal(ctx, h); err != nil {
		return err
	}
	if h.slot == nil {
		return nil
	}
	return a.cfg.Slots.SetRules(ctx, h.slot, network.Rules{})
}

// evidence gathers what there is to know about a sandbox that is cut off and still runs.
func (a *Agent) evidence(ctx context.Context, h *held) tartarus.Evidence {
	e := tartarus.Evidence{TakenAt: time.Now()}
	note := func(what string, err error) {
		if err != nil {
			e.Notes = append(e.Notes, what+": "+err.Error())
		}
	}
	u, err := h.machine.Usage(ctx)
	note("no usage", err)
	e.Usage.CPU, e.Usage.MemoryBytes, e.Usage.DiskBytes, e.Usage.Threads = u.CPU, u.MemoryBytes, u.DiskBytes, u.PIDs
	if h.slot == nil {
		return e
	}
	c, err := a.cfg.Slots.Counters(ctx, h.slot)
	note("no counters", err)
	e.Refused = tartarus.Refused{Packets: c.DroppedPackets, Bytes: c.DroppedBytes}
	asking, cancel := context.WithTimeout(ctx, 2*lookTime)
	defer cancel()
	in, err := h.guest.Inspect(asking, h.sandbox().StartedAt, lookTime)
	if err == nil {
		e.Guest = &in
	}
	note("the guest shows nothing", err)
	e.Log, err = h.fetchLogs(asking)
	note("no log", err)
	return e
}

// exhibit is a sandbox without what opens it.
func exhibit(sb tartarus.Sandbox) tartarus.Sandbox {
	sb.Secrets = tartarus.Secrets{}
	env := make(map[string]string, len(sb.Env))
	for name := range sb.Env { // values may be credentials
		env[name] = "[redacted]"
	}
	sb.Env = env
	if p := sb.Network.Proxy; p != nil {
		proxy := *p
		proxy.Password = ""
		sb.Network.Proxy = &proxy
	}
	rules := make(map[string]map[string]string, len(sb.Network.Transforms))
	for domain, headers := range sb.Network.Transforms {
		rules[domain] = make(map[string]string, len(headers))
		for name := range headers { // likewise
			rules[domain][name] = "[redacted]"
		}
	}
	sb.Network.Transforms = rules
	return sb
}

func (a *Agent) evidencePath(id string) string {
	return filepath.Join(a.cfg.Dir, "evidence", id+".json")
}

func (a *Agent) writeEvidence(id string, e tartarus.Evidence) error {
	body, err := json.Marshal(e)
	for err == nil && len(body) > maxEvidence && e.Guest != nil && len(e.Guest.Files) > 0 {
		e.Guest.Files, e.Guest.Truncated = e.Guest.Files[:len(e.Guest.Files)/2], true
		body, err = json.Marshal(e)
	}
	if err != nil {
		return fmt.Errorf("encode evidence: %w", err)
	}
	path := a.evidencePath(id)
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", body, 0o600); err != nil {
		return err
	}
	if err := errors.Join(syncPath(path+".tmp"), os.Rename(path+".tmp", path)); err != nil {
		return err
	}
	return syncPath(dir)
}

// Evidence returns what was found in a sandbox when it was quarantined, also after it has gone. Where there is none it is tartarus.NotFound.
func (a *Agent) Evidence(_ context.Context, id string) (e tartarus.Evidence, err error) {
	if !tartarus.ValidID(id) {
		return e, tartarus.Errorf(tartarus.NotFound, "there is no evidence of sandbox %q", id)
	}
	body, err := os.ReadFile(a.evidencePath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return e, tartarus.Errorf(tartarus.NotFound, "there is no evidence of sandbox %s", id)
	}
	if err != nil {
		return e, fmt.Errorf("read evidence: %w", err)
	}
	return e, json.Unmarshal(body, &e)
}

// Release lets a sandbox go on where it was frozen, under its own rules and with the time that it had left. Its evidence stays, without the snapshot.
func (a *Agent) Release(ctx context.Context, id string) (tartarus.Sandbox, error) {
	h, err := a.find(id)
	if err != nil {
		return tartarus.Sandbox{}, err
	}
	h.op.Lock()
	defer h.op.Unlock()
	was := h.sandbox()
	if was.Phase != tartarus.Quarantined || was.Quarantine == nil {
		return was, tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s, not quarantined", id, was.Phase)
	}
	if was.AtRest() {
		return a.letSleep(ctx, h)
	}
	rules, err := rulesOf(h.spec, was.Network)
	if err != nil {
		return was, err
	}
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if h.slot != nil {
		if err := a.cfg.Slots.SetRules(work, h.slot, rules); err != nil {
			return was, err
		}
	}
	if err := h.machine.Resume(work); err != nil {
		return was, fmt.Errorf("release sandbox %s: %w", id, err)
	}
	if _, err := h.change(func(sb *tartarus.Sandbox) error {
		if !sb.Deadline.IsZero() {
			sb.Deadline = sb.Deadline.Add(time.Since(sb.Quarantine.Since))
		}
		sb.Quarantine, sb.Reason, sb.Message = nil, "", ""
		return sb.Transition(tartarus.Running, "", "")
	}); err != nil {
		return h.sandbox(), err
	}
	h.conns.allow()
	err = a.journal(work, h)
	if was.Quarantine.Snapshot != "" {
		err = errors.Join(err, a.discard(work, was.Quarantine.Snapshot))
	}
	a.rewind()
	a.told(ctx, h)
	return h.sandbox(), err
}

// stayQuarantined keeps an adopted sandbox as its quarantine wants it, also where the earlier agent died before all was done.
func (a *Agent) stayQuarantined(ctx context.Context, h *held) error {
	h.conns.breakAll()
	return h.machine.Pause(ctx)
}

// tidyEvidence removes evidence that has been kept for long enough, and snapshots of quarantines that are over.
func (a *Agent) tidyEvidence(ctx context.Context, now time.Time) error {
	wanted := map[string]bool{}
	for _, h := range a.all() {
		if q := h.sandbox().Quarantine; q != nil {
			wanted[q.Snapshot] = true
		}
	}
	errs := a.snapshots.Keep(ctx, snapshot.Evidence, wanted)
	entries, err := os.ReadDir(filepath.Join(a.cfg.Dir, "evidence"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(errs, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > keepEvidence {
			errs = errors.Join(errs, os.Remove(filepath.Join(a.cfg.Dir, "evidence", e.Name())))
		}
	}
	return errs
}
