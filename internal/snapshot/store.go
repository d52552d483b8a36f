package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// Config says where snapshots live.
type Config struct {
	Dir   string // this store's alone; made when absent
	Node  string // whose snapshots these are, in the object store
	Blobs Blobs  // where copies go; nil keeps everything on this machine
	// MaxBytes bounds what the snapshots of one tenant may take on disk; 0 sets no bound.
	MaxBytes int64
	// Merge makes one whole snapshot, in the empty folder dir, of a whole one and those that hold the changes to the one before. Nil: none holds changes only.
	Merge func(ctx context.Context, runtime string, chain []Layer, dir string) error
	Log   *slog.Logger
}

// Store keeps the snapshots of one node. All methods may be called concurrently.
type Store struct {
	cfg Config
	log *slog.Logger

	mu    sync.Mutex
	known map[string]*entry
	todo  chan string // ids whose digests or copies are wanted; see Run
	gone  chan string // ids whose copies are not wanted any more
}

// entry is a snapshot and those who use it.
type entry struct {
	snap     Snapshot
	users    int
	doomed   bool // removed as soon as nobody uses it
	progress Progress
	writing  sync.Mutex // of its manifest
	merging  sync.Mutex // one at a time makes it whole
	// reading is held, shared, by who reads its files, and alone by who exchanges them.
	reading sync.RWMutex
}

// New opens the snapshots in a folder. What was being written when an earlier process died is removed; damaged ones stay, and are named when they
// are opened.
func New(c Config) (*Store, error) {
	if c.Dir == "" {
		return nil, errors.New("open snapshots: no folder")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	c.Dir = dir
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: c, log: c.Log, known: map[string]*entry{}, todo: make(chan string, queued), gone: make(chan string, queued)}
	if err := errors.Join(os.RemoveAll(s.tmp()), os.MkdirAll(s.tmp(), 0o700)); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	found, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	for _, e := range found {
		if e.IsDir() && tartarus.ValidID(e.Name()) && e.Name() != "tmp" {
			if err := s.load(e.Name()); err != nil {
				return nil, err
			}
		}
	}
	s.holdParents()
	return s, nil
}

func (s *Store) tmp() string { return filepath.Join(s.cfg.Dir, "tmp") }

// load takes one folder up. A scratch snapshot has outlived those who wanted it.
func (s *Store) load(id string) error {
	dir := filepath.Join(s.cfg.Dir, id)
	m, err := readManifest(dir, id)
	switch {
	case tartarus.Is(err, tartarus.NotFound), err == nil && m.Scratch:
		return os.RemoveAll(dir)
	case err != nil:
		s.log.Error("snapshot cannot be read", "snapshot", id, "error", err)
		m = Manifest{Meta: Meta{ID: id}}
	}
	s.known[id] = &entry{snap: Snapshot{Manifest: m, dir: dir}}
	return nil
}

// Create takes a snapshot: write fills an empty folder with plain files. When it returns without an error the snapshot is durable and can be opened
// after a crash; when it fails nothing of it is left. A second one with the same id is tartarus.Conflict, one over the tenant's quota
// tartarus.Exhausted.
func (s *Store) Create(ctx context.Context, meta Meta, write func(dir string) error) (Snapshot, error) {
	if err := meta.check(); err != nil {
		return Snapshot{}, err
	}
	if meta.ID == "" {
		meta.ID = tartarus.NewTemplateID()
	}
	meta.Node = s.cfg.Node
	if meta.Created.IsZero() {
		meta.Created = time.Now().UTC().Truncate(time.Millisecond)
	}
	if err := s.room(meta, 0); err != nil {
		return Snapshot{}, err
	}
	tmp, err := os.MkdirTemp(s.tmp(), meta.ID+"-")
	if err != nil {
		return Snapshot{}, fmt.Errorf("make snapshot folder: %w", err)
	}
	snap, err := s.create(ctx, meta, tmp, write)
	if err != nil {
		return Snapshot{}, errors.Join(err, os.RemoveAll(tmp))
	}
	return snap, nil
}

func (s *Store) create(ctx context.Context, meta Meta, tmp string, write func(dir string) error) (Snapshot, error) {
	files := filepath.Join(tmp, "files")
	if err := os.Mkdir(files, 0o700); err != nil {
		return Snapshot{}, fmt.Errorf("make snapshot folder: %w", err)
	}
	if err := write(files); err != nil {
		return Snapshot{}, err
	}
	m := Manifest{Format: manifestFormat, Meta: meta}
	var err error
	if m.Files, m.Stored, err = survey(files); err != nil {
		return Snapshot{}, fmt.Errorf("look at snapshot %s: %w", meta.ID, err)
	}
	if err := s.room(meta, m.Stored); err != nil {
		return Snapshot{}, err
	}
	if !meta.Scratch {
		if err := syncFolder(ctx, files); err != nil {
			return Snapshot{}, fmt.Errorf("make snapshot %s durable: %w", meta.ID, err)
		}
	}
	return s.place(m, tmp)
}

// place writes the manifest and brings a folder under its final name.
func (s *Store) place(m Manifest, tmp string) (Snapshot, error) {
	if err := writeManifest(tmp, m); err != nil {
		return Snapshot{}, err
	}
	final := filepath.Join(s.cfg.Dir, m.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.known[m.ID]; there {
		return Snapshot{}, tartarus.Errorf(tartarus.Conflict, "snapshot %s exists", m.ID)
	}
	parent, err := s.parentOf(m)
	if err != nil {
		return Snapshot{}, err
	}
	if err := os.Rename(tmp, final); err != nil {
		return Snapshot{}, fmt.Errorf("place snapshot %s: %w", m.ID, err)
	}
	if !m.Scratch {
		if err := syncPath(s.cfg.Dir); err != nil {
			return Snapshot{}, errors.Join(fmt.Errorf("place snapshot %s: %w", m.ID, err), os.RemoveAll(final))
		}
	}
	e := &entry{snap: Snapshot{Manifest: m, dir: final}}
	s.known[m.ID] = e
	if parent != nil {
		parent.users++
	}
	if !m.Scratch {
		s.want(m.ID)
	}
	return e.snap, nil
}

// survey lists the files of a snapshot and what they take on disk.
func survey(dir string) ([]File, int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, 0, err
	}
	var (
		files  []File
		stored int64
	)
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, e.Name()), &st); err != nil {
			return nil, 0, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil, 0, fmt.Errorf("%s is not a plain file", e.Name())
		}
		files = append(files, File{Name: e.Name(), Size: st.Size})
		stored += st.Blocks * 512 // stat(2): always of 512 bytes
	}
	return files, stored, nil
}

// syncFolder makes the files of a folder, and their names, durable.
func syncFolder(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := syncPath(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return syncPath(dir)
}

// Open finds a snapshot on this machine. A damaged manifest is tartarus.Corrupt, files that are missing or shorter than they were too.
func (s *Store) Open(id string) (Snapshot, error) {
	if !tartarus.ValidID(id) {
		return Snapshot{}, tartarus.Errorf(tartarus.NotFound, "snapshot %.40q is not on this node", id)
	}
	s.mu.Lock()
	e, ok := s.known[id]
	if ok && e.doomed {
		ok = false
	}
	s.mu.Unlock()
	if !ok {
		return Snapshot{}, tartarus.Errorf(tartarus.NotFound, "snapshot %s is not on this node", id)
	}
	return s.look(id)
}

// look reads a snapshot that is there, whether or not it is about to go.
func (s *Store) look(id string) (Snapshot, error) {
	m, err := readManifest(filepath.Join(s.cfg.Dir, id), id)
	if err != nil {
		return Snapshot{}, err
	}
	snap := Snapshot{Manifest: m, dir: filepath.Join(s.cfg.Dir, id)}
	for _, f := range m.Files {
		if slices.Contains(m.Away, f.Name) {
			continue
		}
		info, err := os.Lstat(filepath.Join(snap.Dir(), f.Name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return snap, tartarus.Errorf(tartarus.Corrupt, "snapshot %s has lost its file %s", id, f.Name)
		case err != nil:
			return snap, fmt.Errorf("open snapshot %s: %w", id, err)
		case info.Size() != f.Size:
			return snap, tartarus.Errorf(tartarus.Corrupt, "file %s of snapshot %s has %d bytes and should have %d", f.Name, id, info.Size(), f.Size)
		}
	}
	return snap, nil
}

// Hold opens a snapshot for somebody who reads it: it is not removed before the release, which must be called once.
func (s *Store) Hold(id string) (Snapshot, func(), error) {
	s.mu.Lock()
	e, ok := s.known[id]
	if !ok || e.doomed {
		s.mu.Unlock()
		return Snapshot{}, nil, tartarus.Errorf(tartarus.NotFound, "snapshot %.40q is not on this node", id)
	}
	e.users++
	s.mu.Unlock()
	e.reading.RLock()
	release := sync.OnceFunc(func() {
		e.reading.RUnlock()
		s.release(id, e)
	})
	snap, err := s.Open(id)
	if err != nil {
		release()
		return snap, nil, err
	}
	return snap, release, nil
}

func (s *Store) release(id string, e *entry) {
	s.mu.Lock()
	e.users--
	last := e.users == 0 && e.doomed
	s.mu.Unlock()
	if last {
		if err := s.unlink(id, e); err != nil {
			s.log.Error("snapshot not removed", "snapshot", id, "error", err)
		}
	}
}

// Remove takes a snapshot away from this machine and, when it was copied, from the object store. One that is in use goes as soon as it is not, and cannot
// be opened any more meanwhile. One that is not there is tartarus.NotFound. The copy of a paused sandbox goes later, by Run: nobody asks for it by
// name, and the sandbox must not wait for an object store that is away.
func (s *Store) Remove(ctx context.Context, id string) error {
	s.mu.Lock()
	e, ok := s.known[id]
	ok = ok && !e.doomed
	busy := ok && e.users > 0
	if ok {
		e.doomed = true
	}
	s.mu.Unlock()
	if ok && !busy {
		if err := s.unlink(id, e); err != nil {
			return err
		}
	}
	if ok && e.snap.Kind == Sandbox {
		if s.cfg.Blobs != nil {
			select {
			case s.gone <- id:
			default: // the next look finds it
			}
		}
		return nil
	}
	gone, err := s.removeCopy(ctx, id)
	if err != nil {
		return err
	}
	if !ok && !gone {
		return tartarus.Errorf(tartarus.NotFound, "snapshot %.40q not found", id)
	}
	return nil
}

// Leave takes a snapshot away from this machine and leaves its copy in the object store to whoever has it by now.
func (s *Store) Leave(id string) error {
	s.mu.Lock()
	e, ok := s.known[id]
	ok = ok && !e.doomed
	busy := ok && e.users > 0
	if ok {
		e.doomed = true
	}
	s.mu.Unlock()
	if !ok || busy { // whoever uses it removes it
		return nil
	}
	return s.unlink(id, e)
}

// unlink removes the folder of a doomed snapshot: out of the way first, so that a crash leaves all of it or nothing to see.
func (s *Store) unlink(id string, e *entry) error {
	e.writing.Lock() // nobody brings its manifest back
	defer e.writing.Unlock()
	trash, err := os.MkdirTemp(s.tmp(), id+"-")
	if err != nil {
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	err = os.Rename(filepath.Join(s.cfg.Dir, id), filepath.Join(trash, "old"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove snapshot %s: %w", id, errors.Join(err, os.Remove(trash)))
	}
	s.mu.Lock()
	ours := s.known[id] == e
	if ours {
		delete(s.known, id)
	}
	parent := e.snap.Parent
	s.mu.Unlock()
	if ours {
		s.letGoOf(parent)
	}
	if err := os.RemoveAll(trash); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	return nil
}

// Filter says which snapshots are asked for. Empty fields do not restrict.
type Filter struct {
	ID      string
	Tenant  string
	Kind    Kind
	Sandbox string
	Name    string // with or without :tag
}

// Matches reports whether a snapshot is asked for.
func (f Filter) Matches(m Meta) bool {
	return (f.ID == "" || f.ID == m.ID) && (f.Tenant == "" || f.Tenant == m.Tenant) && (f.Kind == "" || f.Kind == m.Kind) && (f.Sandbox == "" || f.Sandbox == m.Sandbox) &&
		(f.Name == "" || slices.ContainsFunc(m.Names, func(n string) bool {
			name, _, _ := strings.Cut(n, ":")
			return n == f.Name || name == f.Name
		}))
}

// List returns the snapshots on this machine, the newest first.
func (s *Store) List(f Filter) []Manifest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Manifest
	for _, e := range s.known {
		if !e.doomed && !e.snap.Scratch && f.Matches(e.snap.Meta) {
			out = append(out, e.snap.Manifest)
		}
	}
	slices.SortFunc(out, newestFirst)
	return out
}

func newestFirst(a, b Manifest) int {
	if c := b.Created.Compare(a.Created); c != 0 {
		return c
	}
	return strings.Compare(a.ID, b.ID)
}

// Usage is how many bytes the snapshots of a tenant take on this machine.
func (s *Store) Usage(tenant string) (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.known {
		if e.snap.Tenant == tenant {
			n += e.snap.Stored
		}
	}
	return n
}

// room refuses what goes over the tenant's quota. Templates belong to the machine.
func (s *Store) room(m Meta, size int64) error {
	if s.cfg.MaxBytes <= 0 || m.Kind == Template || m.Scratch {
		return nil
	}
	if used := s.Usage(m.Tenant); used+size > s.cfg.MaxBytes || used == s.cfg.MaxBytes {
		return tartarus.Errorf(tartarus.Exhausted, "snapshots may take %d MB, and with this one they would take %d MB; remove some", s.cfg.MaxBytes>>20, (used+size)>>20)
	}
	return nil
}

// Keep removes all snapshots of a kind whose id is not among those wanted: nobody speaks of them any more.
func (s *Store) Keep(ctx context.Context, kind Kind, wanted map[string]bool) error {
	s.mu.Lock()
	ids := slices.Collect(maps.Keys(s.known))
	s.mu.Unlock()
	var errs []error
	for _, id := range ids {
		s.mu.Lock()
		e := s.known[id]
		unwanted := e != nil && e.snap.Kind == kind && !wanted[id]
		s.mu.Unlock()
		if !unwanted {
			continue
		}
		if err := s.Remove(ctx, id); err != nil && !tartarus.Is(err, tartarus.NotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// change rewrites the manifest of a snapshot that is still there.
func (s *Store) change(id string, f func(*Manifest)) error {
	s.mu.Lock()
	e, ok := s.known[id]
	s.mu.Unlock()
	if !ok {
		return tartarus.Errorf(tartarus.NotFound, "snapshot %.40q is not on this node", id)
	}
	e.writing.Lock()
	defer e.writing.Unlock()
	s.mu.Lock()
	m, gone := e.snap.Manifest, s.known[id] != e
	s.mu.Unlock()
	if gone {
		return tartarus.Errorf(tartarus.NotFound, "snapshot %.40q is not on this node", id)
	}
	m.Names = slices.Clone(m.Names)
	f(&m)
	if err := writeManifest(e.snap.dir, m); err != nil {
		return err
	}
	s.mu.Lock()
	e.snap.Manifest = m
	s.mu.Unlock()
	return nil
}
