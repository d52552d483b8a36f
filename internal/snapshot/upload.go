package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
)

// Where things are in the object store. A chunk is there once, whoever has it; a manifest only when all its chunks are.
const (
	chunkPrefix    = "chunks/"
	manifestPrefix = "snapshots/"
)

func chunkName(sum string) string { return chunkPrefix + sum[:2] + "/" + sum }

func manifestBlob(kind Kind, id string) string {
	return manifestPrefix + string(kind) + "/" + id + ".json"
}

const (
	// queued bounds the list of snapshots whose digests or copies are wanted at once; what does not fit in is found by the next look.
	queued = 1024
	// lookEvery is how often Run looks for what was left undone: a full queue, an object store that was away.
	lookEvery = time.Minute
	// settleTime is how long a paused sandbox must have slept before its digests are made: whoever comes back at once would find the processor
	// busy with them, and they would be for nothing.
	settleTime = 20 * time.Second
	// scratchAge is how long a snapshot for clones made at once may lie about when whoever asked for it has not removed it: a start takes a
	// minute at most.
	scratchAge = 15 * time.Minute
	// collectEvery is how often Run looks through the object store for what nobody speaks of.
	collectEvery = time.Hour
	// parallel is how many chunks are on their way at once. Each takes two buffers of a chunk.
	parallel = 4
	// refreshAge is when a chunk that is already there is stored again, so that a collection that has just found it without a reference does
	// not take it away. It is well under collectAge.
	refreshAge = 6 * time.Hour
)

// Progress says how far a snapshot's copy is.
type Progress struct {
	State string `json:"state"` // local, hashing, copying, copied or failed
	Done  int64  `json:"done"`  // bytes of chunks that the object store has
	Total int64  `json:"total"`
	Sent  int64  `json:"sent"` // bytes that went over the wire, compressed
	Error string `json:"error,omitempty"`
}

// The states of Progress.
const (
	StateLocal   = "local"
	StateHashing = "hashing"
	StateCopying = "copying"
	StateCopied  = "copied"
	StateFailed  = "failed"
)

// Progress returns how far the copy of a snapshot is.
func (s *Store) Progress(id string) Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.known[id]; ok && e.progress.State != "" {
		return e.progress
	}
	return Progress{State: StateLocal}
}

func (s *Store) note(id string, f func(*Progress)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.known[id]; ok {
		f(&e.progress)
	}
}

// want asks Run to look at a snapshot soon.
func (s *Store) want(id string) {
	select {
	case s.todo <- id:
	default:
	}
}

// Run completes snapshots in the background: digests, and copies where there is an object store. It returns nil when ctx ends; what was
// under way is taken up by the next Run, which sends only what is not there yet.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	s.wantAll()
	collected := time.Time{}
	for {
		if now := time.Now(); now.Sub(collected) > collectEvery && len(s.todo) == 0 && len(s.gone) == 0 {
			collected = now
			s.tidy(ctx, now)
		}
		select {
		case <-ctx.Done():
			return nil
		case id := <-s.gone:
			if _, err := s.removeCopy(ctx, id); err != nil && ctx.Err() == nil {
				s.log.Warn("copy of a snapshot not removed yet", "snapshot", id, "error", err)
			}
		case id := <-s.todo:
			if err := s.complete(ctx, id); err != nil && ctx.Err() == nil && !tartarus.Is(err, tartarus.NotFound) {
				s.note(id, func(p *Progress) { p.State, p.Error = StateFailed, err.Error() })
				s.log.Warn("snapshot not copied", "snapshot", id, "error", err)
			}
		case now := <-tick.C:
			s.wantAll()
			s.sweepScratch(ctx, now)
		}
	}
}

// tidy takes out of the object store what this node left there, and chunks that nobody speaks of.
func (s *Store) tidy(ctx context.Context, now time.Time) {
	if s.cfg.Blobs == nil {
		return
	}
	err := s.removeStrays(ctx)
	freed := int64(0)
	if err == nil {
		freed, err = s.Collect(ctx, now)
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("object store not tidied", "error", err)
	}
	if freed > 0 {
		s.log.Info("object store tidied", "freed", freed)
	}
}

// sweepScratch removes snapshots for clones whose makers are gone.
func (s *Store) sweepScratch(ctx context.Context, now time.Time) {
	s.mu.Lock()
	var old []string
	for id, e := range s.known {
		if e.snap.Scratch && !e.doomed && now.Sub(e.snap.Created) > scratchAge {
			old = append(old, id)
		}
	}
	s.mu.Unlock()
	for _, id := range old {
		if err := s.Remove(ctx, id); err != nil && !tartarus.Is(err, tartarus.NotFound) {
			s.log.Warn("snapshot for clones not removed", "snapshot", id, "error", err)
		}
	}
}

func (s *Store) wantAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, e := range s.known {
		done := e.progress.State == StateCopied || s.cfg.Blobs == nil && e.snap.Hashed
		if !done && !e.doomed && !e.snap.Scratch {
			s.want(id)
		}
	}
}

// complete hashes and copies one snapshot.
func (s *Store) complete(ctx context.Context, id string) error {
	s.mu.Lock()
	e, ok := s.known[id]
	away := ok && len(e.snap.Away) > 0
	settles, used := time.Duration(0), false
	if ok && e.snap.Kind == Sandbox {
		settles, used = settleTime-time.Since(e.snap.Created), e.users > 0
	}
	s.mu.Unlock()
	if settles > 0 {
		time.AfterFunc(settles, func() { s.want(id) })
	}
	if settles > 0 || used {
		return nil // it is looked at again, unless it is gone by then: its sandbox runs again
	}
	if away { // it came from there
		s.note(id, func(p *Progress) { p.State = StateCopied })
		return nil
	}
	if err := s.Flatten(ctx, id); tartarus.Is(err, tartarus.Unavailable) {
		return nil // its sandbox is coming back
	} else if err != nil {
		return err
	}
	s.note(id, func(p *Progress) { p.State = StateHashing })
	snap, err := s.Hash(ctx, id)
	if err != nil {
		return err
	}
	if s.cfg.Blobs == nil || snap.Kind == Template {
		s.note(id, func(p *Progress) { p.State = StateLocal })
		return nil
	}
	return s.Upload(ctx, id)
}

// HasCopies reports whether there is an object store.
func (s *Store) HasCopies() bool { return s.cfg.Blobs != nil }

// Upload copies a snapshot into the object store. It sends only chunks that are not there, so that one that was interrupted goes on where it was. The
// local snapshot is read and otherwise left alone.
func (s *Store) Upload(ctx context.Context, id string) error {
	if s.cfg.Blobs == nil {
		return tartarus.Errorf(tartarus.Unsupported, "there is no object store")
	}
	if err := s.Flatten(ctx, id); err != nil {
		return err
	}
	if _, err := s.Hash(ctx, id); err != nil {
		return err
	}
	snap, release, err := s.Hold(id)
	if err != nil {
		return err
	}
	defer release()
	if len(snap.Away) > 0 {
		return nil
	}
	s.note(id, func(p *Progress) { *p = Progress{State: StateCopying, Total: snap.held()} })
	if err := s.uploadChunks(ctx, snap); err != nil {
		return fmt.Errorf("copy snapshot %s: %w", id, err)
	}
	if err := s.uploadManifest(ctx, id); err != nil {
		return fmt.Errorf("copy snapshot %s: %w", id, err)
	}
	s.note(id, func(p *Progress) { p.State, p.Error = StateCopied, "" })
	return nil
}

// held is how many bytes are in chunks that are no holes.
func (m Manifest) held() (n int64) {
	for _, f := range m.Files {
		for _, c := range f.Chunks {
			if c.Sum != "" {
				n += c.Size
			}
		}
	}
	return n
}

// uploadManifest writes the manifest as it is now, unless the snapshot was removed meanwhile.
func (s *Store) uploadManifest(ctx context.Context, id string) error {
	s.mu.Lock()
	e, ok := s.known[id]
	if !ok || e.doomed {
		s.mu.Unlock()
		return tartarus.Errorf(tartarus.NotFound, "snapshot %s was removed", id)
	}
	m := e.snap.Manifest
	s.mu.Unlock()
	b, err := m.encode()
	if err != nil {
		return err
	}
	if err := s.cfg.Blobs.Put(ctx, manifestBlob(m.Kind, id), bytes.NewReader(b)); err != nil {
		return err
	}
	s.mu.Lock()
	gone := s.known[id] != e || e.doomed
	s.mu.Unlock()
	if gone {
		_, err := s.removeCopy(context.WithoutCancel(ctx), id)
		return errors.Join(err, tartarus.Errorf(tartarus.NotFound, "snapshot %s was removed", id))
	}
	return nil
}

func (s *Store) uploadChunks(ctx context.Context, snap Snapshot) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	var sent atomic.Int64
	for _, file := range snap.Files {
		f, err := os.Open(filepath.Join(snap.Dir(), file.Name))
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		defer f.Close()
		at := int64(0)
		for i, c := range file.Chunks {
			from := at
			at += c.Size
			if c.Sum == "" {
				continue
			}
			g.Go(func() error {
				n, err := s.uploadChunk(ctx, f, from, c)
				if err != nil {
					return fmt.Errorf("chunk %d of %s: %w", i, file.Name, err)
				}
				total := sent.Add(n)
				s.note(snap.ID, func(p *Progress) { p.Done += c.Size; p.Sent = max(p.Sent, total) })
				return nil
			})
			if ctx.Err() != nil {
				break
			}
			if s.doomed(snap.ID) {
				return errors.Join(g.Wait(), tartarus.Errorf(tartarus.NotFound, "snapshot %s was removed", snap.ID))
			}
		}
	}
	return g.Wait()
}

// doomed reports whether a snapshot is about to go: then there is no use in copying the rest of it.
func (s *Store) doomed(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.known[id]
	return !ok || e.doomed
}

// buffers are reused from chunk to chunk: one for what is read, one for what it is packed into.
type buffers struct{ plain, packed []byte }

var (
	pool    = sync.Pool{New: func() any { return &buffers{plain: make([]byte, ChunkSize)} }}
	encoder = sync.OnceValues(func() (*zstd.Encoder, error) {
		return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(parallel), zstd.WithWindowSize(ChunkSize))
	})
	decoder = sync.OnceValues(func() (*zstd.Decoder, error) {
		// What comes from an object store is not trusted before its digest is known: no frame may unpack to more than a chunk.
		return zstd.NewReader(nil, zstd.WithDecoderConcurrency(parallel), zstd.WithDecoderMaxMemory(ChunkSize))
	})
)

// uploadChunk sends a chunk unless the store has it, and returns how many bytes went out.
func (s *Store) uploadChunk(ctx context.Context, f io.ReaderAt, at int64, c Chunk) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	there, err := s.cfg.Blobs.Head(ctx, chunkName(c.Sum))
	if err == nil && time.Since(there.Modified) < refreshAge {
		return 0, nil
	}
	if err != nil && !tartarus.Is(err, tartarus.NotFound) {
		return 0, err
	}
	b, _ := pool.Get().(*buffers)
	defer pool.Put(b)
	plain := b.plain[:c.Size]
	if _, err := io.ReadFull(io.NewSectionReader(f, at, c.Size), plain); err != nil {
		return 0, err
	}
	if digest(plain) != c.Sum {
		return 0, tartarus.Errorf(tartarus.Corrupt, "it is damaged on this machine")
	}
	enc, err := encoder()
	if err != nil {
		return 0, err
	}
	b.packed = enc.EncodeAll(plain, b.packed[:0])
	return int64(len(b.packed)), s.cfg.Blobs.Put(ctx, chunkName(c.Sum), bytes.NewReader(b.packed))
}
