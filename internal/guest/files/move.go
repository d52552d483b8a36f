package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// move renames, and copies where the two names are on different file systems: a sandbox may have its /tmp on
// one of its own.
func move(source, target string) error {
	err := os.Rename(source, target)
	if !errors.Is(err, syscall.EXDEV) {
		return err
	}
	if target == source || strings.HasPrefix(target, source+"/") {
		return tartarus.Errorf(tartarus.Invalid, "'%s' cannot be moved into itself", source)
	}
	// Beside the target, so that the last step is a rename and nobody sees half a copy.
	stage, err := os.MkdirTemp(filepath.Dir(target), ".move-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(stage)
	copied := filepath.Join(stage, "copy")
	if err := copyTree(source, copied); err != nil {
		return fmt.Errorf("copy '%s': %w", source, err)
	}
	if err := os.Rename(copied, target); err != nil {
		return err
	}
	return os.RemoveAll(source)
}

// copyTree copies a file, link or folder with permissions, times, metadata and, where the user may
// set it, ownership.
func copyTree(source, target string) error {
	st, err := os.Lstat(source)
	if err != nil {
		return err
	}
	switch {
	case st.IsDir():
		if err := os.Mkdir(target, 0o700); err != nil {
			return err
		}
		names, err := os.ReadDir(source)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := copyTree(filepath.Join(source, n.Name()), filepath.Join(target, n.Name())); err != nil {
				return err
			}
		}
	case st.Mode()&fs.ModeSymlink != 0:
		to, err := os.Readlink(source)
		if err != nil {
			return err
		}
		if err := os.Symlink(to, target); err != nil {
			return err
		}
	case st.Mode().IsRegular():
		if err := copyFile(source, target); err != nil {
			return err
		}
	default:
		return tartarus.Errorf(tartarus.Invalid, "'%s' is neither file, folder nor link and cannot leave its file system", source)
	}
	return copyAttributes(source, target, st)
}

func copyFile(source, target string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = io.Copy(out, in); err == nil {
		err = writeMetadata(int(out.Fd()), readMetadata(source))
	}
	return errors.Join(err, out.Close())
}

func copyAttributes(source, target string, st fs.FileInfo) error {
	uid, gid := owner(st)
	if err := os.Lchown(target, int(uid), int(gid)); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if st.Mode()&fs.ModeSymlink != 0 {
		return nil
	}
	if err := os.Chmod(target, st.Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
		return err
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(st.ModTime().UnixNano())}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, target, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time of '%s': %w", target, err)
	}
	return nil
}
