package link

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
)

// Node is an agent as replicas may use it: everything that olympus asks of the owner of a sandbox.
type Node interface {
	olympus.Node
	olympus.Pauser
	olympus.Terminator
	olympus.Snapshotter
	olympus.Quarantiner
	olympus.Mover
	// Describe returns a sandbox as it stands on this node; one that it does not hold is tartarus.NotFound.
	Describe(id string) (tartarus.Sandbox, error)
}

// The arguments of the calls to a node.
type (
	stopArgs struct {
		ID     string          `json:"id"`
		Reason tartarus.Reason `json:"reason"`
	}
	deadlineArgs struct {
		ID         string    `json:"id"`
		Deadline   time.Time `json:"deadline"`
		ExtendOnly bool      `json:"extendOnly,omitempty"`
	}
	networkArgs struct {
		ID      string           `json:"id"`
		Network tartarus.Network `json:"network"`
	}
	logArgs struct {
		ID    string            `json:"id"`
		Query tartarus.LogQuery `json:"query"`
	}
	sampleArgs struct {
		ID    string    `json:"id"`
		Start time.Time `json:"start"`
		End   time.Time `json:"end"`
	}
	pauseArgs struct {
		ID  string            `json:"id"`
		How tartarus.PauseHow `json:"how"`
	}
	snapshotArgs struct {
		ID  string               `json:"id"`
		How tartarus.SnapshotHow `json:"how"`
	}
	terminateArgs struct {
		ID  string               `json:"id"`
		How tartarus.Termination `json:"how"`
	}
	quarantineArgs struct {
		ID         string              `json:"id"`
		Quarantine tartarus.Quarantine `json:"quarantine"`
	}
	idArgs struct {
		ID string `json:"id"`
	}
)

// nodeMethods is what a replica may ask of a node.
func nodeMethods(n Node) map[string]method {
	return map[string]method{
		"stop": typed(func(ctx context.Context, a stopArgs) (any, error) { return nil, n.Stop(ctx, a.ID, a.Reason) }),
		"deadline": typed(func(ctx context.Context, a deadlineArgs) (any, error) {
			return n.SetDeadline(ctx, a.ID, a.Deadline, a.ExtendOnly)
		}),
		"network":    typed(func(ctx context.Context, a networkArgs) (any, error) { return n.SetNetwork(ctx, a.ID, a.Network) }),
		"logs":       typed(func(ctx context.Context, a logArgs) (any, error) { return n.Logs(ctx, a.ID, a.Query) }),
		"samples":    typed(func(ctx context.Context, a sampleArgs) (any, error) { return n.Samples(ctx, a.ID, a.Start, a.End) }),
		"terminate":  typed(func(ctx context.Context, a terminateArgs) (any, error) { return nil, n.Terminate(ctx, a.ID, a.How) }),
		"keep":       typed(func(ctx context.Context, a idArgs) (any, error) { return n.CancelTermination(ctx, a.ID) }),
		"pause":      typed(func(ctx context.Context, a pauseArgs) (any, error) { return n.Pause(ctx, a.ID, a.How) }),
		"snapshot":   typed(func(ctx context.Context, a snapshotArgs) (any, error) { return n.Snapshot(ctx, a.ID, a.How) }),
		"snapshots":  typed(func(ctx context.Context, q tartarus.SnapshotQuery) (any, error) { return n.Snapshots(ctx, q) }),
		"verify":     typed(func(ctx context.Context, a idArgs) (any, error) { return n.VerifySnapshot(ctx, a.ID) }),
		"unsnap":     typed(func(ctx context.Context, a idArgs) (any, error) { return nil, n.RemoveSnapshot(ctx, a.ID) }),
		"quarantine": typed(func(ctx context.Context, a quarantineArgs) (any, error) { return n.Quarantine(ctx, a.ID, a.Quarantine) }),
		"release":    typed(func(ctx context.Context, a idArgs) (any, error) { return n.Release(ctx, a.ID) }),
		"evidence":   typed(func(ctx context.Context, a idArgs) (any, error) { return n.Evidence(ctx, a.ID) }),
		"examine":    typed(func(ctx context.Context, a idArgs) (any, error) { return n.Examine(ctx, a.ID) }),
		"evict":      typed(func(ctx context.Context, a idArgs) (any, error) { return n.Evict(ctx, a.ID) }),
		"leave":      typed(func(ctx context.Context, a idArgs) (any, error) { return nil, n.Leave(ctx, a.ID) }),
		"holds":      typed(func(ctx context.Context, a idArgs) (any, error) { return n.Holds(ctx, a.ID) }),
		"describe":   typed(func(_ context.Context, a idArgs) (any, error) { return n.Describe(a.ID) }),
	}
}

// nodeHandler serves replicas, over sessions and over the node's own listener.
func nodeHandler(n Node, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST "+callPath, methods(nodeMethods(n), log))
	mux.HandleFunc("POST "+tunnelPath+"{id}/{port}", serveTunnel(n))
	return mux
}

// way is one way to a node.
type way struct {
	client *http.Client
	dial   dialer
}

// remote is a node as this replica reaches it.
type remote struct {
	hub  *Hub
	name string
}

// call asks the node over the best way there is.
func (r *remote) call(ctx context.Context, name string, in, out any) error {
	w, err := r.hub.way(ctx, r.name, false)
	if err != nil {
		return err
	}
	if err := call(ctx, w.client, name, in, out); err != nil {
		if tartarus.KindOf(err) == tartarus.Unavailable {
			return wrap(tartarus.Unavailable, err, "reach node %s", r.name)
		}
		return err
	}
	return nil
}

// Stop implements olympus.Node.
func (r *remote) Stop(ctx context.Context, id string, reason tartarus.Reason) error {
	return r.call(ctx, "stop", stopArgs{id, reason}, nil)
}

// SetDeadline implements olympus.Node.
func (r *remote) SetDeadline(ctx context.Context, id string, deadline time.Time, extendOnly bool) (sb tartarus.Sandbox, err error) {
	err = r.call(ctx, "deadline", deadlineArgs{id, deadline, extendOnly}, &sb)
	return sb, err
}

// SetNetwork implements olympus.Node.
func (r *remote) SetNetwork(ctx context.Context, id string, n tartarus.Network) (sb tartarus.Sandbox, err error) {
	err = r.call(ctx, "network", networkArgs{id, n}, &sb)
	return sb, err
}

// Quarantine implements olympus.Quarantiner.
func (r *remote) Quarantine(ctx context.Context, id string, q tartarus.Quarantine) (sb tartarus.Sandbox, err error) {
	err = r.call(ctx, "quarantine", quarantineArgs{id, q}, &sb)
	return sb, err
}

// Release implements olympus.Quarantiner.
func (r *remote) Release(ctx context.Context, id string) (sb tartarus.Sandbox, err error) {
	err = r.call(ctx, "release", idArgs{id}, &sb)
	return sb, err
}

// Evidence implements olympus.Quarantiner.
func (r *remote) Evidence(ctx context.Context, id string) (e tartarus.Evidence, err error) {
	err = r.call(ctx, "evidence", idArgs{id}, &e)
	return e, err
}

// Examine implements olympus.Quarantiner.
func (r *remote) Examine(ctx context.Context, id string) (in tartarus.Inspection, err error) {
	err = r.call(ctx, "examine", idArgs{id}, &in)
	return in, err
}

// Evict implements olympus.Mover.
func (r *remote) Evict(ctx context.Context, id string) (m tartarus.Move, err error) {
	err = r.call(ctx, "evict", idArgs{id}, &m)
	return m, err
}

// Leave implements olympus.Mover.
func (r *remote) Leave(ctx context.Context, id string) error {
	return r.call(ctx, "leave", idArgs{id}, nil)
}

// Holds implements olympus.Mover.
func (r *remote) Holds(ctx context.Context, id string) (has bool, err error) {
	err = r.call(ctx, "holds", idArgs{id}, &has)
	return has, err
}

// Logs implements olympus.Node.
func (r *remote) Logs(ctx context.Context, id string, q olympus.LogQuery) (out []olympus.LogEntry, err error) {
	err = r.call(ctx, "logs", logArgs{id, q}, &out)
	return out, err
}

// Samples implements olympus.Node.
func (r *remote) Samples(ctx context.Context, id string, start, end time.Time) (out []olympus.Sample, err error) {
	err = r.call(ctx, "samples", sampleArgs{id, start, end}, &out)
	return out, err
}

// Pause implements olympus.Pauser.
func (r *remote) Pause(ctx context.Context, id string, how tartarus.PauseHow) (sb tartarus.Sandbox, err error) {
	err = r.call(ctx, "pause", pauseArgs{id, how}, &sb)
	return sb, err
}

// Terminate implements olympus.Terminator.
func (r *remote) Terminate(ctx context.Context, id string, t tartarus.Termination) error {
	return r.call(ctx, "terminate", terminateArgs{id, t}, nil)
}

// CancelTermination implements olympus.Terminator.
func (r *remote) CancelTermination(ctx context.Context, id string) (sb tartarus.Sandbox, err error) {
	err = r.call(ctx, "keep", idArgs{id}, &sb)
	return sb, err
}

// Snapshot implements olympus.Snapshotter.
func (r *remote) Snapshot(ctx context.Context, id string, how tartarus.SnapshotHow) (s tartarus.Snapshot, err error) {
	err = r.call(ctx, "snapshot", snapshotArgs{id, how}, &s)
	return s, err
}

// Snapshots implements olympus.Snapshotter.
func (r *remote) Snapshots(ctx context.Context, q tartarus.SnapshotQuery) (out []tartarus.Snapshot, err error) {
	err = r.call(ctx, "snapshots", q, &out)
	return out, err
}

// VerifySnapshot implements olympus.Snapshotter.
func (r *remote) VerifySnapshot(ctx context.Context, id string) (s tartarus.Snapshot, err error) {
	err = r.call(ctx, "verify", idArgs{id}, &s)
	return s, err
}

// RemoveSnapshot implements olympus.Snapshotter.
func (r *remote) RemoveSnapshot(ctx context.Context, id string) error {
	return r.call(ctx, "unsnap", idArgs{id}, nil)
}

// Describe returns a sandbox as the node has it.
func (r *remote) Describe(ctx context.Context, id string) (sb tartarus.Sandbox, err error) {
	err = r.call(ctx, "describe", idArgs{id}, &sb)
	return sb, err
}

// Dial implements olympus.Node. The node's own listener is tried first: what passes there does not go through the session.
func (r *remote) Dial(ctx context.Context, id string, port int) (net.Conn, error) {
	w, err := r.hub.way(ctx, r.name, true)
	if err != nil {
		return nil, err
	}
	return openTunnel(ctx, w.dial, id, port)
}
