package hecatoncheir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

// How often the ready command is run: soon at first, because what is ready at once should not wait.
const (
	firstReadyPause = 20 * time.Millisecond
	lastReadyPause  = 500 * time.Millisecond
)

// lastOutput is how much of a command's output an error quotes.
const lastOutput = 2 << 10

// prepare runs the template's start command in a guest that has booted and knows its template, and returns once the ready command
// succeeds; without one, once the start command runs. The start command goes on in the background. ctx bounds all of it: what is
// not ready by its end is an error that quotes the last output. Called once after a cold boot, never after a restore: the
// processes are in the snapshot.
func prepare(ctx context.Context, guest *guestclient.Client, t Template) error {
	if !t.starts() {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var said tail
	var reading sync.WaitGroup
	defer reading.Wait()
	if t.StartCmd != "" {
		start := inShell(t, t.StartCmd)
		start.Tag = startTag
		p, err := guest.Start(ctx, start)
		if err != nil {
			return fmt.Errorf("start command of template %s: %w", t.ID, err)
		}
		defer cancel(nil) // ends the stream; the process goes on
		reading.Go(func() {
			// Which exit it was matters only while the ready command has not succeeded: a command may put its server into the background and end.
			if exit, err := p.Copy(&said, &said); err == nil && exit.ShellCode() != 0 {
				cancel(tartarus.Errorf(tartarus.Invalid, "the start command of template %s ended before it was ready (%s)%s", t.ID, exit.Status, said.quote()))
			}
		})
	}
	if t.ReadyCmd == "" {
		return nil
	}
	err := becomesReady(ctx, guest, t)
	if cause := context.Cause(ctx); err != nil && tartarus.Is(cause, tartarus.Invalid) {
		return cause
	}
	if err != nil && said.quote() != "" {
		return fmt.Errorf("%w; the start command%s", err, said.quote())
	}
	return err
}

// starts reports whether anything is to be run in a guest of the template before it counts as up.
func (t Template) starts() bool { return t.StartCmd != "" || t.ReadyCmd != "" }

// becomesReady runs the ready command until it succeeds.
func becomesReady(ctx context.Context, guest *guestclient.Client, t Template) error {
	outcome := "did not end"
	for pauseFor := firstReadyPause; ; pauseFor = min(2*pauseFor, lastReadyPause) {
		cmd := inShell(t, t.ReadyCmd)
		if until, ok := ctx.Deadline(); ok {
			cmd.Timeout = time.Until(until) + time.Second // then nobody waits for it any more
		}
		var said tail
		exit, err := guest.Run(ctx, cmd, nil, &said, &said)
		switch {
		case ctx.Err() != nil: // below
		case err != nil:
			return fmt.Errorf("ready command of template %s: %w", t.ID, err)
		case exit.ShellCode() == 0:
			return nil
		default:
			outcome = fmt.Sprintf("ended with %s%s", exit.Status, said.quote())
		}
		pause(ctx, pauseFor)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return tartarus.Errorf(tartarus.Deadline, "template %s did not become ready in time: its ready command %s", t.ID, outcome)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// startTag names the template's start command among the guest's processes: it runs for as long as the sandbox does, which does not make it busy.
const startTag = "tartarus.io/start"

// inShell is a command of the template as its user, in the shell that the image has.
func inShell(t Template, line string) guestclient.Command {
	const shell = `if [ -x /bin/bash ]; then exec /bin/bash -l -c "$0"; else exec /bin/sh -l -c "$0"; fi`
	return guestclient.Command{Argv: []string{"/bin/sh", "-c", shell, line}, User: t.User, Dir: t.Workdir}
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (o *tail) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf = append(o.buf, p[max(0, len(p)-lastOutput):]...)
	if extra := len(o.buf) - lastOutput; extra > 0 {
		o.buf = o.buf[:copy(o.buf, o.buf[extra:])]
	}
	return len(p), nil
}

// quote is the output as part of an error's text, empty where there is none.
func (o *tail) quote() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := strings.ToValidUTF8(string(bytes.TrimSpace(o.buf)), "?")
	if text == "" {
		return ""
	}
	return fmt.Sprintf(", and said last: %q", text)
}
