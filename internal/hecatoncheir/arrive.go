package hecatoncheir

import (
	"context"
	"encoding/json"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// arrive acknowledges a new sandbox in one write where the stores are one, and reports whether it did. Otherwise journal, registry and
// queue hear of it one after the other.
func (a *Agent) arrive(ctx context.Context, h *held) bool {
	h.mu.Lock()
	l, sb := h.lease, h.sb
	h.mu.Unlock()
	if a.cfg.Arrivals == nil || l == nil {
		return false
	}
	record, err := json.Marshal(h.record())
	if err != nil {
		return false
	}
	h.conns.allow() // whoever is told may be here before this start is over
	// It does not end with the start's time: a start that is taken for failed although it was acknowledged would take a sandbox from its owner.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	revision, err := a.cfg.Arrivals.Arrive(ctx, *l, sb, record)
	if tartarus.Is(err, tartarus.Conflict) {
		return false // nobody waits for it any more, which its end will tell
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.arrived = l.Token
	if err != nil {
		// It may have been acknowledged. Where it was not, the job is handed out again and finds it.
		a.log.Warn("start not acknowledged", "sandbox", sb.ID, "tenant", sb.Tenant, "error", err)
		return false
	}
	h.sb.Revision = revision
	return true
}

// arrivedUnder reports whether the start of the sandbox was acknowledged under this lease.
func (h *held) arrivedUnder(l acheron.Lease) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.arrived != 0 && h.arrived == l.Token
}
