package hecatoncheir

import (
	"context"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/typhon"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// byTyphon is who puts sandboxes into quarantine for their strikes. It is nobody's key, so that any operator may release them.
const byTyphon = "typhon"

// maxUntold bounds the strikes of one sandbox that wait for the control plane to come back.
const maxUntold = 16

// suspicion is what a sandbox has done that looks like an attempt to break out.
type suspicion struct {
	mu      sync.Mutex
	watch   *typhon.Watch
	refused uint64 // packets, as counted last
	untold  []typhon.Strike
}

// tried counts what all sandboxes were refused; a round without it sees no scans.
func (a *Agent) tried(ctx context.Context) map[string]int {
	if a.cfg.Strikes == nil || a.cfg.Slots == nil {
		return nil
	}
	n, err := a.cfg.Slots.Tried(ctx)
	if err != nil {
		a.log.Warn("not known what sandboxes were refused", "error", err)
	}
	return n
}

// suspect looks at what a sandbox did since it was looked at last.
func (a *Agent) suspect(ctx context.Context, h *held, now time.Time, u vmm.Usage, tried map[string]int) {
	if a.cfg.Strikes == nil {
		return
	}
	h.mu.Lock()
	slot, tier := h.slot, h.sb.Tier
	h.mu.Unlock()
	s := &h.suspicion
	s.mu.Lock()
	if s.watch == nil {
		s.watch = typhon.NewWatch(a.cfg.Suspicion)
	}
	r := typhon.Reading{At: now, Packets: s.refused, Threads: u.PIDs}
	if tier == tartarus.TierUserKernel { // a guest's threads are threads of the host
		r.Limit = h.spec.Resources.PIDs
	}
	if slot != nil && tried[slot.Name()] > 0 {
		if c, err := a.cfg.Slots.Counters(ctx, slot); err == nil {
			r.Targets, r.Packets, s.refused = tried[slot.Name()], c.DroppedPackets, c.DroppedPackets
		}
	}
	found := s.watch.Read(r)
	s.mu.Unlock()
	a.struck(ctx, h, found...)
}

// struck tells the control plane what a sandbox did, and puts it into quarantine where that is what comes of it.
func (a *Agent) struck(ctx context.Context, h *held, found ...typhon.Strike) {
	if a.cfg.Strikes == nil {
		return
	}
	s := &h.suspicion
	s.mu.Lock()
	for _, strike := range found {
		strike.Sandbox, strike.Tenant, strike.TemplateID = h.spec.ID, h.spec.Tenant, h.spec.TemplateID
		a.log.Warn("sandbox misbehaves", "sandbox", h.spec.ID, "tenant", h.spec.Tenant, "strike", strike.Kind, "detail", strike.Detail)
		if len(s.untold) < maxUntold {
			s.untold = append(s.untold, strike)
		}
	}
	untold := s.untold
	s.untold = nil
	s.mu.Unlock()
	for i, strike := range untold {
		why, err := a.cfg.Strikes(ctx, strike)
		if err != nil {
			a.log.Warn("strike not counted yet", "sandbox", h.spec.ID, "error", err)
			s.mu.Lock()
			s.untold = append(untold[i:], s.untold...)
			s.mu.Unlock()
			return
		}
		if why == "" || h.sandbox().Phase != tartarus.Running {
			continue
		}
		if _, err := a.Quarantine(ctx, h.spec.ID, tartarus.Quarantine{By: byTyphon, Reason: why}); err != nil {
			a.log.Error("sandbox not quarantined for its strikes", "sandbox", h.spec.ID, "error", err)
		}
		return
	}
}

// fell looks at how a sandbox ended by itself.
func (a *Agent) fell(ctx context.Context, h *held, exit vmm.Exit) {
	switch {
	case exit.Forbidden:
		a.struck(ctx, h, typhon.Strike{Kind: typhon.Broken, At: time.Now(), Detail: exit.Message})
	case exit.Reason == tartarus.ReasonOOM:
		a.struck(ctx, h, typhon.Strike{Kind: typhon.MemoryBomb, At: time.Now(), Detail: exit.Message})
	}
}
