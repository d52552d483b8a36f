package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a waiting process looks: the kernel's own waiting cannot be ended by a context.
const lockPoll = 20 * time.Millisecond

// lock takes the named lock for this process and all others; a lock ends with its process.
func (s *Store) lock(ctx context.Context, name string) (unlock func(), err error) {
	path := filepath.Join(s.dir, "locks", strings.ReplaceAll(name, "/", "+"))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock templates: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock templates: %w", err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another build of %s: %w", name, context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

// temp makes a file for an image that is being written. Its lock tells other processes that its builder lives.
func (s *Store) temp() (*os.File, error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "image-*")
	if err != nil {
		return nil, fmt.Errorf("make image file: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		os.Remove(f.Name())
		return nil, fmt.Errorf("lock image file: %w", err)
	}
	return f, nil
}

// youngest is the age below which a file or folder in tmp is left alone: it may not be locked yet.
const youngest = time.Minute

// sweep deletes what builders left behind that were killed.
func (s *Store) sweep() {
	entries, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if err != nil {
		return
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, "tmp", e.Name())
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < youngest {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(path)
		}
		f.Close()
	}
}
