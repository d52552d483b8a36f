package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// packedMost bounds what is read as a packed chunk: zstd adds less than 1 % and a header to what it cannot pack.
const packedMost = ChunkSize + ChunkSize/64 + 1024

// Get holds a snapshot for somebody who restores from it: the one on this machine, else a copy fetched from the object store. Whatever was
// fetched has been compared with its digests. The release must be called once.
func (s *Store) Get(ctx context.Context, id string) (Snapshot, func(), error) {
	return s.GetWithout(ctx, id, nil)
}

// GetWithout is Get, but leaves files with these names in the object store where they are there alone and can be linked to: see Links. One that is needed
// whole later is completed by then.
func (s *Store) GetWithout(ctx context.Context, id string, without []string) (Snapshot, func(), error) {
	if _, ok := s.cfg.Blobs.(Linker); !ok {
		without = nil
	}
	snap, release, err := s.Hold(id)
	if err == nil && len(snap.Away) > 0 {
		release()
		if snap, release, err = s.getAway(ctx, snap, without); err == nil {
			return snap, release, nil
		}
	}
	if !tartarus.Is(err, tartarus.NotFound) || s.cfg.Blobs == nil || !tartarus.ValidID(id) {
		return snap, release, err
	}
	if err := s.fetch(ctx, id, without); err != nil {
		return Snapshot{}, nil, fmt.Errorf("fetch snapshot %s: %w", id, err)
	}
	return s.Hold(id)
}

// getAway holds a snapshot that is partly in the object store, which must still have it; what is not to be left there is fetched.
func (s *Store) getAway(ctx context.Context, snap Snapshot, without []string) (Snapshot, func(), error) {
	_, err := s.cfg.Blobs.Head(ctx, manifestBlob(snap.Kind, snap.ID))
	if tartarus.Is(err, tartarus.NotFound) { // somebody removed it
		return Snapshot{}, nil, errors.Join(err, s.Leave(snap.ID))
	}
	if err != nil {
		return Snapshot{}, nil, fmt.Errorf("look for snapshot %s: %w", snap.ID, err)
	}
	if slices.ContainsFunc(snap.Away, func(name string) bool { return !slices.Contains(without, name) }) {
		if err := s.replace(ctx, snap.ID); err != nil {
			return Snapshot{}, nil, fmt.Errorf("complete snapshot %s: %w", snap.ID, err)
		}
	}
	return s.Hold(snap.ID)
}

// fetch copies a snapshot from the object store, but for the files that may stay there. Of two at once the second finds the first one's.
func (s *Store) fetch(ctx context.Context, id string, without []string) error {
	m, err := s.copied(ctx, id)
	if err != nil {
		return err
	}
	if m.Kind == Sandbox { // it has moved here, with all that it is
		m.Node = s.cfg.Node
		without = nil
	}
	for _, f := range m.Files {
		if slices.Contains(without, f.Name) {
			m.Away = append(m.Away, f.Name)
		}
	}
	tmp, err := os.MkdirTemp(s.tmp(), id+"-")
	if err != nil {
		return err
	}
	err = s.download(ctx, m, filepath.Join(tmp, "files"))
	if err == nil && len(m.Away) > 0 {
		_, m.Stored, err = survey(filepath.Join(tmp, "files"))
	}
	if err == nil {
		_, err = s.place(m, tmp)
	}
	if err != nil {
		if rmErr := os.RemoveAll(tmp); rmErr != nil {
			return errors.Join(err, rmErr)
		}
		if tartarus.Is(err, tartarus.Conflict) {
			return nil
		}
		return err
	}
	s.note(id, func(p *Progress) { *p = Progress{State: StateCopied, Done: m.held(), Total: m.held()} })
	return nil
}

// Mend replaces a snapshot that is damaged on this machine by its copy in the object store. Without one it is tartarus.NotFound. Those who read the
// damaged files go on doing so.
func (s *Store) Mend(ctx context.Context, id string) error {
	if s.cfg.Blobs == nil {
		return tartarus.Errorf(tartarus.NotFound, "there is no copy of snapshot %s", id)
	}
	if err := s.replace(ctx, id); err != nil {
		return fmt.Errorf("mend snapshot %s: %w", id, err)
	}
	s.log.Warn("damaged snapshot replaced by its copy", "snapshot", id)
	return nil
}

// replace puts the copy of a snapshot in the place of what is here.
func (s *Store) replace(ctx context.Context, id string) error {
	s.mu.Lock()
	e, ok := s.known[id]
	s.mu.Unlock()
	if !ok {
		return tartarus.Errorf(tartarus.NotFound, "snapshot %.40q is not on this node", id)
	}
	m, err := s.copied(ctx, id)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(s.tmp(), id+"-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }() // what stays goes with the next start
	fresh := filepath.Join(tmp, "new")
	err = os.Mkdir(fresh, 0o700)
	if err == nil {
		err = s.download(ctx, m, filepath.Join(fresh, "files"))
	}
	if err == nil {
		err = writeManifest(fresh, m)
	}
	if err == nil {
		err = s.swap(e, m, fresh, filepath.Join(tmp, "old"))
	}
	return err
}

// swap puts a fresh folder in the place of a damaged one, with the image that the latter held.
func (s *Store) swap(e *entry, m Manifest, fresh, old string) error {
	e.writing.Lock()
	defer e.writing.Unlock()
	if s.doomed(m.ID) {
		return tartarus.Errorf(tartarus.NotFound, "snapshot %s was removed", m.ID)
	}
	final := filepath.Join(s.cfg.Dir, m.ID)
	if err := os.Link(filepath.Join(final, "base"), filepath.Join(fresh, "base")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := trade(fresh, final, old); err != nil {
		return err
	}
	s.mu.Lock()
	parent := e.snap.Parent
	e.snap.Manifest = m
	s.mu.Unlock()
	if m.Parent == "" {
		s.letGoOf(parent)
	}
	return syncPath(s.cfg.Dir)
}

// trade puts fresh in the place of final, in one step, so that a crash leaves the one or the other; where the file system knows no such step, in two.
func trade(fresh, final, old string) error {
	err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, final, unix.RENAME_EXCHANGE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if err := os.Rename(final, old); err != nil {
		return err
	}
	if err := os.Rename(fresh, final); err != nil {
		return errors.Join(err, os.Rename(old, final))
	}
	return nil
}

// copied reads a manifest from the object store.
func (s *Store) copied(ctx context.Context, id string) (Manifest, error) {
	for _, kind := range []Kind{Named, Sandbox} {
		b, err := s.blob(ctx, manifestBlob(kind, id), manifestMost)
		if tartarus.Is(err, tartarus.NotFound) {
			continue
		}
		if err != nil {
			return Manifest{}, err
		}
		m, err := decodeManifest(id, b)
		if err == nil && (len(m.Away) > 0 || m.Parent != "") {
			err = tartarus.Errorf(tartarus.Corrupt, "the copy of snapshot %s is not whole", id)
		}
		if err == nil && !m.Hashed {
			err = tartarus.Errorf(tartarus.Corrupt, "manifest of snapshot %s has no digests", id)
		}
		return m, err
	}
	return Manifest{}, tartarus.Errorf(tartarus.NotFound, "snapshot %s not found", id)
}

// blob reads a whole blob of at most so many bytes.
func (s *Store) blob(ctx context.Context, name string, most int64) ([]byte, error) {
	r, err := s.cfg.Blobs.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(b)) > most {
		return nil, tartarus.Errorf(tartarus.Corrupt, "%s is longer than anything stored there", name)
	}
	return b, nil
}

// download writes the files of a manifest, each chunk once its digest is right, and makes them durable.
func (s *Store) download(ctx context.Context, m Manifest, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, file := range m.Files {
		if slices.Contains(m.Away, file.Name) {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, file.Name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		defer f.Close()
		if err := f.Truncate(file.Size); err != nil { // holes stay holes
			return errors.Join(err, g.Wait())
		}
		at := int64(0)
		for i, c := range file.Chunks {
			from := at
			at += c.Size
			if c.Sum == "" {
				continue
			}
			g.Go(func() error {
				if err := s.downloadChunk(gctx, f, from, c); err != nil {
					return fmt.Errorf("chunk %d of %s: %w", i, file.Name, err)
				}
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return syncFolder(ctx, dir)
}

func (s *Store) downloadChunk(ctx context.Context, f io.WriterAt, at int64, c Chunk) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	packed, err := s.blob(ctx, chunkName(c.Sum), packedMost)
	if tartarus.Is(err, tartarus.NotFound) {
		return tartarus.Errorf(tartarus.Corrupt, "it is missing from the object store")
	}
	if err != nil {
		return err
	}
	dec, err := decoder()
	if err != nil {
		return err
	}
	b, _ := pool.Get().(*buffers)
	defer pool.Put(b)
	plain, err := dec.DecodeAll(packed, b.plain[:0])
	if err != nil {
		return tartarus.Errorf(tartarus.Corrupt, "it cannot be unpacked: %w", err)
	}
	if int64(len(plain)) != c.Size || digest(plain) != c.Sum {
		return tartarus.Errorf(tartarus.Corrupt, "it is not what was stored")
	}
	_, err = f.WriteAt(plain, at)
	return err
}
