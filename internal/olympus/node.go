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

// LogQuery selects log entries.
type LogQuery struct {
	Cursor     time.Time // entries at or after it, or at or before it with Descending; zero is the start, or the end
	Limit      int       // 1..1000
	Descending bool
	Level      string // least severe level wanted: debug, info, warn, error; empty means all
	Search     string // text that the message contains
}

// LogEntry is one line of a sandbox's log.
type LogEntry struct {
	Time    time.Time         `json:"timestamp"`
	Level   string            `json:"level"`
	Message string            `json:"message"`
	Fields  map[string]string `json:"fields,omitempty"`
}

// Sample is one measurement of a sandbox. Sizes are bytes.
type Sample struct {
	Time       time.Time `json:"time"`
	CPUCount   int       `json:"cpuCount"`
	CPUPercent float64   `json:"cpuPercent"` // of all its CPUs together: 100 is one CPU fully used
	MemUsed    int64     `json:"memUsed"`
	MemTotal   int64     `json:"memTotal"`
	MemCache   int64     `json:"memCache"`
	DiskUsed   int64     `json:"diskUsed"`
	DiskTotal  int64     `json:"diskTotal"`
}
