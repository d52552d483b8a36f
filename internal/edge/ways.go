package edge

import (
	"context"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/recent"
)

const (
	// wayTTL is how long a request may follow what was known of a sandbox. What has ended meanwhile does not answer its node's dial.
	wayTTL = time.Second
	// maxWays bounds the sandboxes known at a time; at about 1 KB each.
	maxWays = 20_000
)

// ways remembers where sandboxes are.
type ways struct {
	registry hades.Registry
	known    *recent.Cache[string, tartarus.Sandbox]
	absent   *recent.Cache[string, struct{}] // its own, so that made-up ids cannot push out real ones
}

func newWays(registry hades.Registry) *ways {
	return &ways{
		registry: registry,
		known:    recent.New[string, tartarus.Sandbox](maxWays, wayTTL),
		absent:   recent.New[string, struct{}](maxWays, wayTTL),
	}
}

// find returns a sandbox that exists, whatever its phase. None is tartarus.GuestGone.
func (w *ways) find(ctx context.Context, id string, now time.Time) (tartarus.Sandbox, error) {
	if sb, ok := w.known.Get(id, now); ok {
		return sb, nil
	}
	if _, ok := w.absent.Get(id, now); ok {
		return tartarus.Sandbox{}, errGone
	}
	sb, err := w.registry.Sandbox(ctx, hades.AnyTenant, id)
	if tartarus.Is(err, tartarus.NotFound) {
		w.absent.Put(id, struct{}{}, now)
		return sb, errGone
	}
	if err != nil {
		return sb, err
	}
	if open(sb) {
		w.known.Put(id, sb, now) // what does not run yet may do so at any moment, and is looked up each time
	}
	return sb, nil
}

func (w *ways) put(sb tartarus.Sandbox, now time.Time) {
	w.absent.Drop(sb.ID)
	w.known.Put(sb.ID, sb, now)
}

func (w *ways) drop(id string) { w.known.Drop(id) }

var errGone = &tartarus.Error{Kind: tartarus.GuestGone, Message: "the sandbox was not found"}
