package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

// stateOf is what people are told that a sandbox is: its state knows only what the SDKs do, to which one that stands still in quarantine runs.
func stateOf(sb *api.ListedSandbox) string {
	if p := tartarus.Phase(sb.Phase); p.Ended() || p == tartarus.Quarantined {
		return sb.Phase
	}
	return sb.State
}

// timeless reports whether the time of a sandbox stands still: in quarantine, and while it is paused, unless it only sleeps because nothing used it.
func timeless(sb *api.ListedSandbox) bool {
	p := tartarus.Phase(sb.Phase)
	return p == tartarus.Quarantined || p == tartarus.Paused && tartarus.Reason(sb.Reason) != tartarus.ReasonIdle
}

// A node notices the end of a machine a moment after the streams into it have broken.
const (
	noticeTime  = 3 * time.Second
	noticeEvery = 50 * time.Millisecond
)

// explain finds out why a sandbox did not answer, or stopped answering under a command, and says what to do.
func (e *Env) explain(ctx context.Context, cl *client.Client, id string, err error) error {
	// One that sleeps and cannot be woken for want of room says so itself.
	if _, decided := errors.AsType[*exitError](err); decided || ctx.Err() != nil || tartarus.Is(err, tartarus.Exhausted) {
		return err
	}
	if why := closed(ctx, cl, id); why != nil {
		return why
	}
	return err
}

// closed waits a moment for the sandbox to be known as one that nothing reaches, and says why; nil when it runs on.
func closed(ctx context.Context, cl *client.Client, id string) error {
	ctx, cancel := context.WithTimeout(ctx, noticeTime)
	defer cancel()
	tick := time.NewTicker(noticeEvery)
	defer tick.Stop()
	for {
		sb, err := cl.GetEnded(ctx, id)
		if err != nil {
			return nil
		}
		if why := barred(sb); why != nil {
			return why
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// barred says why nothing reaches a sandbox, and what to do about it; nil when something should.
func barred(sb *api.SandboxDetail) error {
	switch p := tartarus.Phase(sb.Phase); {
	case p.Ended():
		return endedUnder(sb, sb.Reason, sb.Message)
	case p == tartarus.Quarantined:
		return fmt.Errorf("sandbox %s is in quarantine: nothing reaches it until an operator releases it; `tartarus quarantine show %s` says why it is there", sb.SandboxID, sb.SandboxID)
	case p == tartarus.Paused:
		return fmt.Errorf("sandbox %s is paused; `tartarus resume %s` brings it back", sb.SandboxID, sb.SandboxID)
	case sb.Termination != nil:
		return fmt.Errorf("sandbox %s is about to end (%s) and takes nothing new; `tartarus kill --cancel %s` lets it live on", sb.SandboxID, sb.Termination.Reason, sb.SandboxID)
	}
	return nil
}

// signalled gives the exit code of a command, unless a signal ended it because its sandbox is on its way down.
func (e *Env) signalled(ctx context.Context, cl *client.Client, id string, code int) error {
	if code < exitSignal || ctx.Err() != nil {
		return exit(code)
	}
	sb, err := cl.GetEnded(ctx, id)
	switch {
	case err != nil:
		return exit(code)
	case sb.Termination != nil:
		return endedUnder(sb, sb.Termination.Reason, sb.Termination.Message)
	case tartarus.Phase(sb.Phase).Ended():
		return endedUnder(sb, sb.Reason, sb.Message)
	}
	return exit(code)
}

// endedUnder says why a sandbox ended under a command.
func endedUnder(sb *api.SandboxDetail, reason, message string) error {
	switch tartarus.Reason(reason) {
	case tartarus.ReasonOOM:
		// What a shell reports for a command that the kernel killed for its memory.
		return &exitError{exitSignal + 9, fmt.Errorf("sandbox %s ran out of memory (%d MiB); give it more with --memory", sb.SandboxID, sb.MemoryMB)}
	case tartarus.ReasonTimeout:
		return fmt.Errorf("the time of sandbox %s was up; give it more with --timeout", sb.SandboxID)
	}
	return fmt.Errorf("sandbox %s ended under the command: %s", sb.SandboxID, strings.TrimSpace(reason+" "+message))
}
