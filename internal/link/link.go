// Package link joins node agents to the control plane over a network: a node dials out to every Olympus replica, proves who it is by a
// certificate of the fleet's own authority, and keeps one session to each, over which calls go both ways. What a node says counts for
// that node alone: no certificate lets it lease another's work or report another's sandboxes.
//
//	node: Uplink ── mutual TLS, yamux, HTTP/1.1 in both directions ── Hub: olympus
//	      Control methods ─────────────────────────────────────────►  queue, registry
//	      olympus.Node methods, tunnels to guests ◄─────────────────  API and edge
//
// Bulk traffic of the edge goes to the node's own listener where the replica can reach it, and through the session where not. Any
// replica serves any sandbox, because each node has a session to each; one that is killed takes nothing with it.
package link

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Revision is the version of what is said over a session. It grows with every change that the other side could misunderstand. A replica
// accepts nodes of its own revision and of the one before, so that a fleet is upgraded replicas first, nodes after.
const Revision = 1

// revision is another one than Revision where the linker sets it: the upgrade drill of test/fleet builds older and newer programs from one tree.
var revision string

func ownRevision() int {
	if n, err := strconv.Atoi(revision); err == nil && n > 0 {
		return n
	}
	return Revision
}

// accepts reports why a node that speaks theirs is turned away by a replica that speaks ours.
func accepts(ours, theirs int, version string) error {
	switch {
	case theirs == ours || theirs == ours-1:
		return nil
	case theirs > ours:
		return tartarus.Errorf(tartarus.Unsupported, "the node (%s) speaks revision %d of the fleet's protocol and this replica %d: upgrade the replicas first, then the nodes", version, theirs, ours)
	default:
		return tartarus.Errorf(tartarus.Unsupported, "the node (%s) speaks revision %d of the fleet's protocol and this replica only %d and %d: upgrade the node", version, theirs, ours-1, ours)
	}
}

// Vault is the control plane's shared memory of a few small values: the authority, spent join tokens, which replicas there are. All
// methods may be called concurrently; what a method has acknowledged survives a crash.
type Vault interface {
	// Create stores a value under a name that has none, for ttl, or for good when ttl is 0. A name that has one is tartarus.Conflict.
	Create(ctx context.Context, name string, value []byte, ttl time.Duration) error
	// Set stores a value under a name whatever it had, for ttl, or for good when ttl is 0.
	Set(ctx context.Context, name string, value []byte, ttl time.Duration) error
	// Get returns the value; none, or one whose time is over, is tartarus.NotFound.
	Get(ctx context.Context, name string) ([]byte, error)
	// List returns all values whose names begin with prefix, by name.
	List(ctx context.Context, prefix string) (map[string][]byte, error)
}

// hello opens a session: the node says what it is, the replica what it is, or why not.
type hello struct {
	Revision int    `json:"revision"`
	Version  string `json:"version"`
	Address  string `json:"address,omitempty"` // where the node's own listener can be reached; empty: through the session alone
}

// welcome answers hello.
type welcome struct {
	Revision int    `json:"revision"`
	Version  string `json:"version"`
	Replica  string `json:"replica"`
	news
}

// news is what a node learns with every heartbeat.
type news struct {
	// Replicas are the addresses of all replicas that live, for the node to keep a session to each.
	Replicas []string `json:"replicas,omitempty"`
	// Epoch names the registry. Another one than before is an empty registry, which the node fills again.
	Epoch string `json:"epoch,omitempty"`
}

// The rhythms of a session.
const (
	// dialTime bounds connecting to a replica or a node, with handshake and hello.
	dialTime = 10 * time.Second
	// pingEvery is how often an idle session is tried, pingTime how long an answer may take: a partition is noticed within the
	// sum of both, which is less than a node's lease in the registry.
	pingEvery = 5 * time.Second
	pingTime  = 5 * time.Second
	// firstBackoff and lastBackoff bound the wait between attempts to reach a replica.
	firstBackoff = 200 * time.Millisecond
	lastBackoff  = 10 * time.Second
	// leasePoll is how long one question for work waits at a replica.
	leasePoll = 20 * time.Second
	// replicaTTL is how long a replica that fell silent is still named to nodes, replicaEvery how often it says that it lives.
	replicaTTL   = 60 * time.Second
	replicaEvery = 10 * time.Second
	// window is how many bytes of one stream may be under way: 100 Mbit/s at 80 ms.
	window = 1 << 20
	// maxBody bounds a call and its answer: 1,000 reports of 2 KB, 1,000 log lines of 4 KB.
	maxBody = 8 << 20
)

// wrap says during what something failed, and keeps the kind of the cause.
func wrap(kind tartarus.Kind, err error, format string, args ...any) error {
	if tartarus.KindOf(err) != tartarus.Internal {
		kind = tartarus.KindOf(err)
	}
	return tartarus.Errorf(kind, "%s: %w", fmt.Sprintf(format, args...), err)
}
