package erofs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Writer makes one image. It is not for concurrent use. After an error the image is worthless.
type Writer struct {
	f       *os.File
	buf     *bufio.Writer
	o       Options
	root    *inode
	off     int64 // where the next file's data goes, a multiple of blockSize
	names   int
	data    int64
	garbage bool // replaced files left their data behind
	layer   int
	dropped int
}

type inode struct {
	Entry
	children map[string]*child // of a directory
	links    int               // names that lead here; the root has one more than it has names
	dataAt   int64
	// set by layout
	size   int64
	slot   uint64
	serial uint32
	layout int
	xattrs []byte
	inline []byte
}

type child struct {
	inode *inode
	layer int // the layer that last named it
}

// NewWriter starts an image in f, which is empty and open for reading and writing.
func NewWriter(f *os.File, o Options) *Writer {
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	return &Writer{
		f: f, buf: bufio.NewWriterSize(io.NewOffsetWriter(f, blockSize), 1<<20), o: o, off: blockSize,
		root: newDir(Entry{Mode: TypeDir | 0o755, ModTime: time.Unix(0, 0)}),
	}
}

func newDir(e Entry) *inode { return &inode{Entry: e, children: map[string]*child{}, links: 1} }

// NextLayer says that what follows comes from a layer above everything so far.
func (w *Writer) NextLayer() { w.layer++ }

// Add puts an entry into the image and reads exactly e.Size bytes of data for a regular file. Missing
// parents are made (0755, root). An entry of the same path is replaced; a directory that is already one keeps its
// children. A path that leads out of the image or through something that is no directory is tartarus.Invalid.
func (w *Writer) Add(e Entry, data io.Reader) error {
	parts, err := split(e.Path)
	if err != nil {
		return err
	}
	e.Path = strings.Join(parts, "/")
	if err := w.check(&e); err != nil {
		return err
	}
	if len(parts) == 0 {
		if e.Type() != TypeDir {
			return tartarus.Errorf(tartarus.Invalid, "the root of an image must be a directory")
		}
		w.root.Entry = e
		return nil
	}
	dir, err := w.parent(parts)
	if err != nil {
		return err
	}
	name := parts[len(parts)-1]
	if old := dir.children[name]; old != nil && old.inode.Type() == TypeDir && e.Type() == TypeDir {
		old.inode.Entry, old.layer = e, w.layer
		return nil
	}
	n := newDir(e)
	if e.Type() != TypeDir {
		n.children = nil
	}
	if e.Type() == TypeRegular {
		if err := w.write(n, data); err != nil {
			return fmt.Errorf("write %s: %w", e.Path, err)
		}
	}
	return w.attach(dir, name, n)
}

func (w *Writer) check(e *Entry) error {
	if direntKinds[e.Type()] == 0 {
		return tartarus.Errorf(tartarus.Invalid, "%s has the unknown mode %o", e.Path, e.Mode)
	}
	if e.Type() == TypeSymlink {
		// 4095 is the kernel's limit for a link's text.
		if e.Target == "" || len(e.Target) > 4095 || strings.ContainsRune(e.Target, 0) {
			return tartarus.Errorf(tartarus.Invalid, "symbolic link %s has a bad target", e.Path)
		}
		e.Mode = TypeSymlink | 0o777
	}
	if e.Type() != TypeRegular {
		e.Size = 0
	}
	if e.Size < 0 {
		return tartarus.Errorf(tartarus.Invalid, "%s has a negative size", e.Path)
	}
	if e.ModTime.Unix() < 0 {
		e.ModTime = time.Unix(0, 0) // also the zero time
	}
	if !w.o.Xattrs {
		w.dropped += len(e.Xattrs)
		e.Xattrs = nil
	}
	return nil
}

// split takes a path apart and refuses what would leave the image.
func split(p string) ([]string, error) {
	if len(p) > 4096 {
		return nil, tartarus.Errorf(tartarus.Invalid, "path %.60q... is longer than 4096 bytes", p)
	}
	var parts []string
	for part := range strings.SplitSeq(p, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return nil, tartarus.Errorf(tartarus.Invalid, "path %q climbs with ..", p)
		case len(part) > 255 || strings.ContainsRune(part, 0):
			return nil, tartarus.Errorf(tartarus.Invalid, "path %.60q has a name that no file system takes", p)
		default:
			parts = append(parts, part)
		}
	}
	return parts, nil
}

// parent finds or makes the directory that holds the last of parts. It does not follow symbolic links: an entry
// below one would end up somewhere else than its path says.
func (w *Writer) parent(parts []string) (*inode, error) {
	dir := w.root
	for i, name := range parts[:len(parts)-1] {
		next := dir.children[name]
		if next == nil {
			e := Entry{Path: path.Join(parts[:i+1]...), Mode: TypeDir | 0o755, ModTime: time.Unix(0, 0)}
			if err := w.attach(dir, name, newDir(e)); err != nil {
				return nil, err
			}
			next = dir.children[name]
		}
		if next.inode.Type() != TypeDir {
			return nil, tartarus.Errorf(tartarus.Invalid, "%s lies below %s, which is no directory",
				path.Join(parts...), path.Join(parts[:i+1]...))
		}
		next.layer = w.layer
		dir = next.inode
	}
	return dir, nil
}

func (w *Writer) attach(dir *inode, name string, n *inode) error {
	if old := dir.children[name]; old != nil {
		w.drop(old.inode)
	}
	if w.names++; w.names > w.o.MaxEntries {
		return tartarus.Errorf(tartarus.TooLarge, "the image has more than %d entries", w.o.MaxEntries)
	}
	dir.children[name] = &child{inode: n, layer: w.layer}
	return nil
}

// drop forgets one name of n and all that is below it.
func (w *Writer) drop(n *inode) {
	w.names--
	if n.links--; n.links > 0 {
		return
	}
	w.garbage = w.garbage || n.Size > 0
	for _, c := range n.children {
		w.drop(c.inode)
	}
}

func (w *Writer) write(n *inode, data io.Reader) error {
	if n.Size == 0 {
		return nil
	}
	if w.data += n.Size; w.data > w.o.MaxBytes {
		return tartarus.Errorf(tartarus.TooLarge, "the image holds more than %d MiB", w.o.MaxBytes>>20)
	}
	if data == nil {
		return tartarus.Errorf(tartarus.Invalid, "a file of %d bytes came without data", n.Size)
	}
	n.dataAt = w.off
	if _, err := io.CopyN(w.buf, data, n.Size); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	end := roundUp(w.off+n.Size, blockSize)
	_, err := w.buf.Write(make([]byte, end-w.off-n.Size))
	w.off = end
	return err
}

// Link gives the file at target a further name. Directories have one name only.
func (w *Writer) Link(name, target string) error {
	n, err := w.find(target)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	parts, err := split(name)
	if err != nil {
		return err
	}
	if n.Type() == TypeDir || len(parts) == 0 {
		return tartarus.Errorf(tartarus.Invalid, "hard link %s leads to a directory", name)
	}
	dir, err := w.parent(parts)
	if err != nil {
		return err
	}
	last := parts[len(parts)-1]
	if old := dir.children[last]; old != nil && old.inode == n {
		old.layer = w.layer
		return nil
	}
	n.links++
	return w.attach(dir, last, n)
}

func (w *Writer) find(name string) (*inode, error) {
	parts, err := split(name)
	if err != nil {
		return nil, err
	}
	n := w.root
	for _, part := range parts {
		c := n.children[part]
		if c == nil {
			return nil, tartarus.Errorf(tartarus.NotFound, "%s is not in the image", name)
		}
		n = c.inode
	}
	return n, nil
}

// Lookup finds an entry. Symbolic links are not followed.
func (w *Writer) Lookup(name string) (Entry, bool) {
	n, err := w.find(name)
	if err != nil {
		return Entry{}, false
	}
	return n.Entry, true
}

// ReadFile reads back a regular file of at most 1 MiB.
func (w *Writer) ReadFile(name string) ([]byte, error) {
	n, err := w.find(name)
	if err != nil {
		return nil, err
	}
	if n.Type() != TypeRegular || n.Size > 1<<20 {
		return nil, tartarus.Errorf(tartarus.Invalid, "%s is no small regular file", name)
	}
	if err := w.buf.Flush(); err != nil {
		return nil, fmt.Errorf("write image: %w", err)
	}
	out := make([]byte, n.Size)
	if _, err := w.f.ReadAt(out, n.dataAt); err != nil {
		return nil, fmt.Errorf("read back %s: %w", name, err)
	}
	return out, nil
}

// RemoveLower takes away what layers below the current one put at name, which need not exist.
func (w *Writer) RemoveLower(name string) error {
	parts, err := split(name)
	if err != nil || len(parts) == 0 {
		return err
	}
	dir, err := w.find(path.Dir(path.Join(parts...)))
	if err != nil {
		return nil // nothing there
	}
	last := parts[len(parts)-1]
	w.removeLower(dir, last)
	return nil
}

func (w *Writer) removeLower(dir *inode, name string) {
	c := dir.children[name]
	switch {
	case c == nil:
	case c.layer < w.layer:
		delete(dir.children, name)
		w.drop(c.inode)
	default:
		for below := range c.inode.children {
			w.removeLower(c.inode, below)
		}
	}
}

// RemoveLowerChildren empties the directory name of what layers below the current one put there.
func (w *Writer) RemoveLowerChildren(name string) error {
	dir, err := w.find(name)
	if err != nil {
		if tartarus.Is(err, tartarus.NotFound) {
			return nil
		}
		return err
	}
	for below := range dir.children {
		w.removeLower(dir, below)
	}
	return nil
}

// Walk calls do for the entry at name and all below it, by name. Do may add, but remove nothing.
func (w *Writer) Walk(name string, do func(Entry) error) error {
	n, err := w.find(name)
	if err != nil {
		if tartarus.Is(err, tartarus.NotFound) {
			return nil
		}
		return err
	}
	return walkInode(strings.Trim(name, "/"), n, do)
}

func walkInode(name string, n *inode, do func(Entry) error) error {
	e := n.Entry
	e.Path = name // one of several, for a file with hard links
	if err := do(e); err != nil {
		return err
	}
	for _, below := range sortedNames(n) {
		if err := walkInode(path.Join(name, below), n.children[below].inode, do); err != nil {
			return err
		}
	}
	return nil
}
