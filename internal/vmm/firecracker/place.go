package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/disk"
)

// sharedName is the folder with copies of files that are on another file system than the jails.
const sharedName = "shared"

// placePath opens a file and places it.
func (d *Driver) placePath(ctx context.Context, from, to string) error {
	f, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return tartarus.Errorf(tartarus.NotFound, "%s does not exist", filepath.Base(from))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return d.place(ctx, f, to)
}

// place puts a file that the monitor only reads into a jail: as another name of the same file, so that all machines share its pages.
// The file stays root's; that everybody may read it changes nothing where its folder is root's alone.
func (d *Driver) place(ctx context.Context, f *os.File, to string) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return tartarus.Errorf(tartarus.Invalid, "%s is no regular file", filepath.Base(f.Name()))
	}
	if info.Mode().Perm()&0o004 == 0 {
		if err := f.Chmod(info.Mode().Perm() | 0o444); err != nil {
			return err
		}
	}
	err = linkFile(f, to)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EMLINK) {
		return d.placeCopy(ctx, f, info, to)
	}
	return err
}

func inSelf(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// linkFile gives an open file another name.
func linkFile(f *os.File, to string) error {
	if err := unix.Linkat(unix.AT_FDCWD, inSelf(f), unix.AT_FDCWD, to, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.LinkError{Op: "link", Old: f.Name(), New: to, Err: err}
	}
	return nil
}

// placeCopy places a copy that all machines share. Copies that no machine has a name for any more go first.
func (d *Driver) placeCopy(ctx context.Context, f *os.File, info fs.FileInfo, to string) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("copy image: no inode")
	}
	shared := filepath.Join(d.dir, sharedName)
	name := filepath.Join(shared, fmt.Sprintf("%x-%x-%x-%x", st.Dev, st.Ino, info.Size(), info.ModTime().UnixNano()))
	if err := os.Link(name, to); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	d.log.Warn("image is on another file system than the machines: it is copied, once", "image", f.Name())
	d.dropCopies(shared)
	tmp, err := os.CreateTemp(shared, "new-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // its other names stay
	defer tmp.Close()
	if err := copyFile(ctx, tmp, f); err != nil {
		return fmt.Errorf("copy image: %w", err)
	}
	if err := tmp.Chmod(0o444); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), to); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (d *Driver) dropCopies(shared string) {
	entries, err := os.ReadDir(shared)
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink == 1 {
				_ = os.Remove(filepath.Join(shared, e.Name())) // for room only
			}
		}
	}
}

// copyFile makes to, which is empty, a copy of from: the same blocks where the file system can share them, else what is not a
// hole.
func copyFile(ctx context.Context, to, from *os.File) error {
	if unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil {
		return nil
	}
	return disk.CopySparse(ctx, to, from)
}

// copyRange copies a part of a file to the same place of another.
func copyRange(ctx context.Context, to, from *os.File, begin, end int64) error {
	const step = 16 << 20 // between two looks at ctx
	for at := begin; at < end; at += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(step, end-at)
		// OffsetWriter and SectionReader leave both files' offsets alone.
		if _, err := io.Copy(io.NewOffsetWriter(to, at), io.NewSectionReader(from, at, n)); err != nil {
			return err
		}
	}
	return nil
}

// eachExtent calls f for each part of a file that is not a hole.
func eachExtent(file *os.File, size int64, f func(begin, end int64) error) error {
	own, err := os.Open(inSelf(file)) // with an offset of its own
	if err != nil {
		return err
	}
	defer own.Close()
	for at := int64(0); at < size; {
		begin, err := unix.Seek(int(own.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if errors.Is(err, unix.EINVAL) { // not told by this file system
			return f(at, size)
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(own.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := f(begin, min(end, size)); err != nil {
			return err
		}
		at = end
	}
	return nil
}
