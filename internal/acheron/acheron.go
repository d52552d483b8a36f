// Package acheron is the queue that every create, resume and fork crosses. Delivery is at least
// once with fencing: a job is handed out under a lease with a token that only grows, and a report under an older
// token is refused, so that no two holders both succeed.
//
// Implementations live in internal/store and pass storetest.Queue.
package acheron

import (
	"context"
	"time"
)

// Queue hands jobs to nodes. All methods may be called concurrently; what a method has acknowledged survives a crash.
type Queue interface {
	// Enqueue stores j and returns it as stored. A second Enqueue with the same tenant and idempotency Key returns the job of the
	// first when Digest is the same, tartarus.Mismatch when not. The same ID under another key, or under none, is tartarus.Conflict.
	// A job that Validate refuses is not stored.
	Enqueue(ctx context.Context, j Job) (Job, error)

	// Lease takes up to max jobs for node, oldest first but taking tenants in turn, each for ttl. It blocks until there is at
	// least one or ctx ends, which gives an empty slice and ctx's error. Jobs past their Deadline are never
	// handed out: they end as Dead with reason "deadline".
	Lease(ctx context.Context, node string, max int, ttl time.Duration) ([]Lease, error)

	// Renew prolongs a lease to ttl from now; its holder may then trust it for Trust(ttl) after the call began. A lease that ran out, or whose job was taken by another or
	// cancelled, is tartarus.Conflict.
	Renew(ctx context.Context, l Lease, ttl time.Duration) error

	// Complete ends the job with its result, if the lease still holds; else tartarus.Conflict.
	Complete(ctx context.Context, l Lease, result []byte) error

	// Fail gives the job back. With retry it is handed out again after Backoff until MaxAttempts is reached;
	// else, or then, it is Dead with this reason. A lease that no longer holds is tartarus.Conflict.
	Fail(ctx context.Context, l Lease, reason string, retry bool) error

	// Cancel ends a waiting job as Cancelled; a leased one loses its lease. Ended ones are tartarus.Conflict, unknown ones tartarus.NotFound.
	Cancel(ctx context.Context, id string) error

	// Job returns a job as it stands, with its Position when it waits. Unknown is tartarus.NotFound.
	Job(ctx context.Context, id string) (Job, error)

	// Await blocks until the job has ended and returns it, or returns ctx's error.
	Await(ctx context.Context, id string) (Job, error)
}

// Operator is what a Queue offers to the people who run it.
type Operator interface {
	// List returns jobs in a state, at most limit, which is 1 to 10,000: open ones in the order they were enqueued,
	// ended ones in the order they ended.
	List(ctx context.Context, state State, limit int) ([]Job, error)
	// Requeue makes a dead job wait again with its attempts reset, and without its deadline if that has passed: for node, or for the one it
	// waited for when node is empty, in the place that its age gives it. Another state is tartarus.Conflict, unknown tartarus.NotFound.
	Requeue(ctx context.Context, id, node string) error
	// Purge forgets ended jobs that ended before t and says how many.
	Purge(ctx context.Context, before time.Time) (int, error)
}

// Keyed is what a Queue offers to who comes again with an idempotency key and has nothing to enqueue.
type Keyed interface {
	// ByKey returns the job that has a tenant's key. None, and the empty key, are tartarus.NotFound.
	ByKey(ctx context.Context, tenant, key string) (Job, error)
}

// The kinds of job.
const (
	Create = "create" // start a new sandbox
	Resume = "resume" // bring a paused one back
)

// Job is a piece of work for one node.
type Job struct {
	ID          string    `json:"id"`
	Tenant      string    `json:"tenant"`
	Node        string    `json:"node"` // the node it was placed on
	Kind        string    `json:"kind"` // Create or Resume
	Payload     []byte    `json:"payload,omitempty"`
	Key         string    `json:"key,omitempty"`    // idempotency key, unique per tenant
	Digest      string    `json:"digest,omitempty"` // of the request that came with Key
	MaxAttempts int       `json:"maxAttempts"`      // at least 1
	Deadline    time.Time `json:"deadline"`         // no start after this

	// The queue's own fields; ignored by Enqueue.
	State      State     `json:"state"`
	Attempt    int       `json:"attempt"`
	Token      int64     `json:"token"` // the newest fencing token
	Position   int       `json:"position,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	Result     []byte    `json:"result,omitempty"`
	EnqueuedAt time.Time `json:"enqueuedAt"`
	EndedAt    time.Time `json:"endedAt,omitzero"`
}

// State is where a job stands.
type State string

// The states. Waiting and Leased follow one another until one of the others ends the job.
const (
	Waiting   State = "waiting"
	Leased    State = "leased"
	Done      State = "done"
	Dead      State = "dead"
	Cancelled State = "cancelled"
)

// Ended reports whether nothing follows s.
func (s State) Ended() bool { return s == Done || s == Dead || s == Cancelled }

// Lease is the right to work on a job until it runs out.
type Lease struct {
	Job   Job
	Token int64
	// Until is the holder's own end of trust: a tenth of the ttl before the store's, so that the holder stops first.
	Until time.Time
	// Proof is for a queue that is reached over a network: what the holder shows when it speaks of the lease. Stores leave it alone.
	Proof []byte `json:",omitempty"`
}
