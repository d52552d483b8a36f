// Package cli is the command line: every verb is a client of the public API, except those that start, build or examine this
// machine itself. What a command prints to stdout is its result and nothing else; errors and notes go to stderr, and
// the exit code of a command inside a sandbox is passed on unchanged.
//
// It is larger than other packages because it is many verbs, each in a file of its own, and little below them.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/daemon"
)

// Exit codes that are not a sandboxed command's own, as shells and container tools use them.
const (
	exitOurs       = 125 // the command line, the server or the sandbox failed
	exitNotInvoked = 126 // the command was found but could not be started
	exitNotFound   = 127 // no such command in the sandbox
	exitSignal     = 128 // plus the number of the signal that ended the command
)

// Env is what a command runs in.
type Env struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer

	Version string
	JSON    bool // print one JSON document, or one per line where a command goes on

	lookup  func(string) (string, bool) // environment variables
	global  global
	signals *signals
	// What tests replace.
	stack func(c daemon.Config, version string) (Stack, error)
	guest func(*client.Guest) guest
}

// global holds the flags that every command has.
type global struct {
	url, keyFile, data, config string
}

// Main runs one command line and returns the exit code of the process. It takes care of signals itself: ctx
// need not end by them.
func Main(ctx context.Context, version string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	e := &Env{Stdin: stdin, Stdout: stdout, Stderr: stderr, Version: version, lookup: os.LookupEnv, stack: newStack, guest: newGuest}
	return e.main(ctx, args)
}

func (e *Env) main(ctx context.Context, args []string) int {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e.signals = watchSignals(cancel)
	defer e.signals.stop()
	cmd := e.root()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if cause, ok := errors.AsType[interrupted](context.Cause(ctx)); ok && err != nil {
		if _, decided := errors.AsType[*exitError](err); !decided {
			return exitSignal + int(cause.signal)
		}
	}
	return e.finish(err)
}

// finish prints err in one line and turns it into an exit code.
func (e *Env) finish(err error) int {
	if err == nil {
		return 0
	}
	if errors.Is(err, syscall.EPIPE) {
		return exitSignal + int(syscall.SIGPIPE) // whoever read our output has gone; there is nobody to tell
	}
	code := exitOurs
	if ee, ok := errors.AsType[*exitError](err); ok {
		code = ee.code
		if err = ee.err; err == nil {
			return code
		}
	} else {
		err = advise(err)
	}
	fmt.Fprintf(e.Stderr, "tartarus: %s\n", oneLine(err.Error()))
	return code
}

// oneLine joins the lines of a message that holds several errors.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// exitError ends the program with a code; err, when there is one, is printed.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err != nil {
		return e.err.Error()
	}
	return fmt.Sprintf("exit code %d", e.code)
}

func (e *exitError) Unwrap() error { return e.err }

// exit makes an error that ends the program with a code and nothing printed.
func exit(code int) error {
	if code == 0 {
		return nil
	}
	return &exitError{code: code}
}

// note prints a line for people to stderr.
func (e *Env) note(format string, args ...any) {
	fmt.Fprintf(e.Stderr, "tartarus: "+format+"\n", args...)
}

func (e *Env) root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tartarus",
		Short: "Run untrusted code in sandboxes",
		Long: `Tartarus runs untrusted and machine-written code in sandboxes on machines you own.

  tartarus run -- python3 -c 'print(6*7)'     a sandbox for one command
  tartarus up                                 a server for the SDKs and this command line
  tartarus doctor                             can sandboxes run here, and how well isolated`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		Version:       e.Version,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetIn(e.Stdin)
	cmd.SetOut(e.Stdout)
	cmd.SetErr(e.Stderr)
	cmd.SetVersionTemplate("tartarus {{.Version}}\n")
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())
	})
	f := cmd.PersistentFlags()
	f.StringVar(&e.global.url, "url", "", "address of the server's API (TARTARUS_URL)")
	f.StringVar(&e.global.keyFile, "api-key-file", "", "file that holds the API key, or an ID token (else TARTARUS_API_KEY, else the data folder's admin.key)")
	f.StringVar(&e.global.data, "data", "", "data folder (TARTARUS_DATA)")
	f.StringVar(&e.global.config, "config", "", "configuration file (default config.yaml in the data folder)")
	f.BoolVar(&e.JSON, "json", false, "print JSON")
	for _, add := range commands {
		cmd.AddCommand(add(e))
	}
	return cmd
}

// commands in the order in which help shows them.
var commands = []func(*Env) *cobra.Command{
	runCommand, upCommand, olympusCommand, hecatoncheirCommand, createCommand, execCommand, cpCommand, psCommand, inspectCommand, logsCommand, metricsCommand, urlCommand, timeoutCommand, networkCommand, pauseCommand, resumeCommand, forkCommand, snapshotCommand, killCommand,
	auditCommand, quarantineCommand, tenantCommand, keyCommand, policyCommand,
	secretCommand, volumeCommand,
	templateCommand, nodeCommand, placeCommand, queueCommand, certCommand, kernelCommand, doctorCommand, benchCommand, configCommand, versionCommand,
}

// isTerminal reports whether a stream is a terminal, and its descriptor.
func isTerminal(stream any) (fd int, ok bool) {
	f, isFile := stream.(*os.File)
	if !isFile {
		return -1, false
	}
	return int(f.Fd()), term.IsTerminal(int(f.Fd()))
}
