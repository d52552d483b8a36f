// Package image keeps templates: it builds root filesystem images from recipes, container images, folders and archives,
// and remembers them by name and tag.
// An image file is written under a temporary name, synced and renamed, and never changes afterwards; a record is
// only written once its image is in place. Any number of processes may use one folder at once.
//
//	<data>/templates/templates.json   all records; replaced as a whole, under the lock
//	<data>/templates/images/HEX.erofs one image per digest, shared by all records that have it
//	<data>/templates/tmp/             images being written, each locked by its builder
//	<data>/templates/locks/           one lock per template being built, and the lock of the records
package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Config says where templates live and what goes into them.
type Config struct {
	Dir string // the folder; made if missing
	// Programs gives what images carry. Nil means those embedded in this binary.
	Programs Programs
}

// Store is the templates of one data folder. All methods may be called concurrently.
type Store struct {
	dir      string
	programs Programs
}

// index is the content of templates.json.
type index struct {
	Version   int        `json:"version"`
	Templates []Template `json:"templates"`
}

const indexVersion = 1

// New opens the templates in c.Dir.
func New(c Config) (*Store, error) {
	if c.Dir == "" {
		return nil, tartarus.Errorf(tartarus.Invalid, "templates need a folder")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("open templates: %w", err)
	}
	s := &Store{dir: dir, programs: c.Programs}
	if s.programs == nil {
		s.programs = embeddedPrograms{}
	}
	for _, sub := range []string{"images", "tmp", "locks"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("open templates: %w", err)
		}
	}
	s.sweep()
	return s, nil
}

// Resolve finds a template by NAME, NS/NAME or ID, with or without :TAG.
func (s *Store) Resolve(ref string) (Template, error) {
	x, err := s.load()
	if err != nil {
		return Template{}, err
	}
	i, err := find(x.Templates, ref)
	if err != nil {
		return Template{}, err
	}
	return x.Templates[i], nil
}

// Version finds a version by the two ids, also one that has no tag any more but is held.
func (s *Store) Version(id, build string) (Template, error) {
	x, err := s.load()
	if err != nil {
		return Template{}, err
	}
	i := slices.IndexFunc(x.Templates, func(t Template) bool { return t.ID == id && t.Build == build })
	if i < 0 {
		return Template{}, tartarus.Errorf(tartarus.NotFound, "template %s has no version %s", id, build)
	}
	return x.Templates[i], nil
}

// Hold gives a template's image a second name, path, on the same file system. As long as it has one, its version stays,
// whatever becomes of its tags: who may have to start from the image again holds it. Removing path releases it.
func Hold(t Template, path string) error {
	if err := os.Link(t.RootFS, path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return tartarus.Errorf(tartarus.NotFound, "version %s of template %s is gone", t.Build, t.Name)
		}
		return fmt.Errorf("hold image: %w", err)
	}
	return nil
}

// held reports whether somebody holds the image.
func held(t Template) bool {
	info, err := os.Stat(t.RootFS)
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink > 1
}

// List gives all versions that have a tag, by name, the newest first.
func (s *Store) List() ([]Template, error) {
	all, err := s.All()
	return slices.DeleteFunc(all, func(t Template) bool { return len(t.Tags) == 0 }), err
}

// All gives those without a tag, too, which somebody holds.
func (s *Store) All() ([]Template, error) {
	x, err := s.load()
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(x.Templates, func(a, b Template) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), b.CreatedAt.Compare(a.CreatedAt))
	})
	return x.Templates, nil
}

// Put records a version whose image is in the store. It takes its tags away from earlier versions of the
// name, and a version without a tag is forgotten unless it is held. An empty ID, Build, tag list, resource or time is filled in.
func (s *Store) Put(ctx context.Context, t Template) (Template, error) {
	return s.put(ctx, t, func() error {
		_, err := os.Stat(t.RootFS)
		return err
	})
}

// put is Put with a last step that brings the image to its place. It happens under the lock of the records, so that
// nobody deletes the file between the two.
func (s *Store) put(ctx context.Context, t Template, place func() error) (Template, error) {
	if !ValidName(t.Name) {
		return Template{}, tartarus.Errorf(tartarus.Invalid, "%.80q is no template name: [namespace/]name of a-z, 0-9, - and _", t.Name)
	}
	for _, tag := range t.Tags {
		if !ValidTag(tag) {
			return Template{}, tartarus.Errorf(tartarus.Invalid, "%.80q is no tag", tag)
		}
	}
	if rel, err := filepath.Rel(s.dir, t.RootFS); err != nil || !filepath.IsLocal(rel) {
		return Template{}, tartarus.Errorf(tartarus.Invalid, "image %s is not in the template folder", t.RootFS)
	}
	if len(t.Tags) == 0 {
		t.Tags = []string{DefaultTag}
	}
	t.VCPU = cmp.Or(t.VCPU, DefaultVCPU)
	t.MemoryMB = cmp.Or(t.MemoryMB, DefaultMemoryMB)
	t.DiskMB = cmp.Or(t.DiskMB, DefaultDiskMB)
	t.Build = cmp.Or(t.Build, tartarus.NewTemplateID())
	if t.CreatedAt.IsZero() {
		t.CreatedAt = time.Now().UTC().Truncate(time.Millisecond)
	}
	err := s.change(ctx, func(x *index) error {
		if err := place(); err != nil {
			return fmt.Errorf("record template %s: %w", t.Name, err)
		}
		x.Templates = slices.DeleteFunc(x.Templates, func(old Template) bool { return old.Build == t.Build })
		for i := range x.Templates {
			if old := &x.Templates[i]; old.Name == t.Name {
				t.ID = cmp.Or(t.ID, old.ID)
				old.Tags = slices.DeleteFunc(old.Tags, func(tag string) bool { return slices.Contains(t.Tags, tag) })
			}
		}
		t.ID = cmp.Or(t.ID, tartarus.NewTemplateID())
		x.Templates = append(x.Templates, t)
		return nil
	})
	if err != nil {
		return Template{}, err
	}
	return t, nil
}

// Tag gives the version that ref means further tags, which its siblings lose.
func (s *Store) Tag(ctx context.Context, ref string, tags ...string) (Template, error) {
	t, err := s.Resolve(ref)
	if err != nil {
		return Template{}, err
	}
	for _, tag := range tags {
		if !slices.Contains(t.Tags, tag) {
			t.Tags = append(t.Tags, tag)
		}
	}
	return s.Put(ctx, t)
}

// Remove takes the tag of ref away, or with a reference without a tag all tags of the name. Versions without a tag
// are forgotten, and their images deleted, as soon as nobody holds them. Whether a sandbox still runs from one
// is for the caller to know: a running sandbox keeps its open file.
func (s *Store) Remove(ctx context.Context, ref string) error {
	name, tag, err := SplitRef(ref)
	if err != nil {
		return err
	}
	all := !strings.Contains(ref, ":")
	return s.change(ctx, func(x *index) error {
		found := false
		for i := range x.Templates {
			t := &x.Templates[i]
			if t.Name != name && t.ID != name {
				continue
			}
			before := len(t.Tags)
			t.Tags = slices.DeleteFunc(t.Tags, func(has string) bool { return all || has == tag })
			found = found || len(t.Tags) < before
		}
		if !found {
			return tartarus.Errorf(tartarus.NotFound, "template %q not found", ref)
		}
		return nil
	})
}

// Verify reads a template's whole image and compares it with its digest.
func (s *Store) Verify(ref string) error {
	t, err := s.Resolve(ref)
	if err != nil {
		return err
	}
	digest, size, err := digestFile(t.RootFS)
	if err != nil {
		return fmt.Errorf("verify template %s: %w", t.Name, err)
	}
	if digest != t.Digest || size != t.Size {
		return tartarus.Errorf(tartarus.Corrupt, "image of template %s is damaged: it is %s (%d bytes) and should be %s (%d bytes); build it again with --force",
			t.Name, digest, size, t.Digest, t.Size)
	}
	return nil
}

func digestFile(name string) (string, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.CopyBuffer(h, onlyReader{f}, make([]byte, 1<<20))
	if err != nil {
		return "", 0, err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), n, nil
}

// onlyReader hides WriteTo, which would read in smaller pieces.
type onlyReader struct{ io.Reader }

// load reads the records. It needs no lock: the file is replaced as a whole.
func (s *Store) load() (*index, error) {
	x := &index{Version: indexVersion}
	b, err := os.ReadFile(s.indexPath())
	if errors.Is(err, fs.ErrNotExist) {
		return x, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read templates: %w", err)
	}
	if err := json.Unmarshal(b, x); err != nil {
		return nil, &tartarus.Error{Kind: tartarus.Corrupt, Message: fmt.Sprintf("read %s: %v", s.indexPath(), err), Err: err}
	}
	if x.Version > indexVersion {
		return nil, tartarus.Errorf(tartarus.Unsupported, "%s was written by a newer version", s.indexPath())
	}
	for i := range x.Templates {
		x.Templates[i].RootFS = filepath.Join(s.dir, x.Templates[i].RootFS)
	}
	return x, nil
}

func (s *Store) indexPath() string { return filepath.Join(s.dir, "templates.json") }

// change replaces the records by what do makes of them, alone among all processes, and deletes images
// that no record has any more.
func (s *Store) change(ctx context.Context, do func(*index) error) error {
	unlock, err := s.lock(ctx, "records")
	if err != nil {
		return err
	}
	defer unlock()
	x, err := s.load()
	if err != nil {
		return err
	}
	before := images(x)
	if err := do(x); err != nil {
		return err
	}
	x.Templates = slices.DeleteFunc(x.Templates, func(t Template) bool { return len(t.Tags) == 0 && !held(t) })
	after := images(x)
	out := index{Version: indexVersion, Templates: slices.Clone(x.Templates)}
	for i := range out.Templates {
		rel, err := filepath.Rel(s.dir, out.Templates[i].RootFS)
		if err != nil {
			return fmt.Errorf("write templates: %w", err)
		}
		out.Templates[i].RootFS = rel
	}
	b, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return fmt.Errorf("write templates: %w", err)
	}
	if err := replaceFile(s.indexPath(), append(b, '\n')); err != nil {
		return fmt.Errorf("write templates: %w", err)
	}
	for name := range before {
		if !after[name] {
			os.Remove(name) // a file that stays costs space only; the next sweep takes it
		}
	}
	return nil
}

func images(x *index) map[string]bool {
	out := map[string]bool{}
	for _, t := range x.Templates {
		out[t.RootFS] = true
	}
	return out
}

// replaceFile writes a file so that after a crash it has its old or its new content.
func replaceFile(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
