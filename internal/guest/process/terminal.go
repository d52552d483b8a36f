package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// terminal is the agent's end of a pseudo-terminal.
type terminal struct {
	master *os.File
}

// maxSide bounds rows and columns: the kernel keeps them in 16 bits.
const maxSide = 1<<16 - 1

// openTerminal makes a pseudo-terminal whose other end belongs to uid. The caller closes both.
func openTerminal(cols, rows uint32, uid, gid uint32) (t *terminal, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	master := os.NewFile(uintptr(fd), "/dev/ptmx") // non-blocking, so deadlines work
	defer func() {
		if err != nil {
			master.Close()
		}
	}()
	t = &terminal{master: master}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, fmt.Errorf("unlock pseudo-terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, nil, fmt.Errorf("name pseudo-terminal: %w", err)
	}
	path := "/dev/pts/" + strconv.Itoa(n)
	slaveFD, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", path, err)
	}
	slave = os.NewFile(uintptr(slaveFD), path)
	// Programs such as su and screen open their terminal again by name.
	if err := unix.Fchown(slaveFD, int(uid), int(gid)); err != nil {
		slave.Close()
		return nil, nil, fmt.Errorf("chown %s: %w", path, err)
	}
	if err := t.resize(cols, rows); err != nil {
		slave.Close()
		return nil, nil, err
	}
	return t, slave, nil
}

// resize sets the size; the kernel tells the foreground process group with SIGWINCH.
func (t *terminal) resize(cols, rows uint32) error {
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

// endOfTerminal reports whether err is how a master tells that nobody holds the other end any more.
func endOfTerminal(err error) bool { return errors.Is(err, syscall.EIO) }
