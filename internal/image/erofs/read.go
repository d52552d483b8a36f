package erofs

import (
	"fmt"
	"io"
	"io/fs"
	"os"

	goerofs "github.com/erofs/go-erofs"

	"github.com/tartarus-sandbox/tartarus"
)

// CopyImage adds everything in the image src for whose path skip is not true. Hard links stay hard links.
func CopyImage(w *Writer, src *os.File, skip func(path string) bool) error {
	img, err := goerofs.Open(src)
	if err != nil {
		return &tartarus.Error{Kind: tartarus.Corrupt, Message: fmt.Sprintf("open image %s: %v", src.Name(), err), Err: err}
	}
	first := map[int64]string{} // inode number to the name that was copied
	err = fs.WalkDir(img, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if skip(name) {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*goerofs.Stat)
		if !ok {
			return fmt.Errorf("%s has no inode", name)
		}
		if target, ok := first[st.Ino]; ok && !d.IsDir() {
			return w.Link(name, target)
		}
		first[st.Ino] = name
		return copyEntry(w, img, src, name, info, st)
	})
	if err != nil {
		return fmt.Errorf("copy image %s: %w", src.Name(), err)
	}
	return nil
}

func copyEntry(w *Writer, img fs.FS, src *os.File, name string, info fs.FileInfo, st *goerofs.Stat) error {
	e := Entry{
		// go-erofs leaves setuid, setgid and sticky where Unix has them.
		Path: name, Mode: UnixMode(info.Mode()) | uint32(info.Mode())&0o7000, UID: st.UID, GID: st.GID, ModTime: info.ModTime(),
		Major: st.Rdev >> 8 & 0xfff, Minor: st.Rdev&0xff | st.Rdev>>12&0xfff00, Xattrs: st.Xattrs,
	}
	switch e.Type() {
	case TypeSymlink:
		target, err := fs.ReadLink(img, name)
		if err != nil {
			return err
		}
		e.Target = target
	case TypeRegular:
		e.Size = info.Size()
		// Files of our own images are one run of blocks: read that from the file, in large pieces.
		if dr, ok := info.(interface{ DataRange() []goerofs.DataRange }); ok {
			if runs := dr.DataRange(); len(runs) == 1 && runs[0].Offset > 0 {
				return w.Add(e, io.NewSectionReader(src, runs[0].Offset, e.Size))
			}
		}
		f, err := img.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return w.Add(e, f)
	}
	return w.Add(e, nil)
}
