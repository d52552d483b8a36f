// Package mounted makes volumes files in a guest: a helper process for each, which mounts a FUSE file system and asks the node over
// connections that the agent hands it. The agent never serves files that its own children might need to start, and a
// guest whose node is away waits, as for a slow disk, and loses nothing.
package mounted

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// controlFD is where a helper finds the socket that leads to the agent.
const controlFD = 3

// Check refuses places where a volume cannot be.
func Check(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" || len(path) > unix.PathMax-1 {
		return tartarus.Errorf(tartarus.Invalid, "a volume's path must be absolute, clean and not the root, unlike %.80q", path)
	}
	return nil
}

// Helper is the helper process: it mounts at path, says so, and serves. It ends when the file system is unmounted.
func Helper(ctx context.Context, path string) error {
	if err := Check(path); err != nil {
		return err
	}
	control, err := net.FileConn(os.NewFile(controlFD, "control"))
	if err != nil {
		return fmt.Errorf("find the agent: %w", err)
	}
	agent, ok := control.(*net.UnixConn)
	if !ok {
		return errors.New("find the agent: descriptor 3 is no unix socket")
	}
	defer agent.Close()
	fd, err := mount(path)
	if err != nil {
		_, werr := agent.Write([]byte(err.Error()))
		return errors.Join(err, werr)
	}
	defer unix.Close(fd)
	s := newServer(fd, newLink())
	go receive(agent, s.link)
	if _, err := agent.Write([]byte(mountedWord)); err != nil {
		return fmt.Errorf("tell the agent: %w", err)
	}
	return s.run(ctx)
}

// mountedWord is what a helper says when its volume is mounted; anything else is why it is not.
const mountedWord = "mounted"

// mount makes the folder and mounts on it.
func mount(path string) (fd int, err error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return -1, fmt.Errorf("make %s: %w", path, err)
	}
	fd, err = openDevice()
	if err != nil {
		return -1, err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", fd)
	if err := unix.Mount("volume", path, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount a volume on %s: %w", path, err)
	}
	return fd, nil
}

// openDevice opens /dev/fuse, and makes it where a root file system does not bring it.
func openDevice() (int, error) {
	const device = "/dev/fuse"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		if err := unix.Mknod(device, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))); err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, fmt.Errorf("make %s: %w", device, err)
		}
		fd, err = unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", device, err)
	}
	return fd, nil
}

// receive takes connections to the node from the agent, until it is gone.
func receive(agent *net.UnixConn, l *link) {
	buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	for {
		n, on, _, _, err := agent.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			return
		}
		if conn, err := received(oob[:on]); err == nil {
			l.attach(conn)
		}
	}
}

func received(oob []byte) (net.Conn, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages: %w", len(messages), errors.Join(err, unix.EINVAL))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors: %w", len(fds), errors.Join(err, unix.EINVAL))
	}
	syscall.CloseOnExec(fds[0])
	f := os.NewFile(uintptr(fds[0]), "node")
	defer f.Close()
	return net.FileConn(f)
}
