package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

// process is a command that runs in a sandbox.
type process interface {
	// PID is its number in the guest.
	PID() int
	// Next waits for the next piece of output or the end; an error when the context of Start ends. After the end there is
	// nothing more.
	Next() (event, error)
	// Feed gives the process all that r yields, and returns when it has taken it.
	Feed(ctx context.Context, r io.Reader) error
	// CloseStdin tells it that no more comes. Not for a process with a terminal.
	CloseStdin(ctx context.Context) error
	Resize(ctx context.Context, size windowSize) error
	Signal(ctx context.Context, sig syscall.Signal) error
	// Close lets go of the process, which runs on.
	Close()
}

// event is output, or the end when it is not nil.
type event struct {
	stdout, stderr []byte
	end            *guestclient.Exit
}

// windowSize is a terminal's.
type windowSize struct{ cols, rows int }

// startFailure sorts why a command did not start: exit codes as shells have them.
func startFailure(err error) error {
	switch tartarus.KindOf(err) {
	case tartarus.NotFound:
		return &exitError{exitNotFound, err}
	case tartarus.Invalid, tartarus.Forbidden, tartarus.TooLarge:
		return &exitError{exitNotInvoked, err}
	case tartarus.Unauthenticated:
		if strings.Contains(err.Error(), "invalid username") {
			return &exitError{exitNotInvoked, err}
		}
	}
	return err
}

// session connects a process to the streams and signals of this one.
type session struct {
	env      *Env
	proc     process
	terminal bool // the process has a pseudo-terminal
	signals  <-chan os.Signal
}

// Deadlines of a session.
const (
	callTime  = 10 * time.Second // one signal or resize
	termGrace = 3 * time.Second  // between SIGTERM and giving up; supervisors give us ten
	killGrace = 2 * time.Second  // for the end of a killed process to be reported
)

// errStdoutGone means that whoever read our output went away: `tartarus run -- yes | head`.
var errStdoutGone = errors.New("nobody reads the output")

// begin starts c and passes everything on until it has ended, and returns its exit code.
func (e *Env) begin(ctx context.Context, g guest, c command) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	proc, err := g.Start(ctx, c)
	if err != nil {
		return exitOurs, startFailure(err)
	}
	defer proc.Close()
	taken, release := e.signals.take()
	defer release()
	s := session{env: e, proc: proc, terminal: c.terminal != nil, signals: taken}
	var size <-chan windowSize
	if s.terminal {
		restore, sizes, err := e.rawTerminal()
		if err != nil {
			return exitOurs, err
		}
		defer restore()
		size = sizes
	}
	if c.input {
		go s.feed(ctx)
	}
	done := make(chan struct{})
	go s.control(ctx, size, cancel, done)
	defer func() { <-done }()
	defer cancel(nil)
	code, err := s.output()
	if cause, ok := errors.AsType[interrupted](context.Cause(ctx)); ok && err != nil {
		return exitSignal + int(cause.signal), nil
	}
	if errors.Is(err, errStdoutGone) {
		s.signal(ctx, syscall.SIGKILL)
		return exitSignal + int(syscall.SIGPIPE), nil
	}
	return code, err
}

// output prints until the end.
func (s *session) output() (int, error) {
	for {
		ev, err := s.proc.Next()
		if err != nil {
			return exitOurs, err
		}
		if ev.end != nil {
			return ev.end.ShellCode(), nil
		}
		if len(ev.stdout) > 0 {
			_, err = s.env.Stdout.Write(ev.stdout)
		} else if len(ev.stderr) > 0 {
			_, err = s.env.Stderr.Write(ev.stderr)
		}
		if err != nil {
			return exitOurs, gone(err)
		}
	}
}

func gone(err error) error {
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) {
		return errStdoutGone
	}
	return fmt.Errorf("write output: %w", err)
}

// feed passes stdin on until it ends or the process does. It may stay blocked in reading a terminal after the session
// has ended, because that cannot be interrupted.
func (s *session) feed(ctx context.Context) {
	stdin := s.env.Stdin
	if s.terminal {
		stdin = io.MultiReader(stdin, bytes.NewReader([]byte{4})) // Ctrl-D is how a terminal says that no more comes
	}
	// A process that ends without having read everything is no error; its end comes as an event.
	if s.proc.Feed(ctx, stdin) == nil && !s.terminal {
		_ = s.proc.CloseStdin(ctx)
	}
}

// control passes on signals and window sizes. The first interrupt is the process's, the second kills it, the third
// does not wait for anything. SIGTERM and SIGHUP are passed on as SIGTERM, and end the session after a grace.
func (s *session) control(ctx context.Context, size <-chan windowSize, cancel context.CancelCauseFunc, done chan<- struct{}) {
	defer close(done)
	var giveUp <-chan time.Time
	var last syscall.Signal
	interrupts := 0
	for {
		select {
		case <-ctx.Done():
			return
		case sz := <-size:
			s.call(ctx, func(ctx context.Context) error { return s.proc.Resize(ctx, sz) })
		case <-giveUp:
			cancel(interrupted{last})
		case sig := <-s.signals:
			last, _ = sig.(syscall.Signal)
			if last == syscall.SIGINT {
				interrupts++
			}
			switch {
			case last != syscall.SIGINT:
				s.signal(ctx, syscall.SIGTERM)
				giveUp = time.After(termGrace)
			case interrupts == 1:
				s.signal(ctx, syscall.SIGINT)
			case interrupts == 2:
				s.signal(ctx, syscall.SIGKILL)
				giveUp = time.After(killGrace)
			default:
				cancel(interrupted{last})
			}
		}
	}
}

// signal sends sig; agents that only know how to terminate and to kill get SIGTERM instead of SIGINT.
func (s *session) signal(ctx context.Context, sig syscall.Signal) {
	s.call(ctx, func(ctx context.Context) error {
		err := s.proc.Signal(ctx, sig)
		if sig == syscall.SIGINT && tartarus.Is(err, tartarus.Invalid) {
			return s.proc.Signal(ctx, syscall.SIGTERM)
		}
		return err
	})
}

// call bounds a call whose outcome shows in the process's end, if at all.
func (s *session) call(ctx context.Context, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
	defer cancel()
	_ = f(ctx)
}
