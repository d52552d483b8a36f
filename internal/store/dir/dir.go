// Package dir keeps blobs as files of one folder, which may be shared by several machines. A blob appears under its name by a rename once it is
// synced; what a killed writer leaves is a file with a name that no blob has, and is removed later.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
)

// Store is one folder of blobs.
type Store struct{ dir string }

var _ snapshot.Blobs = (*Store)(nil)

// partial begins the names of files being written. No name of a blob has a part that begins with a dot.
const partial = ".partial-"

// partialAge is how old such a file must be to count as left behind: no single blob takes a day to write.
const partialAge = 24 * time.Hour

// New opens a folder, and makes it when it is missing.
func New(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(abs, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob folder: %w", err)
	}
	return &Store{dir: abs}, nil
}

func (s *Store) path(name string) (string, error) {
	ok := name != "" && len(name) <= 512
	for part := range strings.SplitSeq(name, "/") {
		ok = ok && part != "" && !strings.HasPrefix(part, ".")
	}
	if !ok || strings.ContainsFunc(name, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("-./", c)
	}) {
		return "", tartarus.Errorf(tartarus.Invalid, "%.80q cannot be the name of a blob", name)
	}
	return filepath.Join(s.dir, filepath.FromSlash(name)), nil
}

// Put implements snapshot.Blobs.
func (s *Store) Put(ctx context.Context, name string, r io.Reader) error {
	path, err := s.path(name)
	if err != nil {
		return err
	}
	if err := put(ctx, path, r); err != nil {
		return fmt.Errorf("store blob %s: %w", name, err)
	}
	return nil
}

func put(ctx context.Context, path string, r io.Reader) (err error) {
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(folder, partial)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = io.Copy(f, &patient{ctx: ctx, r: r})
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(folder)
	if err != nil {
		return nil // the blob is there; whether its name is durable shows after a crash, when it is stored again
	}
	return errors.Join(d.Sync(), d.Close())
}

// patient is a reader that ends with a context. It lives as long as one call.
type patient struct {
	ctx context.Context
	r   io.Reader
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	return p.r.Read(b)
}

// Get implements snapshot.Blobs.
func (s *Store) Get(_ context.Context, name string) (io.ReadCloser, error) {
	path, err := s.path(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, missing(name, err)
	}
	return f, nil
}

// Head implements snapshot.Blobs.
func (s *Store) Head(_ context.Context, name string) (snapshot.Blob, error) {
	path, err := s.path(name)
	if err != nil {
		return snapshot.Blob{}, err
	}
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return snapshot.Blob{}, missing(name, err)
	}
	return snapshot.Blob{Name: name, Size: info.Size(), Modified: info.ModTime()}, nil
}

func missing(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return tartarus.Errorf(tartarus.NotFound, "there is no blob %s", name)
	}
	return fmt.Errorf("read blob %s: %w", name, err)
}

// Delete implements snapshot.Blobs.
func (s *Store) Delete(_ context.Context, name string) error {
	path, err := s.path(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete blob %s: %w", name, err)
	}
	return nil
}

// List implements snapshot.Blobs. It walks the whole folder, and takes away what killed writers have left.
func (s *Store) List(ctx context.Context, prefix string, each func(snapshot.Blob) error) error {
	var found []snapshot.Blob
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(s.dir, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		info, err := d.Info()
		if err != nil {
			return nil // deleted meanwhile
		}
		if strings.HasPrefix(d.Name(), partial) {
			if time.Since(info.ModTime()) > partialAge {
				_ = os.Remove(path) // if not now, then at the next listing
			}
			return nil
		}
		if strings.HasPrefix(name, prefix) {
			found = append(found, snapshot.Blob{Name: name, Size: info.Size(), Modified: info.ModTime()})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	slices.SortFunc(found, func(a, b snapshot.Blob) int { return strings.Compare(a.Name, b.Name) })
	for _, b := range found {
		if err := each(b); err != nil {
			return err
		}
	}
	return nil
}
