// Package shelf is the seam for small records that replicas share: tenants, heads and checkpoints of the audit log. Each record is
// changed by compare-and-set only, so that of two writers who saw the same state one learns that it lost.
//
// Implementations of Store live in internal/store and pass storetest.Shelf.
package shelf

import "context"

// Store keeps records in named shelves. All methods may be called concurrently; what a method has acknowledged survives a crash.
type Store interface {
	// Put stores body under a name and returns its new revision. expect is the revision that the record must have, 0 for one that
	// must not exist; another one is tartarus.Conflict. Shelf, name and body must not be empty (tartarus.Invalid).
	Put(ctx context.Context, shelf, name string, body []byte, expect int64) (int64, error)
	// Get returns a record; none is tartarus.NotFound.
	Get(ctx context.Context, shelf, name string) (Record, error)
	// List returns all records of a shelf by name, in the order of their bytes; none is an empty list.
	List(ctx context.Context, shelf string) ([]Record, error)
	// Remove forgets a record; absent is no error. Under its name a new record may begin, at revision 1.
	Remove(ctx context.Context, shelf, name string) error
}

// Record is one body under a name.
type Record struct {
	Name     string
	Revision int64 // 1 when it was new, and one more with each change
	Body     []byte
}
