package snapshot

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// collectAge is how old a chunk without a reference must be before it is removed: an upload under way has chunks there before its manifest. No upload
// takes a day.
const collectAge = 24 * time.Hour

// removeCopy takes the manifest of a snapshot out of the object store. Its chunks go with the next collection, unless others have them.
func (s *Store) removeCopy(ctx context.Context, id string) (found bool, err error) {
	if s.cfg.Blobs == nil || !tartarus.ValidID(id) {
		return false, nil
	}
	for _, kind := range []Kind{Named, Sandbox} {
		name := manifestBlob(kind, id)
		if _, err := s.cfg.Blobs.Head(ctx, name); tartarus.Is(err, tartarus.NotFound) {
			continue
		} else if err != nil {
			return found, fmt.Errorf("remove copy of snapshot %s: %w", id, err)
		}
		if err := s.cfg.Blobs.Delete(ctx, name); err != nil {
			return found, fmt.Errorf("remove copy of snapshot %s: %w", id, err)
		}
		found = true
	}
	return found, nil
}

// removeStrays takes out copies of paused sandboxes that this node made and does not know any more: the object store was away when they came back, or this
// node was killed meanwhile.
func (s *Store) removeStrays(ctx context.Context) error {
	copies, err := s.Copies(ctx, Sandbox)
	if err != nil {
		return err
	}
	for _, m := range copies {
		if m.Node != s.cfg.Node || !s.doomed(m.ID) {
			continue
		}
		if _, err := s.removeCopy(ctx, m.ID); err != nil {
			return err
		}
	}
	return nil
}

// Copies reads the manifests of one kind that the object store has. One that is damaged is left out and logged.
func (s *Store) Copies(ctx context.Context, kind Kind) ([]Manifest, error) {
	if s.cfg.Blobs == nil {
		return nil, nil
	}
	var ids []string
	prefix := manifestPrefix + string(kind) + "/"
	err := s.cfg.Blobs.List(ctx, prefix, func(b Blob) error {
		id, ok := strings.CutSuffix(strings.TrimPrefix(b.Name, prefix), ".json")
		if ok && tartarus.ValidID(id) {
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	out := make([]Manifest, 0, len(ids))
	for _, id := range ids {
		m, err := s.copied(ctx, id)
		switch {
		case tartarus.Is(err, tartarus.NotFound): // removed meanwhile
		case tartarus.Is(err, tartarus.Corrupt):
			s.log.Warn("copied snapshot is damaged", "snapshot", id, "error", err)
		case err != nil:
			return nil, err
		default:
			out = append(out, m)
		}
	}
	slices.SortFunc(out, newestFirst)
	return out, nil
}

// Collect removes chunks that no manifest in the object store speaks of and that are older than a day, and returns how many bytes they took. Any number of
// nodes may collect, copy and remove at the same time.
func (s *Store) Collect(ctx context.Context, now time.Time) (freed int64, err error) {
	if s.cfg.Blobs == nil {
		return 0, nil
	}
	// Chunks first: one that appears later is not looked at, and its manifest may be too new to be seen.
	var old []Blob
	if err := s.cfg.Blobs.List(ctx, chunkPrefix, func(b Blob) error {
		if now.Sub(b.Modified) > collectAge {
			old = append(old, b)
		}
		return nil
	}); err != nil {
		return 0, fmt.Errorf("collect chunks: %w", err)
	}
	if len(old) == 0 {
		return 0, nil
	}
	wanted, err := s.referenced(ctx)
	if err != nil {
		return 0, fmt.Errorf("collect chunks: %w", err)
	}
	for _, b := range old {
		if wanted[b.Name] {
			continue
		}
		// An upload that found it there has refreshed it.
		fresh, err := s.cfg.Blobs.Head(ctx, b.Name)
		if tartarus.Is(err, tartarus.NotFound) || err == nil && now.Sub(fresh.Modified) <= collectAge {
			continue
		}
		if err == nil {
			err = s.cfg.Blobs.Delete(ctx, b.Name)
		}
		if err != nil {
			return freed, fmt.Errorf("collect chunks: %w", err)
		}
		freed += b.Size
	}
	return freed, nil
}

// referenced names the blobs of all chunks that manifests speak of. A manifest that cannot be read stops the collection: it may refer to anything.
func (s *Store) referenced(ctx context.Context) (map[string]bool, error) {
	out := map[string]bool{}
	err := s.cfg.Blobs.List(ctx, manifestPrefix, func(b Blob) error {
		id, ok := strings.CutSuffix(b.Name[strings.LastIndexByte(b.Name, '/')+1:], ".json")
		if !ok {
			return nil
		}
		raw, err := s.blob(ctx, b.Name, manifestMost)
		if tartarus.Is(err, tartarus.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		m, err := decodeManifest(id, raw)
		if err != nil {
			return err
		}
		for _, sum := range m.sums() {
			out[chunkName(sum)] = true
		}
		return nil
	})
	return out, err
}
