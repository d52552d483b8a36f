package mounted

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// Mounts is the agent's side: the helpers, by the path of their volume.
type Mounts struct {
	// Start starts a helper for a path with a socket as its descriptor 3. Nil starts this program again; tests have their own way.
	Start func(path string, control *os.File) error

	mu      sync.Mutex
	helpers map[string]*net.UnixConn
}

// maxMounts bounds the helpers of a guest.
const maxMounts = 16

// startTime is how long a helper may take to mount.
const startTime = 10 * time.Second

// Ensure mounts a volume at path, unless its helper is there from before.
func (m *Mounts) Ensure(ctx context.Context, path string) error {
	if err := Check(path); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.helpers[path]; old != nil {
		if alive(old) {
			return nil
		}
		old.Close()
		delete(m.helpers, path)
		// What its helper left answers nobody.
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	if len(m.helpers) >= maxMounts {
		return tartarus.Errorf(tartarus.TooLarge, "there are %d volumes already", maxMounts)
	}
	ours, theirs, err := pair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	start := m.Start
	if start == nil {
		start = startSelf
	}
	if err := start(path, theirs); err != nil {
		ours.Close()
		return fmt.Errorf("start the helper of %s: %w", path, err)
	}
	theirs.Close() // so that its end is seen
	if err := awaitMounted(ctx, ours); err != nil {
		ours.Close()
		return err
	}
	if m.helpers == nil {
		m.helpers = map[string]*net.UnixConn{}
	}
	m.helpers[path] = ours
	return nil
}

// Connect gives the helper of a path a connection to the node. The caller closes its own end of it.
func (m *Mounts) Connect(path string, conn *os.File) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	helper := m.helpers[path]
	if helper == nil {
		return tartarus.Errorf(tartarus.NotFound, "no volume is mounted at %s", path)
	}
	if _, _, err := helper.WriteMsgUnix([]byte{1}, unix.UnixRights(int(conn.Fd())), nil); err != nil {
		return fmt.Errorf("hand over connection: %w", err)
	}
	return nil
}

// Close lets go of the helpers. They serve on.
func (m *Mounts) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for path, helper := range m.helpers {
		helper.Close()
		delete(m.helpers, path)
	}
}

// pair makes two connected sockets.
func pair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make sockets: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "control")
	mine := os.NewFile(uintptr(fds[0]), "helper")
	defer mine.Close()
	c, err := net.FileConn(mine)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make sockets: %w", err)
	}
	return c.(*net.UnixConn), theirs, nil
}

func awaitMounted(ctx context.Context, c *net.UnixConn) error {
	deadline := time.Now().Add(startTime)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.SetReadDeadline(deadline); err != nil {
		return fmt.Errorf("wait for the helper: %w", err)
	}
	buf := make([]byte, 1024)
	n, err := c.Read(buf)
	switch said := string(buf[:n]); {
	case err != nil || n == 0:
		return fmt.Errorf("the helper of the volume ended: %w", errors.Join(err, unix.EPIPE))
	case said != mountedWord:
		return tartarus.Errorf(tartarus.Unsupported, "%s", said)
	}
	return c.SetReadDeadline(time.Time{})
}

// alive reports whether a helper is still there: it says nothing more, so that whatever can be read is its end.
func alive(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	gone := true
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = !errors.Is(err, unix.EAGAIN)
	})
	return err == nil && !gone
}

// startSelf runs this program as a helper. Whoever collects the agent's children collects it too.
func startSelf(path string, control *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"tartarus-guest", "-volume", path}, &syscall.ProcAttr{
		Dir: "/", Env: []string{"GOGC=50"}, Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), control.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	go func() {
		var ws syscall.WaitStatus
		for { // a second collector finds nothing to do
			if _, err := syscall.Wait4(pid, &ws, 0, nil); !errors.Is(err, syscall.EINTR) {
				return
			}
		}
	}()
	return nil
}
