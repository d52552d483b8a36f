package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// Tree is the files of one volume. Paths are slash-separated and start at the volume's root; "" and "/" are the root itself. Symbolic
// links are never followed out of the volume, absolute ones not at all. Methods may be called concurrently. Their errors
// unwrap to a unix.Errno where the file system gave one.
type Tree struct {
	root  *os.Root
	quota int64 // bytes

	mu      sync.Mutex // held while a size changes, so that used stays what it is
	used    int64
	counted time.Time // when used was last found by looking
}

const (
	maxPath = 4096 // bytes, as in Linux
	maxPart = 255
	// inodeCost is what an entry counts for beside its bytes: what a file system takes for one at least. It bounds their number.
	inodeCost = 4096
	// permissions that files of a volume may have: none that would lend a user's rights on whatever host or guest they appear.
	permissions = 0o1777
	// temporary begins the names of uploads under way. They are in no listing.
	temporary = ".tartarus-upload-"
	// recountAfter bounds how far used can drift where several servers share a folder.
	recountAfter = 10 * time.Minute
	// recountPause is how long a full volume is believed to be full.
	recountPause = 2 * time.Second
)

// Attr describes an entry.
type Attr struct {
	Inode               uint64
	Mode                uint32 // as in stat(2), with the type
	Links               uint32
	UID, GID            uint32
	Size                int64
	Atime, Mtime, Ctime time.Time
}

// Entry is a name in a folder.
type Entry struct {
	Name string
	Attr Attr
}

// errFull is what a write over the quota gets; ENOSPC is what programs know it by.
var errFull error = &tartarus.Error{Kind: tartarus.TooLarge, Code: "volume_full", Message: "the volume is full", Err: unix.ENOSPC}

// openTree opens the folder of a volume.
func openTree(dir string, quota int64) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open volume: %w", err)
	}
	t := &Tree{root: root, quota: quota}
	if err := t.count(true); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return t, nil
}

func (t *Tree) close() error { return t.root.Close() }

// clean makes a path one that os.Root takes.
func clean(p string) (string, error) {
	if len(p) > maxPath || strings.IndexByte(p, 0) >= 0 {
		return "", tartarus.Errorf(tartarus.Invalid, "a path has at most %d bytes and no NUL: %w", maxPath, unix.EINVAL)
	}
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	for part := range strings.SplitSeq(p, "/") {
		if len(part) > maxPart {
			return "", tartarus.Errorf(tartarus.Invalid, "a name in a path has at most %d bytes: %w", maxPart, unix.ENAMETOOLONG)
		}
		if strings.HasPrefix(part, temporary) {
			return "", tartarus.Errorf(tartarus.Invalid, "names that begin with %s are the server's own: %w", temporary, unix.EPERM)
		}
	}
	if p == "" {
		return ".", nil
	}
	return p, nil
}

// notRoot is clean for what cannot be done to the root.
func notRoot(p string) (string, error) {
	p, err := clean(p)
	if err == nil && p == "." {
		err = tartarus.Errorf(tartarus.Invalid, "not with the root of the volume: %w", unix.EBUSY)
	}
	return p, err
}

// count finds out what is used, and with sweep removes what uploads left that ended with their server.
func (t *Tree) count(sweep bool) error {
	var used int64
	err := fs.WalkDir(t.root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed while we looked
		}
		if err != nil {
			return err
		}
		if sweep && strings.HasPrefix(d.Name(), temporary) && d.Type().IsRegular() {
			return t.root.Remove(p)
		}
		used += inodeCost
		if d.Type().IsRegular() {
			info, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			used += info.Size()
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("measure volume: %w", err)
	}
	t.used, t.counted = used, time.Now()
	return nil
}

// charge takes n bytes of the quota, or gives them back. t.mu is held.
func (t *Tree) charge(n int64) error {
	age := time.Since(t.counted)
	if age > recountAfter || n > 0 && t.used+n > t.quota && age > recountPause {
		if err := t.count(false); err != nil {
			return err
		}
	}
	if n > 0 && (n > t.quota || t.used > t.quota-n) {
		return errFull
	}
	t.used = max(0, t.used+n)
	return nil
}

// Usage is how much of the quota is taken, in bytes.
func (t *Tree) Usage() (used, quota int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.used, t.quota
}

func attrOf(info fs.FileInfo) Attr {
	st, ok := info.Sys().(*unixStat)
	if !ok {
		return Attr{Size: info.Size()}
	}
	return Attr{
		Inode: st.Ino, Mode: st.Mode &^ (unix.S_ISUID | unix.S_ISGID), Links: uint32(st.Nlink), UID: st.Uid, GID: st.Gid, Size: st.Size,
		Atime: time.Unix(st.Atim.Unix()), Mtime: time.Unix(st.Mtim.Unix()), Ctime: time.Unix(st.Ctim.Unix()),
	}
}

// Stat describes an entry, of a symbolic link the link itself.
func (t *Tree) Stat(p string) (Attr, error) {
	p, err := clean(p)
	if err != nil {
		return Attr{}, err
	}
	info, err := t.root.Lstat(p)
	if err != nil {
		return Attr{}, wrap(err)
	}
	return attrOf(info), nil
}

// List gives the entries of a folder, at most limit, without those the server made for itself.
func (t *Tree) List(p string, limit int) ([]Entry, error) {
	p, err := clean(p)
	if err != nil {
		return nil, err
	}
	d, err := t.root.OpenFile(p, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, wrap(err)
	}
	defer d.Close()
	entries := []Entry{}
	for {
		batch, err := d.Readdir(256)
		for _, info := range batch {
			if strings.HasPrefix(info.Name(), temporary) {
				continue
			}
			if len(entries) == limit {
				return nil, tartarus.Errorf(tartarus.TooLarge, "the folder has more than %d entries: %w", limit, unix.EOVERFLOW)
			}
			entries = append(entries, Entry{info.Name(), attrOf(info)})
		}
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, wrap(err)
		}
	}
}

// Open opens a file for reading. What is no regular file is not opened.
func (t *Tree) Open(p string) (*os.File, error) {
	p, err := clean(p)
	if err != nil {
		return nil, err
	}
	return t.open(p, os.O_RDONLY)
}

func (t *Tree) open(p string, flags int) (*os.File, error) {
	f, err := t.root.OpenFile(p, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, wrap(err)
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = unix.EISDIR
	} else if err == nil && !info.Mode().IsRegular() {
		err = unix.EINVAL
	}
	if err != nil {
		f.Close()
		return nil, wrap(&fs.PathError{Op: "open", Path: p, Err: err})
	}
	return f, nil
}

// ReadAt fills b from an offset; fewer bytes mean the end of the file.
func (t *Tree) ReadAt(p string, b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, wrap(unix.EINVAL)
	}
	f, err := t.Open(p)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := f.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, wrap(err)
}

// WriteAt writes all of b, and makes the file longer where that needs it.
func (t *Tree) WriteAt(p string, b []byte, off int64) error {
	p, err := clean(p)
	if err != nil {
		return err
	}
	if off < 0 || off > 1<<62 {
		return wrap(unix.EFBIG)
	}
	f, err := t.open(p, os.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.grow(f, off+int64(len(b)), func() error {
		_, err := f.WriteAt(b, off)
		return err
	})
}

// grow charges for what a file gets longer by, does the change, and gives back what it did not take. t.mu is held.
func (t *Tree) grow(f *os.File, size int64, change func() error) error {
	before, err := f.Stat()
	if err != nil {
		return wrap(err)
	}
	more := max(0, size-before.Size())
	if err := t.charge(more); err != nil {
		return err
	}
	if err = change(); err != nil && more > 0 {
		if after, serr := f.Stat(); serr == nil {
			_ = t.charge(max(0, after.Size()-before.Size()) - more) // giving back is never refused
		}
	}
	return wrap(err)
}

// Truncate sets a file's size.
func (t *Tree) Truncate(p string, size int64) error {
	p, err := clean(p)
	if err != nil {
		return err
	}
	if size < 0 {
		return wrap(unix.EINVAL)
	}
	f, err := t.open(p, os.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	info, err := f.Stat()
	if err != nil {
		return wrap(err)
	}
	if size >= info.Size() {
		return t.grow(f, size, func() error { return f.Truncate(size) })
	}
	if err := f.Truncate(size); err != nil {
		return wrap(err)
	}
	return t.charge(size - info.Size())
}

// Sync makes a file's content durable.
func (t *Tree) Sync(p string) error {
	p, err := clean(p)
	if err != nil {
		return err
	}
	f, err := t.root.OpenFile(p, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return wrap(err)
	}
	defer f.Close()
	return wrap(f.Sync())
}

// wrap gives an error of the file system a Kind and keeps its number.
func wrap(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*tartarus.Error](err); ok {
		return err
	}
	kind, text := tartarus.Internal, err.Error()
	number, known := errors.AsType[unix.Errno](err)
	switch {
	case errors.Is(err, fs.ErrNotExist), number == unix.ENOTDIR:
		kind, text = tartarus.NotFound, "no such file or folder"
	case errors.Is(err, fs.ErrExist), number == unix.ENOTEMPTY:
		kind, text = tartarus.Conflict, number.Error()
	case number == unix.ENOSPC || number == unix.EDQUOT:
		kind, text = tartarus.TooLarge, "the volume's disk is full"
	case known && number != unix.EIO:
		kind, text = tartarus.Invalid, number.Error()
	case strings.Contains(text, "escapes from parent"):
		// os.Root has no error value for it.
		kind, text, err = tartarus.Invalid, "the path leads out of the volume", unix.EXDEV
	}
	return &tartarus.Error{Kind: kind, Message: text, Err: err}
}
