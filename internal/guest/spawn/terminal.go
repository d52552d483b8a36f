package spawn

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// Terminal is a pseudo-terminal. The agent keeps the process's end open too until the process is dead: were nobody else
// to hold it for a moment, reading would fail as if all were over, and many a program closes its end before it exits.
type Terminal struct {
	master, slave *os.File
}

// maxSide bounds rows and columns: the kernel keeps them in 16 bits.
const maxSide = 1<<16 - 1

// openTerminal makes a pseudo-terminal whose other end belongs to uid. The caller closes both.
func openTerminal(cols, rows uint32, uid, gid uint32) (t *Terminal, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	master := os.NewFile(uintptr(fd), "/dev/ptmx") // non-blocking, so deadlines work
	defer func() {
		if err != nil {
			master.Close()
		}
	}()
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock pseudo-terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, fmt.Errorf("name pseudo-terminal: %w", err)
	}
	path := "/dev/pts/" + strconv.Itoa(n)
	// Not by package os, which would make it non-blocking, and that is a thing both ends of a fork share.
	slaveFD, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	slave := os.NewFile(uintptr(slaveFD), path)
	defer func() {
		if err != nil {
			slave.Close()
		}
	}()
	// Programs such as su and screen open their terminal again by name.
	if err := slave.Chown(int(uid), int(gid)); err != nil {
		return nil, err
	}
	t = &Terminal{master: master, slave: slave}
	return t, t.Resize(cols, rows)
}

// Resize sets the size; the kernel tells the foreground process group with SIGWINCH.
func (t *Terminal) Resize(cols, rows uint32) error {
	if cols > maxSide || rows > maxSide {
		return tartarus.Errorf(tartarus.Invalid, "terminal size %d×%d is over %d", cols, rows, maxSide)
	}
	size := &unix.Winsize{Col: uint16(cols), Row: uint16(rows)}
	raw, err := t.master.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) })
	if err := errors.Join(err, set); err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

// Release gives up the process's end, once the process is dead.
func (t *Terminal) Release() { t.slave.Close() }
