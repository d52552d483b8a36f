package olympus

import (
	"context"
	"net"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Fleet finds the agent of a node.
type Fleet interface {
	// Node returns the agent with this name, or tartarus.Unavailable when it cannot be reached now.
	Node(ctx context.Context, name string) (Node, error)
}

// Node is what Olympus asks of the agent that owns a sandbox. A sandbox that the node does not hold is tartarus.GuestGone
// in Dial and tartarus.NotFound everywhere else. All methods may be called concurrently.
type Node interface {
	// Stop ends a sandbox and returns when it is gone; an ended one is tartarus.NotFound.
	Stop(ctx context.Context, id string, reason tartarus.Reason) error

	// SetDeadline moves the end of a sandbox's time; with extendOnly never to an earlier one.
	SetDeadline(ctx context.Context, id string, deadline time.Time, extendOnly bool) (tartarus.Sandbox, error)

	// SetNetwork replaces the egress rules of a running sandbox.
	SetNetwork(ctx context.Context, id string, n tartarus.Network) (tartarus.Sandbox, error)

	// Dial connects to a TCP port of the guest. Nobody listening is tartarus.PortClosed.
	Dial(ctx context.Context, id string, port int) (net.Conn, error)

	// Logs returns entries in order; also of ended sandboxes while the node keeps them.
	Logs(ctx context.Context, id string, q LogQuery) ([]LogEntry, error)

	// Samples returns the kept measurements between start and end, oldest first. Zero times do not restrict.
	Samples(ctx context.Context, id string, start, end time.Time) ([]Sample, error)
}

// The nouns of logs and measurements live in the root package, where node agents share them.
type (
	LogQuery = tartarus.LogQuery
	LogEntry = tartarus.LogEntry
	Sample   = tartarus.Sample
)
