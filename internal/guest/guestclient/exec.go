package guestclient

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/tartarus-sandbox/tartarus"
	processpb "github.com/tartarus-sandbox/tartarus/api/gen/process"
)

// Size is that of a terminal.
type Size struct{ Cols, Rows int }

// Command is what to run.
type Command struct {
	Argv    []string
	Env     map[string]string
	User    string // empty: the sandbox's default user
	Dir     string // empty: the sandbox's default folder
	Tag     string // a name to find it by; may be empty
	Stdin   bool   // whether it gets input; without, its input is empty
	PTY     *Size  // a terminal instead of pipes
	Timeout time.Duration
}

// Stream tells where a piece of output came from.
type Stream int

// The streams.
const (
	Stdout Stream = iota
	Stderr
	Terminal
)

// Exit is how a process ended.
type Exit struct {
	Code   int    // -1 when a signal ended it
	Exited bool   // false when a signal ended it
	Status string // "exit status 7", "signal: killed"
}

// ShellCode is the exit code a shell would report: 128 and the signal's number where a signal ended the process.
func (e Exit) ShellCode() int {
	if e.Exited {
		return e.Code
	}
	if n, ok := signalNumbers()[e.Status]; ok {
		return 128 + n
	}
	return 128 + 9
}

// Process is a command in the guest, as one stream of its events.
type Process struct {
	PID    int
	client *Client
	cancel context.CancelFunc
	next   func() (*processpb.ProcessEvent, error)
	close  func() error
	ended  bool
}

// keepalive is how often, in seconds, a silent stream shows life. Proxies on the way give up after a minute or more.
const keepalive = "30"

// Start runs a command. The caller reads Next until it ends, or calls Close.
//
// When ctx ends the stream does, and the process goes on; Command.Timeout is what kills it.
func (c *Client) Start(ctx context.Context, cmd Command) (*Process, error) {
	if len(cmd.Argv) == 0 {
		return nil, tartarus.Errorf(tartarus.Invalid, "no command given")
	}
	msg := &processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: cmd.Argv[0], Args: cmd.Argv[1:], Envs: cmd.Env},
		Stdin:   &cmd.Stdin,
	}
	if cmd.Dir != "" {
		msg.Process.Cwd = &cmd.Dir
	}
	if cmd.Tag != "" {
		msg.Tag = &cmd.Tag
	}
	if cmd.PTY != nil {
		msg.Pty = cmd.PTY.wire()
	}
	req := connect.NewRequest(msg)
	setUser(req.Header(), cmd.User)
	req.Header().Set("Keepalive-Ping-Interval", keepalive)
	if cmd.Timeout > 0 {
		req.Header().Set("Connect-Timeout-Ms", strconv.FormatInt(max(cmd.Timeout.Milliseconds(), 1), 10))
	}
	ctx, cancel := streamContext(ctx)
	stream, err := c.procs.Start(ctx, req)
	if err != nil {
		cancel()
		return nil, callError(err)
	}
	return c.open(cancel, stream.Close, func() (*processpb.ProcessEvent, error) {
		if !stream.Receive() {
			return nil, streamEnd(stream.Err())
		}
		return stream.Msg().GetEvent(), nil
	})
}

// Attach joins a process that runs, or that ended a short while ago.
func (c *Client) Attach(ctx context.Context, pid int) (*Process, error) {
	req := connect.NewRequest(&processpb.ConnectRequest{Process: selector(pid)})
	req.Header().Set("Keepalive-Ping-Interval", keepalive)
	ctx, cancel := streamContext(ctx)
	stream, err := c.procs.Connect(ctx, req)
	if err != nil {
		cancel()
		return nil, callError(err)
	}
	return c.open(cancel, stream.Close, func() (*processpb.ProcessEvent, error) {
		if !stream.Receive() {
			return nil, streamEnd(stream.Err())
		}
		return stream.Msg().GetEvent(), nil
	})
}

// streamContext ends with ctx but hides its deadline: the guest would be told of it and kill the process then.
func streamContext(ctx context.Context) (context.Context, context.CancelFunc) {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	return inner, func() {
		stop()
		cancel()
	}
}

// open waits for the start event.
func (c *Client) open(cancel context.CancelFunc, closeStream func() error, next func() (*processpb.ProcessEvent, error)) (*Process, error) {
	p := &Process{client: c, cancel: cancel, next: next, close: closeStream}
	e, err := next()
	if err == nil && e.GetStart() == nil {
		err = tartarus.Errorf(tartarus.Internal, "the guest's stream does not begin with a start event")
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	p.PID = int(e.GetStart().GetPid())
	return p, nil
}

func streamEnd(err error) error {
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return callError(err)
}

// Next waits for a piece of output. At the end it returns the Exit and io.EOF. The bytes are valid until the next call.
func (p *Process) Next() (Stream, []byte, *Exit, error) {
	for {
		e, err := p.next()
		if err != nil {
			return 0, nil, nil, err
		}
		switch v := e.GetEvent().(type) {
		case *processpb.ProcessEvent_Data:
			switch out := v.Data.GetOutput().(type) {
			case *processpb.ProcessEvent_DataEvent_Stdout:
				return Stdout, out.Stdout, nil, nil
			case *processpb.ProcessEvent_DataEvent_Stderr:
				return Stderr, out.Stderr, nil, nil
			case *processpb.ProcessEvent_DataEvent_Pty:
				return Terminal, out.Pty, nil, nil
			}
		case *processpb.ProcessEvent_End:
			exit := &Exit{Code: int(v.End.GetExitCode()), Exited: v.End.GetExited(), Status: v.End.GetStatus()}
			_, _ = p.next() // the stream's own end: with it read, the connection can be used again
			p.ended = true
			return 0, nil, exit, io.EOF
		}
		// A keepalive, or an event that a newer agent knows.
	}
}

// Copy writes all output until the end; that of a terminal goes to stdout. A writer that fails ends the stream, not the process.
func (p *Process) Copy(stdout, stderr io.Writer) (Exit, error) {
	defer p.Close()
	for {
		stream, data, exit, err := p.Next()
		if errors.Is(err, io.EOF) && exit != nil {
			return *exit, nil
		}
		if err != nil {
			return Exit{}, err
		}
		w := stdout
		if stream == Stderr {
			w = stderr
		}
		if _, err := w.Write(data); err != nil {
			return Exit{}, err
		}
	}
}

// Close ends the stream. The process goes on.
func (p *Process) Close() {
	if p.ended {
		_ = p.close() // everything was read
	}
	p.cancel()
	if !p.ended {
		_ = p.close() // it was cancelled just now
	}
}

// Run starts a command, feeds it stdin unless that is nil, and copies its output until it ends.
func (c *Client) Run(ctx context.Context, cmd Command, stdin io.Reader, stdout, stderr io.Writer) (Exit, error) {
	cmd.Stdin = cmd.Stdin || stdin != nil
	p, err := c.Start(ctx, cmd)
	if err != nil {
		return Exit{}, err
	}
	if stdin == nil {
		return p.Copy(stdout, stderr)
	}
	ctx, cancel := context.WithCancel(ctx)
	var feeding sync.WaitGroup
	feeding.Go(func() {
		// A process may end without having read everything; that is its own affair.
		_ = p.Feed(ctx, stdin, cmd.PTY != nil)
		if cmd.PTY == nil && ctx.Err() == nil {
			_ = p.CloseStdin(ctx)
		}
	})
	exit, err := p.Copy(stdout, stderr)
	cancel()
	if closer, ok := stdin.(io.Closer); ok {
		closer.Close() // a reader that blocks is let go
		feeding.Wait()
	}
	return exit, err
}

func (s *Size) wire() *processpb.PTY {
	return &processpb.PTY{Size: &processpb.PTY_Size{Cols: uint32(max(s.Cols, 0)), Rows: uint32(max(s.Rows, 0))}}
}

func selector(pid int) *processpb.ProcessSelector {
	return &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Pid{Pid: uint32(pid)}}
}

func setUser(h http.Header, user string) {
	if user != "" {
		h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	}
}
