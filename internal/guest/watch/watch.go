// Package watch tells of changes below a folder, folders that come later included. An event is told or the
// Watcher fails: none is lost silently.
//
// It speaks inotify directly. Queueing is the kernel's: a reader that is slow costs the agent nothing, and
// one that is too slow learns that events were lost.
package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// Op is a kind of change.
type Op uint8

// The kinds.
const (
	Create Op = iota + 1
	Write
	Remove
	Rename
	Chmod
)

// Event is one change. The Name is relative to the watched folder; the folder itself is ".".
type Event struct {
	Name string
	Op   Op
}

// maxFolders bounds the folders of one recursive Watcher; each costs about 1 KiB of kernel memory.
const maxFolders = 65536

const mask = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_MODIFY | unix.IN_ATTRIB |
	unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// Watcher watches one folder. It is for one goroutine, except Close.
type Watcher struct {
	root      string
	recursive bool
	act       func(func() error) error
	file      *os.File
	fd        int
	folders   map[int32]string // watch descriptor to path relative to root
	// told holds what was announced as created when a new folder was looked through. The kernel's own event for
	// the same creation may still be queued.
	told    map[string]bool
	pending []Event
	buf     []byte
}

// New watches root, and everything below it when recursive. act runs a function with the permissions of whoever
// watches; folders they may not read are not watched.
func New(root string, recursive bool, act func(func() error) error) (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, limits(fmt.Errorf("watch %s: %w", root, err))
	}
	w := &Watcher{
		root: root, recursive: recursive, act: act, fd: fd,
		file: os.NewFile(uintptr(fd), "inotify"), folders: make(map[int32]string), told: make(map[string]bool),
	}
	err = act(func() error {
		if err := readable(root); err != nil {
			return err
		}
		return w.add(".", false)
	})
	if err != nil {
		w.Close()
		return nil, err
	}
	clear(w.told)
	return w, nil
}

// readable checks what Linux asks of those who watch a folder. gVisor forgets to.
func readable(root string) error {
	f, err := os.Open(root)
	if err != nil {
		return err
	}
	return f.Close()
}

// Close ends a Next that waits and frees the watches.
func (w *Watcher) Close() error { return w.file.Close() }

// add watches a folder and, if recursive, those below it. With announce, everything found is told as created. Only
// trouble with the root or with limits is an error: anything else may vanish or be forbidden at any time.
func (w *Watcher) add(name string, announce bool) error {
	path := filepath.Join(w.root, name)
	flags := uint32(mask)
	if name != "." {
		flags |= unix.IN_DONT_FOLLOW
	}
	wd, err := unix.InotifyAddWatch(w.fd, path, flags)
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM), err == nil && len(w.folders) >= maxFolders:
		return tartarus.Errorf(tartarus.Exhausted, "watch %s: too many folders", path)
	case err != nil && name == ".":
		return fmt.Errorf("watch %s: %w", path, err)
	case err != nil:
		return nil
	}
	w.folders[int32(wd)] = name
	if !w.recursive {
		return nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		child := filepath.Join(name, e.Name())
		if announce {
			w.told[child] = true
			w.pending = append(w.pending, Event{child, Create})
		}
		if e.IsDir() {
			if err := w.add(child, announce); err != nil {
				return err
			}
		}
	}
	return nil
}

// Next waits for changes. After an error the Watcher is of no use any more; when ctx ends, its error.
func (w *Watcher) Next(ctx context.Context) ([]Event, error) {
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = w.file.SetReadDeadline(time.Unix(1, 0)) // closed already: then Read returns anyway
		close(fired)
	})
	defer func() {
		if !stop() {
			<-fired
		}
	}()
	w.pending = nil
	if w.buf == nil {
		w.buf = make([]byte, 16<<10) // some hundred events
	}
	for len(w.pending) == 0 {
		n, err := w.file.Read(w.buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, fmt.Errorf("watch %s: %w", w.root, err)
		}
		if err := w.act(func() error { return w.take(w.buf[:n]) }); err != nil {
			return nil, err
		}
		// TIOCINQ is FIONREAD under its other name.
		if n, err := unix.IoctlGetInt(w.fd, unix.TIOCINQ); err == nil && n == 0 {
			clear(w.told) // what was queued while we looked through a folder has been read
		}
	}
	return w.pending, nil
}

// take goes through what the kernel queued.
func (w *Watcher) take(buf []byte) error {
	for len(buf) >= unix.SizeofInotifyEvent {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&buf[0]))
		end := unix.SizeofInotifyEvent + int(e.Len)
		if end > len(buf) {
			break
		}
		name := strings.TrimRight(string(buf[unix.SizeofInotifyEvent:end]), "\x00")
		if err := w.handle(e.Wd, e.Mask, name); err != nil {
			return err
		}
		buf = buf[end:]
	}
	return nil
}

func (w *Watcher) handle(wd int32, what uint32, name string) error {
	if what&unix.IN_Q_OVERFLOW != 0 {
		return tartarus.Errorf(tartarus.Exhausted, "watch %s: changes came faster than they were read, and some are lost", w.root)
	}
	folder, known := w.folders[wd]
	if what&unix.IN_IGNORED != 0 {
		delete(w.folders, wd)
		return nil
	}
	// A folder below tells of itself through its parent too.
	if !known || name == "" && folder != "." {
		return nil
	}
	full := filepath.Join(folder, name)
	isDir := what&unix.IN_ISDIR != 0 && name != ""
	if what&unix.IN_MOVED_FROM != 0 && isDir {
		w.drop(full)
	}
	duplicate := what&unix.IN_CREATE != 0 && w.told[full]
	if what&(unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_CREATE) != 0 {
		delete(w.told, full)
	}
	if !duplicate {
		w.tell(full, what)
	}
	if isDir && w.recursive && !duplicate && what&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0 {
		// A folder that was moved here arrives as one thing; in one that was made, things may have been made since.
		return w.add(full, what&unix.IN_CREATE != 0)
	}
	return nil
}

func (w *Watcher) tell(name string, what uint32) {
	for _, m := range []struct {
		bits uint32
		op   Op
	}{
		{unix.IN_CREATE | unix.IN_MOVED_TO, Create},
		{unix.IN_MOVED_FROM | unix.IN_MOVE_SELF, Rename},
		{unix.IN_ATTRIB, Chmod},
		{unix.IN_MODIFY, Write},
		{unix.IN_DELETE | unix.IN_DELETE_SELF, Remove},
	} {
		if what&m.bits != 0 {
			w.pending = append(w.pending, Event{name, m.op})
		}
	}
}

// drop stops watching a folder that was moved away, and those below it.
func (w *Watcher) drop(name string) {
	for wd, folder := range w.folders {
		if folder == name || strings.HasPrefix(folder, name+"/") {
			_, _ = unix.InotifyRmWatch(w.fd, uint32(wd)) // it may have been deleted already
			delete(w.folders, wd)
		}
	}
}

func limits(err error) error {
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) {
		return &tartarus.Error{Kind: tartarus.Exhausted, Message: "too many watchers", Err: err}
	}
	return err
}

// NetworkMount reports whether path lies on a file system whose changes may happen on another machine, where
// inotify does not see them.
func NetworkMount(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC:
		return true, nil
	}
	return false, nil
}
