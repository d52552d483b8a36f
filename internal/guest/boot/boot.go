// Package boot starts the guest agent as a program: it reads the command line, makes the place it runs in
// ready where nobody else did, and serves. It is the only part of the agent that changes its own process.
package boot

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest"
	"github.com/tartarus-sandbox/tartarus/internal/guest/mounted"
	"github.com/tartarus-sandbox/tartarus/internal/guest/system"
	"github.com/tartarus-sandbox/tartarus/internal/guest/vmboot"
)

// gcPercent trades some processor time under load for a smaller agent: it is in every sandbox, and mostly idle.
const gcPercent = 50

// Run serves until ctx ends.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if vmboot.First() {
		return machine(ctx)
	}
	c := guest.Default()
	flags := flag.NewFlagSet("tartarus-guest", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&c.Listen, "listen", c.Listen, "address to serve on")
	mounts := flags.Bool("mounts", false, "mount /proc, /sys, /dev, /run and /tmp where they are missing, and bring loopback up: for a machine whose first process this is")
	volume := flags.String("volume", "", "be the helper that serves a volume mounted at this path")
	version := flags.Bool("version", false, "print the version of the wire and end")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *version {
		_, err := fmt.Fprintln(stdout, tartarus.AgentVersion)
		return err
	}
	if err := settle(); err != nil {
		return err
	}
	if *volume != "" {
		return mounted.Helper(ctx, *volume)
	}
	c.Log = slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn})
	if *mounts {
		if err := system.Prepare(); err != nil {
			return err
		}
	}
	c.Reap = os.Getpid() == 1
	if !c.Reap {
		// Below another init: what our processes leave behind comes to us all the same.
		c.Reap = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == nil
	}
	agent, err := guest.New(c)
	if err != nil {
		return err
	}
	return agent.Run(ctx)
}

// settle makes this process one that lasts.
func settle() error {
	syscall.Umask(0o022)
	// A log whose reader is gone must not end the agent. Ignoring the signal would be passed on to every process.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	debug.SetGCPercent(gcPercent)
	return errors.Join(boundFiles(), forgetChildren())
}

// openFiles is how many files a process may have open unless it asks for more. Go raises its own limit to the utmost, which programs that walk
// through all possible numbers would suffer from.
const openFiles = 1 << 16

// boundFiles sets the limit that processes start with. Set so, it is also one that nobody has to put back for each of them.
func boundFiles() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	limit.Cur = min(openFiles, limit.Max)
	return os.NewSyscallError("setrlimit", unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
}
