package gvisor

import (
	"context"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/tartarus-sandbox/tartarus"
)

// lateOutput is how long output is still read after the process has ended: something it left behind may hold
// its end of the pipe for ever.
const lateOutput = 100 * time.Millisecond

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
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(stdout, out)
		copied <- err
	}()
	var status syscall.WaitStatus
	err = call(ctx, m.dir, boot.ContMgrWaitPID, &boot.WaitPIDArgs{PID: pid, CID: guestID}, &status)
	_ = out.SetReadDeadline(time.Now().Add(lateOutput))
	if cerr := <-copied; err == nil && cerr != nil && !os.IsTimeout(cerr) {
		err = fmt.Errorf("copy output: %w", cerr)
	}
	switch {
	case err != nil:
		return 0, err
	case status.Signaled():
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
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
