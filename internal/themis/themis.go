// Package themis keeps and evaluates policies. A policy is a versioned document: every change makes a new
// version by compare-and-set, and no version is ever changed or lost.
//
// Implementations of Store live in internal/store and pass storetest.Policies.
package themis

import (
	"context"
	"time"
)

// Store keeps policy documents with all their versions. All methods may be called concurrently; what a method has acknowledged survives a crash.
type Store interface {
	// Put stores body as the next version after expect (0: the document does not exist or was removed) and returns it.
	// Another current version is tartarus.Conflict.
	Put(ctx context.Context, name string, body []byte, author string, expect int64) (Document, error)

	// Get returns a version, or the current one for version 0. Absent or removed is tartarus.NotFound; an old version of a removed document is still there.
	// The version that a removal made has no body to get and is tartarus.NotFound; History shows it.
	Get(ctx context.Context, name string, version int64) (Document, error)

	// List returns the current version of every document, by name.
	List(ctx context.Context) ([]Document, error)

	// History returns all versions of a document, newest first; none is tartarus.NotFound.
	History(ctx context.Context, name string) ([]Document, error)

	// Remove takes the current version away as a new version with an empty body. Another current version than expect is tartarus.Conflict,
	// absent or removed already is tartarus.NotFound.
	Remove(ctx context.Context, name, author string, expect int64) error

	// Revision is a number that grows with every change to any document.
	Revision(ctx context.Context) (int64, error)
}

// Document is one version of a policy.
type Document struct {
	Name      string    `json:"name"`
	Version   int64     `json:"version"` // 1, 2, 3 ... per name, never used twice
	Body      []byte    `json:"body"`
	Author    string    `json:"author"` // id of the key that wrote it
	CreatedAt time.Time `json:"createdAt"`
	Removed   bool      `json:"removed,omitempty"`
}
