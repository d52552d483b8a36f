package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/tartarus-sandbox/tartarus"
)

// Exec implements vmm.Execer.
func (m *machine) Exec(ctx context.Context, argv []string, stdout io.Writer) (int, error) {
	code, err := m.exec(ctx, argv, stdout)
	if err != nil {
		return 0, fmt.Errorf("execute in machine %s: %w", m.id, m.ended(err))
	}
	return code, nil
}

func (m *machine) exec(ctx context.Context, argv []string, stdout io.Writer) (int, error) {
	if len(argv) == 0 {
		return 0, tartarus.Errorf(tartarus.Invalid, "no command")
	}
	out, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer out.Close()
	args, null, err := execArgs(argv, w)
	if err != nil {
		w.Close()
		return 0, err
	}
	var pid int32
	err = call(ctx, m.dir, boot.ContMgrExecuteAsync, args, &pid)
	w.Close()
	null.Close()
	if err != nil {
		if remote(err) {
			return 0, tartarus.Errorf(tartarus.NotFound, "start %s: %w", argv[0], err)
		}
		return 0, err
	}
	c := follow(out, stdout)
	var status syscall.WaitStatus
	err = call(ctx, m.dir, boot.ContMgrWaitPID, &boot.WaitPIDArgs{PID: pid, CID: guestID}, &status)
	if cerr := c.finish(); err == nil {
		err = cerr
	}
	switch {
	case err != nil:
		return 0, err
	case status.Signaled():
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// copier copies what comes out of a process.
type copier struct {
	out   *os.File
	ended atomic.Bool
	done  chan error
}

func follow(out *os.File, to io.Writer) *copier {
	c := &copier{out: out, done: make(chan error, 1)}
	go func() { c.done <- c.copy(to) }()
	return c
}

// finish is called when the process has ended: what it wrote is in the pipe by then. Something that it left behind may
// hold the pipe for ever and go on writing, so nothing more is waited for.
func (c *copier) finish() error {
	c.ended.Store(true)
	_ = c.out.SetReadDeadline(time.Unix(1, 0)) // wakes the reader
	if err := <-c.done; err != nil {
		return fmt.Errorf("copy output: %w", err)
	}
	return nil
}

func (c *copier) copy(to io.Writer) error {
	buf := make([]byte, 64<<10)
	for !c.ended.Load() {
		n, err := c.out.Read(buf)
		if _, werr := to.Write(buf[:n]); werr != nil {
			return werr
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		}
	}
	return c.rest(to, buf)
}

// rest copies what is in the pipe, and no more than a pipe can hold.
func (c *copier) rest(to io.Writer, buf []byte) error {
	conn, err := c.out.SyscallConn()
	if err != nil {
		return err
	}
	const most = 1 << 20 // pipe(7), pipe-max-size
	for total := 0; total < most; {
		n, rerr := 0, error(nil)
		if err := conn.Control(func(fd uintptr) { n, rerr = unix.Read(int(fd), buf) }); err != nil {
			return err
		}
		switch {
		case errors.Is(rerr, unix.EINTR):
			continue
		case errors.Is(rerr, unix.EAGAIN):
			return nil
		case rerr != nil:
			return rerr
		case n == 0:
			return nil
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return err
		}
		total += n
	}
	return nil
}

// execArgs describes argv as root with the powers of the guest's first process.
func execArgs(argv []string, out *os.File) (*control.ExecArgs, *os.File, error) {
	caps, err := specutils.Capabilities(true, &specs.LinuxCapabilities{
		Bounding: capabilities, Effective: capabilities, Permitted: capabilities, Inheritable: capabilities,
	})
	if err != nil {
		return nil, nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		return nil, nil, err
	}
	return &control.ExecArgs{
		Argv: argv, Envv: []string{defaultPath}, WorkingDirectory: "/", Capabilities: caps, ContainerID: guestID,
		FilePayload: control.NewFilePayload(map[int]*os.File{0: null, 1: out, 2: out}, nil),
	}, null, nil
}

// ended replaces the error of a call that failed because the guest is gone.
func (m *machine) ended(err error) error {
	if err != nil && m.handle.Ended() {
		return tartarus.Errorf(tartarus.GuestGone, "machine %s has ended: %w", m.id, err)
	}
	return err
}
