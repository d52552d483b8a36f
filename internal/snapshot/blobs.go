package snapshot

import (
	"context"
	"io"
	"time"
)

// Blobs is an object store as snapshots need it: named byte strings that appear as a whole. Names are of a-z, 0-9, '-', '.' and '/', without
// empty or dotted parts, at most 512 bytes. All methods may be called concurrently, also by several processes.
type Blobs interface {
	// Put stores what r gives under name, replacing what was there. It appears only when all of it is stored and durable; when Put fails or
	// ctx ends, what was there before stays. It reads r once, to its end, with memory that does not grow with the length.
	Put(ctx context.Context, name string, r io.Reader) error

	// Get reads a blob. The caller closes it. A blob that is not there is tartarus.NotFound. What was stored damaged is noticed by the
	// implementation or by the caller's own digests; a read that ends early without an error does not happen.
	Get(ctx context.Context, name string) (io.ReadCloser, error)

	// Head describes a blob, or is tartarus.NotFound.
	Head(ctx context.Context, name string) (Blob, error)

	// Delete removes a blob. One that is not there is no error.
	Delete(ctx context.Context, name string) error

	// List calls each with every blob whose name starts with prefix, in the order of names, until each returns an error, which List returns.
	List(ctx context.Context, prefix string, each func(Blob) error) error
}

// Blob describes a stored byte string.
type Blob struct {
	Name     string
	Size     int64
	Modified time.Time
}
