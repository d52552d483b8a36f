package source

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
)

// AddDir adds a folder as the image's root. It stays on the folder's file system: of what is mounted below, only
// the mount points come along. Found is called with the number of entries so far, now and then.
func AddDir(ctx context.Context, w *erofs.Writer, dir string, found func(int64)) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return invalid("open folder", err)
	}
	defer root.Close()
	info, err := root.Stat(".")
	if err != nil {
		return fmt.Errorf("read folder: %w", err)
	}
	d := dirReader{w: w, root: root, dir: dir, device: info.Sys().(*syscall.Stat_t).Dev, first: map[uint64]string{}}
	count := int64(0)
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if count++; count%1000 == 0 {
			found(count)
		}
		return d.add(name, entry)
	})
	if err != nil {
		return invalid("read folder "+dir, err)
	}
	return nil
}

type dirReader struct {
	w      *erofs.Writer
	root   *os.Root
	dir    string
	device uint64
	first  map[uint64]string // inode number of a file with several names to the first of them
}

func (d *dirReader) add(name string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	e := erofs.Entry{
		Path: name, Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid, ModTime: info.ModTime(),
		Major: unix.Major(uint64(st.Rdev)), Minor: unix.Minor(uint64(st.Rdev)),
	}
	if uint64(st.Dev) != d.device {
		if e.Type() != erofs.TypeDir {
			return nil // a file mounted over a file
		}
		if err := d.w.Add(e, nil); err != nil {
			return err
		}
		return fs.SkipDir
	}
	if e.Xattrs, err = xattrs(filepath.Join(d.dir, name)); err != nil {
		return err
	}
	switch e.Type() {
	case erofs.TypeSymlink:
		if e.Target, err = d.root.Readlink(name); err != nil {
			return err
		}
	case erofs.TypeRegular:
		if st.Nlink > 1 {
			if target, ok := d.first[st.Ino]; ok {
				return d.w.Link(name, target)
			}
			d.first[st.Ino] = name
		}
		return d.addFile(name, e, st.Ino)
	}
	return d.w.Add(e, nil)
}

func (d *dirReader) addFile(name string, e erofs.Entry, ino uint64) error {
	// Non-blocking, in case a pipe took the file's place meanwhile.
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Sys().(*syscall.Stat_t).Ino != ino {
		return tartarus.Errorf(tartarus.Conflict, "%s changed while it was read", name)
	}
	e.Size = info.Size()
	return d.w.Add(e, f)
}

func xattrs(path string) (map[string]string, error) {
	// 64 KiB is the kernel's limit for a list and for a value.
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil || n == 0 {
		return nil, nil // most file systems have none, some no such call
	}
	out := map[string]string{}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		m, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("read %s of %s: %w", name, path, err)
		}
		if !strings.HasPrefix(name, "security.selinux") { // the label of this host means nothing elsewhere
			out[name] = string(value[:m])
		}
	}
	return out, nil
}
