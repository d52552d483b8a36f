package tartarus

import "time"

// PauseHow says how a sandbox is paused.
type PauseHow struct {
	Healthy bool // refuse when the guest agent does not answer
	Disk    bool // keep the files only; it boots anew when it comes back. Needs a guest agent that answers
}

// Resume is the work of bringing a paused sandbox back.
type Resume struct {
	ID      string        `json:"id"`
	Tenant  string        `json:"tenant"`
	Timeout time.Duration `json:"timeout"`
	Reboot  bool          `json:"reboot,omitempty"` // from its disk alone, whatever was kept
	Move    *Move         `json:"move,omitempty"`   // it comes from another node
}

// Move is a sandbox on its way from one node to another.
type Move struct {
	Sandbox  Sandbox       `json:"sandbox"`
	Snapshot string        `json:"snapshot"` // that the object store has
	Running  bool          `json:"running"`  // it ran, and shall again
	Timeout  time.Duration `json:"timeout"`  // that it had left
}

// SnapshotHow says what kind of snapshot is taken of a running sandbox.
type SnapshotHow struct {
	Names   []string // name:tag, which other snapshots of the tenant lose
	Disk    bool     // the files only
	Scratch bool     // for clones made at once: whoever asked removes it, at the latest the node does
}

// Snapshot is what sandboxes can be made from besides templates.
type Snapshot struct {
	ID         string
	Tenant     string
	SandboxID  string   // of which it was taken
	Names      []string // name:tag
	Node       string   // that has it; empty when only the object store does
	Copied     bool     // the object store has it, so that any node can use it
	TemplateID string   // on which it stands
	BuildID    string
	Template   string // the name that the sandbox's template was asked by
	Runtime    string
	Version    string // of the runtime
	CPU        string // model on which it was taken
	Disk       bool
	Resources  Resources
	Size       int64 // bytes of its files
	Stored     int64 // bytes that they take on disk
	CreatedAt  time.Time
	Progress   CopyProgress
}

// CopyProgress says how far the copy of a snapshot into the object store is.
type CopyProgress struct {
	State string // local, hashing, copying, copied or failed
	Done  int64  // bytes that are there
	Total int64
	Error string
}

// SnapshotQuery says which snapshots are asked for. Empty fields do not restrict.
type SnapshotQuery struct {
	Tenant    string
	ID        string
	SandboxID string
	Name      string // with or without :tag
}
