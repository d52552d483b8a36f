package erofs

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/tartarus-sandbox/tartarus"
)

type dirent struct {
	name  string
	inode *inode
}

// Close lays the tree out and writes it behind the data. It neither syncs nor closes the file.
func (w *Writer) Close() (Stats, error) {
	if err := w.buf.Flush(); err != nil {
		return Stats{}, fmt.Errorf("write image: %w", err)
	}
	l := layout{parents: map[*inode]*inode{w.root: w.root}, seen: map[*inode]bool{}}
	if err := l.walk(w.root); err != nil {
		return Stats{}, err
	}
	if w.garbage {
		if err := w.compact(l.inodes); err != nil {
			return Stats{}, err
		}
	}
	l.encodeDirs()
	end, err := w.writeTree(&l)
	if err != nil {
		return Stats{}, fmt.Errorf("write image: %w", err)
	}
	s := Stats{Size: end, Inodes: len(l.inodes), DroppedXattrs: w.dropped}
	for _, n := range l.inodes {
		s.DataBytes += n.Entry.Size
	}
	return s, nil
}

// layout collects inodes in the order of the tree, so that a directory's children lie beside each other.
type layout struct {
	inodes  []*inode
	parents map[*inode]*inode // of directories
	seen    map[*inode]bool
	off     int64 // bytes into the inode area
	large   []*inode
}

func (l *layout) walk(n *inode) error {
	l.seen[n] = true
	l.inodes = append(l.inodes, n)
	n.serial = uint32(len(l.inodes))
	if err := l.place(n); err != nil {
		return err
	}
	for _, name := range sortedNames(n) {
		c := n.children[name].inode
		if c.Type() == TypeDir {
			l.parents[c] = n
		}
		if l.seen[c] {
			continue // a further name of the same file
		}
		if err := l.walk(c); err != nil {
			return err
		}
	}
	return nil
}

func sortedNames(n *inode) []string {
	names := make([]string, 0, len(n.children))
	for name := range n.children {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// place decides where n goes. The contents of small directories and of links follow their inode when
// both fit in one block, which is what readers ask of such data; otherwise they get blocks of their own.
func (l *layout) place(n *inode) (err error) {
	n.xattrs = nil
	if len(n.Xattrs) > 0 {
		if n.xattrs, err = encodeXattrs(n.Path, n.Xattrs); err != nil {
			return err
		}
	}
	n.size = n.Entry.Size
	switch n.Type() {
	case TypeDir:
		n.size = int64(len(encodeDir(l.entries(n))))
	case TypeSymlink:
		n.size = int64(len(n.Target))
	}
	head := int64(inodeSize + len(n.xattrs))
	total := head
	n.layout = layoutPlain
	if n.Type() == TypeDir || n.Type() == TypeSymlink {
		if n.layout = layoutInline; head+n.size > blockSize {
			n.layout = layoutPlain
			l.large = append(l.large, n)
		} else {
			total += n.size
		}
	}
	at := max(roundUp(l.off, slotSize), firstSlot*slotSize)
	// An inode never straddles two blocks, nor does what follows it, unless its attributes alone are larger.
	if at%blockSize+min(total, blockSize) > blockSize {
		at = roundUp(at, blockSize)
	}
	n.slot = uint64(at / slotSize)
	l.off = at + total
	return nil
}

// entries are a directory's, sorted by name with "." and ".." among them.
func (l *layout) entries(n *inode) []dirent {
	out := make([]dirent, 0, len(n.children)+2)
	out = append(out, dirent{".", n}, dirent{"..", cmp.Or(l.parents[n], n)})
	for name, c := range n.children {
		out = append(out, dirent{name, c.inode})
	}
	slices.SortFunc(out, func(a, b dirent) int { return cmp.Compare(a.name, b.name) })
	return out
}

// encodeDirs fills in the contents of directories and links, now that every inode has its number.
func (l *layout) encodeDirs() {
	for _, n := range l.inodes {
		switch n.Type() {
		case TypeDir:
			n.inline = encodeDir(l.entries(n))
		case TypeSymlink:
			n.inline = []byte(n.Target)
		}
	}
}

func (w *Writer) writeTree(l *layout) (int64, error) {
	out := bufio.NewWriterSize(io.NewOffsetWriter(w.f, w.off), 1<<20)
	at := w.off
	for _, n := range l.large {
		n.dataAt = at
		block := make([]byte, roundUp(n.size, blockSize))
		copy(block, n.inline)
		n.inline = nil
		if _, err := out.Write(block); err != nil {
			return 0, err
		}
		at += int64(len(block))
	}
	end := at + roundUp(l.off, blockSize)
	if end>>blockBits > math.MaxUint32 {
		return 0, tartarus.Errorf(tartarus.TooLarge, "an image of %d bytes has more blocks than EROFS counts", end)
	}
	metaBlock := uint32(at >> blockBits)
	for _, n := range l.inodes {
		pos := at - int64(metaBlock)<<blockBits
		if _, err := out.Write(make([]byte, int64(n.slot)*slotSize-pos)); err != nil {
			return 0, err
		}
		b := make([]byte, inodeSize+len(n.xattrs)+len(n.inline))
		putInode(b, n, n.linkCount())
		if _, err := out.Write(b); err != nil {
			return 0, err
		}
		at = int64(metaBlock)<<blockBits + int64(n.slot)*slotSize + int64(len(b))
	}
	if _, err := out.Write(make([]byte, end-at)); err != nil {
		return 0, err
	}
	if err := out.Flush(); err != nil {
		return 0, err
	}
	if err := w.f.Truncate(end); err != nil {
		return 0, err
	}
	var super [blockSize]byte
	putSuper(super[:], uint32(end>>blockBits), metaBlock, len(l.inodes))
	_, err := w.f.WriteAt(super[:], 0)
	return end, err
}

func (n *inode) linkCount() uint32 {
	if n.Type() != TypeDir {
		return uint32(n.links)
	}
	count := uint32(2)
	for _, c := range n.children {
		if c.inode.Type() == TypeDir {
			count++
		}
	}
	return count
}

// compact moves the data of living files together, so that nothing a layer removed stays in the image.
// Moving in the order of the file only ever moves towards its start.
func (w *Writer) compact(inodes []*inode) error {
	var files []*inode
	for _, n := range inodes {
		if n.Type() == TypeRegular && n.Entry.Size > 0 {
			files = append(files, n)
		}
	}
	slices.SortFunc(files, func(a, b *inode) int { return cmp.Compare(a.dataAt, b.dataAt) })
	off, buf := int64(blockSize), make([]byte, 1<<20)
	for _, n := range files {
		size := roundUp(n.Entry.Size, blockSize)
		for done := int64(0); n.dataAt != off && done < size; {
			part := buf[:min(int64(len(buf)), size-done)]
			if _, err := w.f.ReadAt(part, n.dataAt+done); err != nil {
				return fmt.Errorf("compact image: %w", err)
			}
			if _, err := w.f.WriteAt(part, off+done); err != nil {
				return fmt.Errorf("compact image: %w", err)
			}
			done += int64(len(part))
		}
		n.dataAt = off
		off += size
	}
	w.off = off
	return nil
}
