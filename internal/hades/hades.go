// Package hades is the registry: which nodes there are and which sandbox is where. It is a copy
// for finding things; each sandbox's node is the truth about it, and a registry that lost everything
// is filled again from the nodes.
//
// Implementations live in internal/store and pass storetest.Registry.
package hades

import (
	"context"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// AnyTenant asks across tenants. Only the node reconciler, the edge (which proves access by token) and
// operators' requests use it; a tenant's own request always names the tenant.
const AnyTenant = "*"

// Registry keeps nodes and sandboxes. All methods may be called concurrently, and what a
// method has acknowledged survives a crash of the process.
type Registry interface {
	// PutSandbox stores sb if the stored revision is sb.Revision (0: not there yet), and returns the new
	// revision. A stored revision other than that is tartarus.Conflict, and nothing changes.
	PutSandbox(ctx context.Context, sb tartarus.Sandbox) (revision int64, err error)

	// Sandbox returns a sandbox of this tenant. Absent and another tenant's are both tartarus.NotFound.
	Sandbox(ctx context.Context, tenant, id string) (tartarus.Sandbox, error)

	// ListSandboxes returns one page, ordered by (StartedAt, ID) where StartedAt falls back to CreatedAt. Sandboxes that
	// do not change while pages are read are each listed once; one that starts meanwhile moves, and may be seen twice or not at all.
	ListSandboxes(ctx context.Context, q Query) (Page, error)

	// RemoveSandbox forgets a sandbox; absent is no error.
	RemoveSandbox(ctx context.Context, id string) error

	// PutNode registers a node or renews its lease for ttl from now.
	PutNode(ctx context.Context, n Node, ttl time.Duration) error

	// Nodes lists all nodes, also those whose lease has run out, by name.
	Nodes(ctx context.Context) ([]Node, error)

	// RemoveNode forgets a node; absent is no error.
	RemoveNode(ctx context.Context, name string) error
}

// Query selects sandboxes. Zero fields do not restrict, but Tenant is always needed.
type Query struct {
	Tenant       string
	Phases       []tartarus.Phase
	Node         string
	Template     string // id or name
	Metadata     map[string]string
	StartedAfter time.Time // by the time that orders the listing
	EndedBefore  time.Time // only sandboxes that began and ended before
	Ascending    bool      // default: newest first
	Limit        int       // 1..1000; 0 means 100
	After        Cursor    // continue behind this one
}

// Cursor is a place in a listing. The zero Cursor is its start.
type Cursor struct {
	StartedAt time.Time
	ID        string
}

// Page is one page of a listing.
type Page struct {
	Sandboxes []tartarus.Sandbox
	Next      Cursor // zero when this was the last
}

// Node is a machine that runs sandboxes.
type Node struct {
	Name      string             `json:"name"`
	Labels    map[string]string  `json:"labels,omitempty"`
	Runtimes  map[string]Runtime `json:"runtimes"`           // usable ones by name
	Capacity  tartarus.Resources `json:"capacity"`           // what it may hand out in all
	Allocated tartarus.Resources `json:"allocated"`          // what its sandboxes hold
	Sandboxes int                `json:"sandboxes"`          // how many it runs
	Most      int                `json:"most,omitempty"`     // how many it takes; 0 does not say
	Warm      map[string]int     `json:"warm,omitempty"`     // machines that wait, by the build of their template
	CPUModel  string             `json:"cpuModel,omitempty"` // snapshots of virtual machines are bound to it
	Cordoned  bool               `json:"cordoned,omitempty"` // takes nothing new
	Version   string             `json:"version"`
	Address   string             `json:"address,omitempty"`   // of its own listener for replicas of the control plane
	Templates []Template         `json:"templates,omitempty"` // what it can make sandboxes from; nil: everything there is
	LeaseEnds time.Time          `json:"leaseEnds"`           // set by the registry
}

// Template is one version of a template that a node has. ID and Build are the same on all nodes that have the same one.
type Template struct {
	ID        string    `json:"id"`
	Build     string    `json:"build"`
	Name      string    `json:"name"`
	Tags      []string  `json:"tags,omitempty"`
	VCPU      int       `json:"vcpu,omitempty"`
	MemoryMB  int64     `json:"memoryMB,omitempty"`
	DiskMB    int64     `json:"diskMB,omitempty"`
	CreatedAt time.Time `json:"createdAt"`

	// Where it comes from, for policies: its image's digest, what it was built from, and the ids of the keys that signed that.
	Digest   string   `json:"digest,omitempty"`
	Recipe   string   `json:"recipe,omitempty"`
	SignedBy []string `json:"signedBy,omitempty"`
}

// Runtime is what a node says of one of its drivers.
type Runtime struct {
	Tier    tartarus.Tier `json:"tier"`
	Version string        `json:"version,omitempty"`
}

// Live reports whether the node's lease holds at now.
func (n Node) Live(now time.Time) bool { return now.Before(n.LeaseEnds) }
