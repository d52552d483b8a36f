package hecatoncheir

import (
	"context"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Describe returns a sandbox as it stands here; one that is not here is tartarus.NotFound.
func (a *Agent) Describe(id string) (tartarus.Sandbox, error) {
	h, err := a.find(id)
	if err != nil {
		return tartarus.Sandbox{}, err
	}
	return h.sandbox(), nil
}

// Refill reports everything held here again, for a registry that has lost what it knew.
func (a *Agent) Refill() {
	for _, h := range a.all() {
		a.tell(h)
	}
}

// Disown ends sandboxes that live on another node by now. A sandbox has one owner, and the registry says which: what is here is a
// copy from before this node was given up. Nothing of it is reported.
func (a *Agent) Disown(ctx context.Context, ids []string) {
	for _, id := range ids {
		h, err := a.find(id)
		if err != nil {
			continue
		}
		a.log.Warn("sandbox lives on another node by now; the copy here ends", "sandbox", id, "tenant", h.spec.Tenant)
		if h.sandbox().Phase == tartarus.Paused { // it was moved, and what the object store has of it is the other node's
			if err := a.Leave(ctx, id); err == nil {
				continue
			}
		}
		go a.expire(ctx, h, tartarus.Termination{
			Reason: tartarus.ReasonNodeLost, Message: "it lives on another node by now", Grace: new(time.Duration),
		})
	}
}
