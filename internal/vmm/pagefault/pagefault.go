// Package pagefault brings a restored machine's memory in as its guest touches it: a small process of its own serves the page faults of one
// monitor (userfaultfd(2)) in units of 64 KiB, from a file or from whatever else can be read at an offset, and notes which
// units a guest touches first, so that the next machine of the same snapshot gets them before it asks.
//
// The process holds nothing but what it was given: it has a user of its own, an empty folder as its root, no network unless its source
// needs one, and the machine's control group. When it dies, its machine is stuck and must be ended; no other is touched.
package pagefault

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Program is the name that the process goes by.
const Program = "tartarus-pages"

// Source is a snapshot's memory. ReadAt may be called concurrently and verifies what it returns where nobody did before.
type Source interface {
	io.ReaderAt
	io.Closer
}

// Holes is a Source that is somewhere else. All of it but its holes is brought in, in the background, so that its machine soon needs nothing but this host.
type Holes interface {
	// Hole reports whether a part of the memory is nothing but zeros, which need not be brought in.
	Hole(at, n int64) bool
}

// Opener opens a source in the process that serves it, before that gives its rights away.
type Opener func(spec json.RawMessage) (Source, error)

// order is what the process is told, on descriptor orderFD.
type order struct {
	UID     int             `json:"uid"`     // to become
	Monitor int             `json:"monitor"` // user of the only process that is served
	Root    string          `json:"root"`    // empty folder
	Size    int64           `json:"size"`    // of the memory
	Kind    string          `json:"kind"`    // of the source; empty for the file on memoryFD
	Spec    json.RawMessage `json:"spec,omitempty"`
}

// Descriptors that the process begins with.
const (
	orderFD   = 3
	listenFD  = 4
	workingFD = 5 // the working set, read and written
	memoryFD  = 6 // only when the source is a file
)

// Config describes the process to start.
type Config struct {
	Program string   // that calls Main first thing; empty is this program
	Args    []string // told apart by them, see the process list
	UID     int      // user of the process
	Monitor int      // user of the monitor
	Root    string   // an empty folder
	Socket  string   // where the monitor connects; made here
	Size    int64    // of the memory
	Memory  *os.File // the memory, or
	Kind    string   // what opens it
	Spec    json.RawMessage
	Working *os.File                // the working set
	NetNS   *os.File                // the network namespace of the process; nil is this one's
	Start   func(c *exec.Cmd) error // starts the process where it belongs; nil is Cmd.Start
}

// Available reports why a monitor of another user cannot hand its page faults over here; nil when it can.
func Available() error {
	// Faults of KVM happen in the kernel, which unprivileged processes may hand over through this device only, or when all may.
	if _, err := os.Stat("/dev/userfaultfd"); err == nil {
		return nil
	}
	if b, err := os.ReadFile("/proc/sys/vm/unprivileged_userfaultfd"); err == nil && len(b) > 0 && b[0] == '1' {
		return nil
	}
	return errors.New("the host has no /dev/userfaultfd (Linux 6.1)")
}

// Start starts the process, which listens on Socket by then. Its child is the caller's to wait for.
func Start(c Config) (cmd *exec.Cmd, err error) {
	if c.Program == "" {
		c.Program = "/proc/self/exe"
	}
	l, err := listen(c.Socket, c.Monitor)
	if err != nil {
		return nil, fmt.Errorf("start page-fault handler: %w", err)
	}
	defer l.Close()
	told, err := orderFile(order{UID: c.UID, Monitor: c.Monitor, Root: c.Root, Size: c.Size, Kind: c.Kind, Spec: c.Spec})
	if err != nil {
		return nil, fmt.Errorf("start page-fault handler: %w", err)
	}
	defer told.Close()
	cmd = exec.Command(c.Program, c.Args...)
	cmd.Args[0] = Program
	cmd.Env = []string{"GOMAXPROCS=2", "GOMEMLIMIT=64MiB"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{told, l, c.Working}
	if c.Memory != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, c.Memory)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	if c.Start == nil {
		c.Start = (*exec.Cmd).Start
	}
	if err := c.Start(cmd); err != nil {
		return nil, fmt.Errorf("start page-fault handler: %w", err)
	}
	return cmd, nil
}

// listen makes a socket that only the monitor's user can connect to.
func listen(path string, uid int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	if err := errors.Join(bind(fd, path), os.Chmod(path, 0o600), os.Chown(path, uid, uid), unix.Listen(fd, 1)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// bind gives a socket a name that may be longer than a socket's address.
func bind(fd int, path string) error {
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Bind(fd, &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(path)})
}

// orderFile puts the order where only the process reads it: a spec may hold keys.
func orderFile(o order) (*os.File, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("order", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "order")
	if _, err = f.Write(b); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
