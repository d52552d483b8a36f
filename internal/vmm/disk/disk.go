// Package disk makes and copies the writable layers of virtual machines: ext4 file systems in sparse files of exactly the size
// that a sandbox may write. Nothing here ever reads what a guest has written; the host only moves its bytes.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

const (
	// makeTimeout bounds mkfs.ext4. Measured: 35 ms for 512 MiB, 90 ms for 64 GiB.
	makeTimeout = 30 * time.Second

	// mostKept bounds how many sizes of empty file system a cache keeps, at about 0.5 MB each.
	mostKept = 32

	// smallest is what mkfs.ext4 needs for a file system of its usual shape.
	smallest = 2
)

// Cache keeps empty file systems, one of each size, so that a start copies half a megabyte instead of running mkfs.
type Cache struct {
	Dir string // made when absent
}

// Make makes path, which must not exist, an empty file system of sizeMB.
func (c Cache) Make(ctx context.Context, path string, sizeMB int64) error {
	if sizeMB < smallest {
		return tartarus.Errorf(tartarus.Invalid, "a disk of %d MiB is too small: the least is %d", sizeMB, smallest)
	}
	kept := filepath.Join(c.Dir, strconv.FormatInt(sizeMB, 10)+".ext4")
	if _, err := os.Stat(kept); errors.Is(err, fs.ErrNotExist) {
		if err := c.keep(ctx, kept, sizeMB); err != nil {
			return fmt.Errorf("make disk of %d MiB: %w", sizeMB, err)
		}
	}
	return Copy(ctx, kept, path)
}

// keep puts a file system into the cache. Others may do the same at the same time: the last one stays, and all are equal.
func (c Cache) keep(ctx context.Context, kept string, sizeMB int64) error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	if others, err := filepath.Glob(filepath.Join(c.Dir, "*.ext4")); err == nil && len(others) >= mostKept {
		for _, o := range others {
			_ = os.Remove(o) // gone already is as good
		}
	}
	f, err := os.CreateTemp(c.Dir, "new")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(f.Truncate(sizeMB<<20), f.Close()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, makeTimeout)
	defer cancel()
	// No journal: a snapshot has the page cache with the disk, and a disk without its memory is thrown away or checked. No blocks kept for
	// root: all of it is the sandbox's. An inode for each 16 KiB, as ext4 has it on disks of usual size.
	cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-O", "^has_journal,^resize_inode", "-m", "0", "-i", "16384",
		"-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", f.Name())
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return tartarus.Errorf(tartarus.Unsupported, "mkfs.ext4 is missing: install e2fsprogs")
	}
	if err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %.300s", err, out)
	}
	return os.Rename(f.Name(), kept)
}

// Copy makes to, which must not exist, a copy of from with the same holes. Where the file system can, the two share their blocks until one
// of them changes (FICLONE); otherwise what is there is copied. When it fails nothing is left of to.
func Copy(ctx context.Context, from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy disk: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("copy disk: %w", err)
	}
	defer func() {
		err = errors.Join(err, out.Close())
		if err != nil {
			_ = os.Remove(to)
		}
	}()
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	if err := CopySparse(ctx, out, in); err != nil {
		return fmt.Errorf("copy disk: %w", err)
	}
	return nil
}
