package daemon

import (
	"context"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hecatoncheir"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
)

// localFleet is a fleet of one: the node in this process.
type localFleet struct {
	name string
	node olympus.Node
}

// Node returns the local node.
func (f localFleet) Node(_ context.Context, name string) (olympus.Node, error) {
	if name != f.name {
		return nil, tartarus.Errorf(tartarus.Unavailable, "node %q is not part of this stack", name)
	}
	return f.node, nil
}

// announced tells the edge of this process at once what the node reports, so that it need not wait for its cache.
type announced struct {
	hecatoncheir.Direct
	parts *parts
}

// Report implements hecatoncheir.Control.
func (a announced) Report(ctx context.Context, sandboxes ...tartarus.Sandbox) error {
	for _, sb := range sandboxes {
		a.parts.edge.Changed(sb)
		a.parts.api.Observe(sb)
	}
	return a.Direct.Report(ctx, sandboxes...)
}

// arrivals does the same for the sandboxes that come up.
type arrivals struct {
	hecatoncheir.Arrivals
	parts *parts
}

// Arrive implements hecatoncheir.Arrivals.
func (a arrivals) Arrive(ctx context.Context, l acheron.Lease, sb tartarus.Sandbox, record []byte) (int64, error) {
	a.parts.edge.Changed(sb)
	a.parts.api.Observe(sb)
	return a.Arrivals.Arrive(ctx, l, sb, record)
}
