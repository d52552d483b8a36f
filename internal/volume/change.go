package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type unixStat = syscall.Stat_t

// Owner is what a new entry gets.
type Owner struct {
	UID, GID uint32
	Mode     uint32 // permissions
}

// Mkdir makes a folder.
func (t *Tree) Mkdir(p string, o Owner) error {
	p, err := notRoot(p)
	if err != nil {
		return err
	}
	return t.add(p, func() error {
		if err := t.root.Mkdir(p, 0o700); err != nil {
			return err
		}
		return t.own(p, o)
	})
}

// MkdirAll makes a folder and those above it that are missing. That the folder is there already is no error.
func (t *Tree) MkdirAll(p string, o Owner) error {
	p, err := clean(p)
	if err != nil || p == "." {
		return err
	}
	if above := path.Dir(p); above != "." {
		if err := t.MkdirAll(above, o); err != nil {
			return err
		}
	}
	err = t.Mkdir(p, o)
	if errors.Is(err, fs.ErrExist) {
		info, serr := t.root.Stat(p) // a symbolic link to a folder will do
		if serr == nil && info.IsDir() {
			return nil
		}
	}
	return err
}

// Create makes an empty file; one that is there is an error.
func (t *Tree) Create(p string, o Owner) error {
	p, err := notRoot(p)
	if err != nil {
		return err
	}
	return t.add(p, func() error {
		f, err := t.root.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		f.Close()
		return t.own(p, o)
	})
}

// Symlink makes a symbolic link. Its target is text that only guests follow.
func (t *Tree) Symlink(target, p string, o Owner) error {
	p, err := notRoot(p)
	if err != nil {
		return err
	}
	if target == "" || len(target) > maxPath {
		return wrap(unix.ENAMETOOLONG)
	}
	return t.add(p, func() error {
		if err := t.root.Symlink(target, p); err != nil {
			return err
		}
		return t.root.Lchown(p, int(o.UID), int(o.GID))
	})
}

// Link gives a file another name.
func (t *Tree) Link(old, p string) error {
	old, err := notRoot(old)
	if err == nil {
		p, err = notRoot(p)
	}
	if err != nil {
		return err
	}
	return t.add(p, func() error { return t.root.Link(old, p) })
}

// add charges for a new entry and makes it; when making it fails half-way, it is taken away again.
func (t *Tree) add(p string, create func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.charge(inodeCost); err != nil {
		return err
	}
	_, before := t.root.Lstat(p)
	err := create()
	if err != nil {
		_ = t.charge(-inodeCost) // giving back is never refused
		if errors.Is(before, fs.ErrNotExist) {
			_ = t.root.Remove(p) // what there is of it
		}
	}
	return wrap(err)
}

// own gives an entry that is no symbolic link its owner and permissions.
func (t *Tree) own(p string, o Owner) error {
	if err := t.root.Lchown(p, int(o.UID), int(o.GID)); err != nil {
		return err
	}
	return t.root.Chmod(p, modeOf(o.Mode))
}

// modeOf turns permissions of stat(2) into Go's.
func modeOf(m uint32) fs.FileMode {
	m &= permissions
	out := fs.FileMode(m & 0o777)
	if m&unix.S_ISVTX != 0 {
		out |= fs.ModeSticky
	}
	return out
}

// Change is what is to become of an entry; nil fields stay as they are.
type Change struct {
	Mode         *uint32
	UID, GID     *uint32
	Atime, Mtime *time.Time
}

// Set changes an entry, and of a symbolic link the link itself, which has no permissions.
func (t *Tree) Set(p string, c Change) error {
	p, err := clean(p)
	if err != nil {
		return err
	}
	info, err := t.root.Lstat(p)
	if err != nil {
		return wrap(err)
	}
	link := info.Mode()&fs.ModeSymlink != 0
	if c.UID != nil || c.GID != nil {
		if err := t.root.Lchown(p, id(c.UID), id(c.GID)); err != nil {
			return wrap(err)
		}
	}
	if c.Mode != nil && !link {
		if err := t.root.Chmod(p, modeOf(*c.Mode)); err != nil {
			return wrap(err)
		}
	}
	if (c.Atime != nil || c.Mtime != nil) && !link {
		at := attrOf(info)
		if c.Atime != nil {
			at.Atime = *c.Atime
		}
		if c.Mtime != nil {
			at.Mtime = *c.Mtime
		}
		if err := t.root.Chtimes(p, at.Atime, at.Mtime); err != nil {
			return wrap(err)
		}
	}
	return nil
}

func id(n *uint32) int {
	if n == nil {
		return -1
	}
	return int(*n)
}

// Readlink gives a symbolic link's target.
func (t *Tree) Readlink(p string) (string, error) {
	p, err := clean(p)
	if err != nil {
		return "", err
	}
	target, err := t.root.Readlink(p)
	return target, wrap(err)
}

// Remove removes a file, or with dir an empty folder.
func (t *Tree) Remove(p string, dir bool) error {
	p, err := notRoot(p)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	info, err := t.root.Lstat(p)
	switch {
	case err != nil:
		return wrap(err)
	case info.IsDir() && !dir:
		return wrap(unix.EISDIR)
	case !info.IsDir() && dir:
		return wrap(unix.ENOTDIR)
	}
	if err := t.root.Remove(p); err != nil {
		return wrap(err)
	}
	return t.charge(-cost(info))
}

// cost is what an entry counts for when it goes: of a file with another name, the entry alone.
func cost(info fs.FileInfo) int64 {
	if info.Mode().IsRegular() && attrOf(info).Links == 1 {
		return inodeCost + info.Size()
	}
	return inodeCost
}

// RemoveAll removes an entry and all below it. What is not there is an error.
func (t *Tree) RemoveAll(p string) error {
	p, err := notRoot(p)
	if err != nil {
		return err
	}
	if _, err := t.root.Lstat(p); err != nil {
		return wrap(err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	err = t.root.RemoveAll(p)
	return errors.Join(wrap(err), t.count(false))
}

// Rename moves an entry, over what is there unless keep.
func (t *Tree) Rename(from, to string, keep bool) error {
	from, err := notRoot(from)
	if err == nil {
		to, err = notRoot(to)
	}
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	over, err := t.root.Lstat(to)
	if err == nil && keep {
		return wrap(unix.EEXIST)
	}
	var freed int64
	if err == nil {
		if was, serr := t.root.Lstat(from); serr == nil && !os.SameFile(was, over) {
			freed = cost(over)
		}
	}
	if err := t.root.Rename(from, to); err != nil {
		return wrap(err)
	}
	return t.charge(-freed)
}

// Upload writes a file as a whole: whoever reads it sees what was there before or all of r, whatever happens meanwhile.
func (t *Tree) Upload(ctx context.Context, p string, r io.Reader, o Owner) (err error) {
	p, err = notRoot(p)
	if err != nil {
		return err
	}
	if info, err := t.root.Stat(p); err == nil && info.IsDir() {
		return wrap(unix.EISDIR)
	}
	var salt [8]byte
	rand.Read(salt[:])
	tmp := path.Join(path.Dir(p), temporary+hex.EncodeToString(salt[:]))
	var f *os.File
	if err := t.add(tmp, func() (err error) {
		f, err = t.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		return err
	}); err != nil {
		return err
	}
	var size int64
	defer func() {
		f.Close()
		if err != nil {
			t.mu.Lock()
			defer t.mu.Unlock()
			if t.root.Remove(tmp) == nil {
				_ = t.charge(-inodeCost - size) // giving back is never refused
			}
		}
	}()
	if size, err = t.fill(ctx, f, r); err != nil {
		return err
	}
	if err = t.own(tmp, o); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return wrap(err)
	}
	t.mu.Lock()
	over, serr := t.root.Lstat(p)
	if err = t.root.Rename(tmp, p); err == nil && serr == nil {
		_ = t.charge(-cost(over)) // giving back is never refused
	}
	t.mu.Unlock()
	return wrap(err)
}

// uploadPiece is how much is charged and written at once.
const uploadPiece = 256 << 10

// fill copies r into a new file and tells how much was charged for it.
func (t *Tree) fill(ctx context.Context, f *os.File, r io.Reader) (size int64, err error) {
	buf := make([]byte, uploadPiece)
	for {
		if err := ctx.Err(); err != nil {
			return size, err
		}
		n, rerr := fillUp(r, buf)
		if n > 0 {
			t.mu.Lock()
			err := t.charge(int64(n))
			t.mu.Unlock()
			if err != nil {
				return size, err
			}
			size += int64(n)
			if _, err := f.Write(buf[:n]); err != nil {
				return size, wrap(err)
			}
		}
		switch {
		case rerr == io.EOF:
			return size, nil
		case rerr != nil:
			return size, rerr
		}
	}
}

// fillUp reads until buf is full or r ends. Unlike with io.ReadFull the error is r's own: a request's body that breaks off says
// io.ErrUnexpectedEOF, and must not pass for the end.
func fillUp(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}
