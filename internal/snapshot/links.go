package snapshot

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Linker is a Blobs whose blobs can be read by whoever has a link to them: without credentials, and for some time only.
type Linker interface {
	// Link makes a link to a blob, which need not be there, that works for d. It asks nobody. The link is a secret.
	Link(ctx context.Context, name string, d time.Duration) (string, error)
}

// linkTime is how long links work: what reads by them has read all within minutes, unless the store is away for days.
const linkTime = 7 * 24 * time.Hour // the longest that S3's signatures can (AWS Signature Version 4)

// Link is a part of a file that is in the object store: packed with zstd, and to be compared with its digest.
type Link struct {
	Chunk
	URL string // empty for one that is a hole
}

// Links says where the parts of a file are whose snapshot has its files in dir, and which is not there; tartarus.NotFound where that is not so.
func (s *Store) Links(ctx context.Context, dir, name string) ([]Link, error) {
	linker, ok := s.cfg.Blobs.(Linker)
	id := filepath.Base(filepath.Dir(dir))
	s.mu.Lock()
	e := s.known[id]
	var files []File
	if ok && e != nil && e.snap.Dir() == dir {
		files = e.snap.Files
	}
	s.mu.Unlock()
	for _, f := range files {
		if f.Name != name {
			continue
		}
		out := make([]Link, len(f.Chunks))
		for i, c := range f.Chunks {
			out[i].Chunk = c
			if c.Sum == "" {
				continue
			}
			var err error
			if out[i].URL, err = linker.Link(ctx, chunkName(c.Sum), linkTime); err != nil {
				return nil, fmt.Errorf("link to chunk %d of %s: %w", i, name, err)
			}
		}
		return out, nil
	}
	return nil, tartarus.Errorf(tartarus.NotFound, "file %s of %s is not in an object store", name, dir)
}
