package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/tartarus-sandbox/tartarus"
)

// Library is the folder that holds the trees of all volumes. Several servers may share it over a network file system.
type Library struct {
	dir   string
	quota int64

	mu   sync.Mutex
	open map[string]*shelf
	idle []string // ids of those in open that nobody uses now, the longest first
}

// maxIdle is how many trees stay open for who comes next: opening one means measuring it.
const maxIdle = 64

// shelf is a tree that is open, and by how many.
type shelf struct {
	once sync.Once
	tree *Tree
	err  error
	refs int
}

// OpenLibrary makes the folder where it is missing. quota is the bytes that each volume may hold.
func OpenLibrary(dir string, quota int64) (*Library, error) {
	if quota < 1 {
		return nil, tartarus.Errorf(tartarus.Invalid, "volumes need a quota of at least a byte, not %d", quota)
	}
	// What guests own in here is nobody's business on this host: only root passes.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	return &Library{dir: dir, quota: quota, open: map[string]*shelf{}}, nil
}

// gonePrefix begins the names of volumes that are being removed.
const gonePrefix = ".gone-"

func (l *Library) path(id string) (string, error) {
	if !ValidID(id) {
		return "", tartarus.Errorf(tartarus.NotFound, "there is no volume %.80q", id)
	}
	return filepath.Join(l.dir, id), nil
}

// Make makes the folder of a new volume. Any guest user may write at its root.
func (l *Library) Make(id string) error {
	dir, err := l.path(id)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make volume %s: %w", id, err)
	}
	return os.Chmod(dir, 0o777) // whatever the umask
}

// Remove removes a volume's files. Whoever has it open finds nothing in it any more.
func (l *Library) Remove(id string) error {
	dir, err := l.path(id)
	if err != nil {
		return err
	}
	// Out of the way first: a removal that is cut short must not leave half a volume under its name.
	old := filepath.Join(l.dir, gonePrefix+id)
	if err := os.Rename(dir, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove volume %s: %w", id, err)
	}
	l.mu.Lock()
	if s := l.open[id]; s != nil {
		if s.refs == 0 {
			s.close()
			l.idle = slices.DeleteFunc(l.idle, func(other string) bool { return other == id })
		}
		delete(l.open, id)
	}
	l.mu.Unlock()
	if err := os.RemoveAll(old); err != nil {
		return fmt.Errorf("remove volume %s: %w", id, err)
	}
	return nil
}

// Open opens a volume's tree until release is called; those that have it open share it. A volume without files is
// tartarus.NotFound.
func (l *Library) Open(id string) (tree *Tree, release func(), err error) {
	dir, err := l.path(id)
	if err != nil {
		return nil, nil, err
	}
	l.mu.Lock()
	s := l.open[id]
	if s == nil {
		s = &shelf{}
		l.open[id] = s
	}
	if s.refs++; s.refs == 1 {
		l.idle = slices.DeleteFunc(l.idle, func(other string) bool { return other == id })
	}
	l.mu.Unlock()
	s.once.Do(func() {
		if s.tree, s.err = openTree(dir, l.quota); errors.Is(s.err, fs.ErrNotExist) {
			s.err = tartarus.Errorf(tartarus.NotFound, "volume %s is gone", id)
		}
	})
	release = sync.OnceFunc(func() { l.leave(id, s) })
	if s.err != nil {
		release()
		return nil, nil, s.err
	}
	return s.tree, release, nil
}

// leave gives up one use of a tree. The last one leaves it open, unless it is gone or too many are.
func (l *Library) leave(id string, s *shelf) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.refs--; s.refs > 0 {
		return
	}
	if l.open[id] != s || s.tree == nil {
		if l.open[id] == s {
			delete(l.open, id)
		}
		s.close()
		return
	}
	l.idle = append(l.idle, id)
	if len(l.idle) > maxIdle {
		l.closeIdle(1)
	}
}

// closeIdle closes the first n of those that nobody uses. l.mu is held.
func (l *Library) closeIdle(n int) {
	for _, id := range l.idle[:n] {
		l.open[id].close()
		delete(l.open, id)
	}
	l.idle = slices.Delete(l.idle, 0, n)
}

// Close closes what nobody uses.
func (l *Library) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closeIdle(len(l.idle))
	return nil
}

func (s *shelf) close() {
	if s.tree != nil {
		_ = s.tree.close() // nothing was written through it that could be lost
	}
}

// Sweep removes what interrupted removals left.
func (l *Library) Sweep() error {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), gonePrefix) {
			errs = append(errs, os.RemoveAll(filepath.Join(l.dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
