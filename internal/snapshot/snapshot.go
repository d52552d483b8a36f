// Package snapshot keeps what sandboxes and templates are restored from: folders of files as a runtime wrote them, each
// with a manifest that says what they are, for whom and on what they fit. A manifest is written last and under a temporary
// name, so what can be opened is whole and durable; what a snapshot stands for never changes afterwards, it only becomes better known: its chunks
// get their digests, its names may move, a copy of it may come to stand in an object store, and one that holds only the changes to another is
// made whole.
//
//	<dir>/ID/manifest.json   what it is
//	<dir>/ID/files/          the runtime's files, restored from where they are
//	<dir>/tmp/               snapshots being written or fetched; emptied at the next start
package snapshot

import (
	"path/filepath"
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Kind says what a snapshot is kept for, and with that who removes it.
type Kind string

// The kinds.
const (
	Sandbox  Kind = "sandbox"  // a paused sandbox; its node removes it when the sandbox runs again or ends
	Named    Kind = "snapshot" // taken on demand, to make sandboxes from; its tenant removes it
	Evidence Kind = "evidence" // of a sandbox in quarantine; goes with the quarantine, and is never copied away from its node
	Template Kind = "template" // a booted template; its node removes it when the template changes
)

// Meta is what is known of a snapshot before it is taken.
type Meta struct {
	ID       string             `json:"id"` // empty: one is made
	Kind     Kind               `json:"kind"`
	Tenant   string             `json:"tenant,omitempty"`
	Node     string             `json:"node,omitempty"`    // that took it; the store fills it in
	Sandbox  string             `json:"sandbox,omitempty"` // whose state it is
	Names    []string           `json:"names,omitempty"`   // name:tag; a name means one snapshot of a tenant
	Runtime  string             `json:"runtime"`
	Version  string             `json:"version"` // of the virtual machine monitor; another one cannot restore it
	CPU      string             `json:"cpu,omitempty"`
	Disk     bool               `json:"disk,omitempty"` // only the writable layer, to be booted from
	Base     BaseImage          `json:"base"`
	Limits   tartarus.Resources `json:"resources"`
	Created  time.Time          `json:"createdAt"`          // empty: now
	Unwell   bool               `json:"unwell,omitempty"`   // the guest agent did not answer when it was taken
	Scratch  bool               `json:"scratch,omitempty"`  // for clones made at once: not synced, not listed, gone after a restart
	Template string             `json:"template,omitempty"` // the name that the sandbox's template was asked by
	Lifetime time.Duration      `json:"lifetime,omitempty"` // of the sandbox, as it was asked for
	Parent   string             `json:"parent,omitempty"`   // id of the snapshot to which this one holds only the changes; that one stays as long as this
	Extra    map[string]string  `json:"extra,omitempty"`    // the owner's own
}

// BaseImage is the template that a snapshot stands on.
type BaseImage struct {
	TemplateID string `json:"templateID"`
	BuildID    string `json:"buildID"`
	Digest     string `json:"digest,omitempty"` // of its image
}

// Manifest describes a whole snapshot.
type Manifest struct {
	Format int `json:"format"`
	Meta
	Files  []File `json:"files"`
	Stored int64  `json:"stored"` // bytes that it takes on disk
	// Away names the files that are in the object store alone: here they are read as they are used. Nothing in the store itself has such.
	Away []string `json:"away,omitempty"`
	// Hashed is set once all chunks have digests. Until then the files are told apart by name and size only, and by what checks the runtime has of its own.
	Hashed bool `json:"hashed"`
}

// File is one file of a snapshot.
type File struct {
	Name   string  `json:"name"`
	Size   int64   `json:"size"`
	Chunks []Chunk `json:"chunks,omitempty"`
}

// Chunk is a part of a file, of ChunkSize or what is left of it.
type Chunk struct {
	Sum  string `json:"sha256,omitempty"` // of its bytes, in hex; empty for one that is a hole
	Size int64  `json:"size"`
}

// ChunkSize balances how much two snapshots share against how many requests an object store gets: a sandbox of 64 MB is 16 of them.
const ChunkSize = 4 << 20

// Snapshot is one that is on this machine.
type Snapshot struct {
	Manifest
	dir string
}

// Dir is the folder of the runtime's files.
func (s Snapshot) Dir() string { return filepath.Join(s.dir, "files") }

// HoldPath is a name beside the snapshot, under which its owner may keep the image that it stands on for as long as the snapshot is there.
func (s Snapshot) HoldPath() string { return filepath.Join(s.dir, "base") }

// Size is how many bytes its files hold.
func (m Manifest) Size() (n int64) {
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// sums lists the digests of the manifest's chunks, each once.
func (m Manifest) sums() []string {
	var out []string
	for _, f := range m.Files {
		for _, c := range f.Chunks {
			if c.Sum != "" {
				out = append(out, c.Sum)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// check refuses metadata that no snapshot can have.
func (m Meta) check() error {
	switch {
	case m.ID != "" && !tartarus.ValidID(m.ID):
		return tartarus.Errorf(tartarus.Invalid, "%.40q cannot be a snapshot's id", m.ID)
	case m.Kind != Sandbox && m.Kind != Named && m.Kind != Evidence && m.Kind != Template:
		return tartarus.Errorf(tartarus.Invalid, "a snapshot cannot be of the kind %q", m.Kind)
	case m.Runtime == "":
		return tartarus.Errorf(tartarus.Invalid, "a snapshot needs the runtime that made it")
	}
	return nil
}
