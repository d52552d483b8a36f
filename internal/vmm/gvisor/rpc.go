package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/control/client"
	"gvisor.dev/gvisor/pkg/control/server"
	"gvisor.dev/gvisor/pkg/urpc"
)

// controlName is the sandbox's control socket, inside the machine's folder. Only root can reach it.
const controlName = "control"

// listen binds the control socket in dir. It goes through the folder's descriptor, because a socket's path may
// have no more than 107 bytes.
func listen(dir *os.File) (*os.File, error) {
	fd, err := server.CreateSocket(filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), controlName))
	if err != nil {
		return nil, fmt.Errorf("bind control socket: %w", err)
	}
	return os.NewFile(uintptr(fd), controlName), nil
}

// session is a connection to a sandbox's control server.
type session struct{ conn *urpc.Client }

func dial(dir string) (*session, error) {
	fd, err := unix.Open(filepath.Join(dir, controlName), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	defer unix.Close(fd)
	conn, err := client.ConnectTo(filepath.Join("/proc/self/fd", strconv.Itoa(fd)))
	if err != nil {
		return nil, fmt.Errorf("connect to sandbox: %w", err)
	}
	return &session{conn: conn}, nil
}

// call makes one call. When ctx ends first, the connection is of no use any more.
func (s *session) call(ctx context.Context, method string, arg, result any) error {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.Socket.Shutdown() })
	defer stop()
	err := s.conn.Call(method, arg, result)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

func (s *session) close() { _ = s.conn.Close() }

// call opens a session for one call.
func call(ctx context.Context, dir, method string, arg, result any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s, err := dial(dir)
	if err != nil {
		return err
	}
	defer s.close()
	return s.call(ctx, method, arg, result)
}

// remote reports whether the sandbox itself answered with an error.
func remote(err error) bool {
	_, ok := errors.AsType[urpc.RemoteError](err)
	return ok
}
