package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"syscall"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

// agent is a guest reached through the API's port.
type agent struct{ *guestclient.Client }

func newGuest(g *client.Guest) guest {
	return agent{guestclient.New(guestclient.Config{BaseURL: g.BaseURL(), RoundTripper: g.RoundTripper(tartarus.AgentPort)})}
}

func (a agent) Start(ctx context.Context, c command) (process, error) {
	cmd := guestclient.Command{Argv: c.argv, Env: c.env, User: c.user, Dir: c.workdir, Stdin: c.input, Timeout: c.timeout}
	if c.terminal != nil {
		cmd.PTY = &guestclient.Size{Cols: c.terminal.cols, Rows: c.terminal.rows}
	}
	p, err := a.Client.Start(ctx, cmd)
	if err != nil {
		return nil, err
	}
	return &agentProcess{Process: p, terminal: c.terminal != nil}, nil
}

// Stat follows a link, which the agent does not: what a copy is about is what is behind it.
func (a agent) Stat(ctx context.Context, user, p string) (entry, error) {
	e, err := a.Client.Stat(ctx, user, p)
	for hops := 0; err == nil && e.Mode&fs.ModeSymlink != 0; hops++ {
		if hops == maxLinks {
			return entry{}, tartarus.Errorf(tartarus.Invalid, "%s leads through more than %d links", p, maxLinks)
		}
		target := e.Target
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(e.Path), target)
		}
		e, err = a.Client.Stat(ctx, user, target)
	}
	return entryFrom(e), err
}

// maxLinks is what Linux follows in one path.
const maxLinks = 40

func (a agent) List(ctx context.Context, user, p string) ([]entry, error) {
	list, err := a.Client.List(ctx, user, p, 1)
	out := make([]entry, len(list))
	for i, e := range list {
		out[i] = entryFrom(e)
	}
	return out, err
}

func entryFrom(e guestclient.Entry) entry {
	return entry{name: e.Name, path: e.Path, mode: e.Mode, size: e.Size, target: e.Target}
}

func (a agent) MakeDir(ctx context.Context, user, p string) error {
	err := a.Client.MakeDir(ctx, user, p)
	if e, ok := errors.AsType[*tartarus.Error](err); ok && e.Code == "already_exists" {
		return nil
	}
	return err
}

// agentProcess is one stream of a process's events.
type agentProcess struct {
	*guestclient.Process
	terminal bool
}

func (p *agentProcess) PID() int { return p.Process.PID }

func (p *agentProcess) Next() (event, error) {
	stream, data, end, err := p.Process.Next()
	switch {
	case end != nil:
		return event{end: end}, nil
	case err != nil:
		return event{}, err
	case stream == guestclient.Stderr:
		return event{stderr: data}, nil
	}
	return event{stdout: data}, nil // a terminal has only one
}

func (p *agentProcess) Feed(ctx context.Context, r io.Reader) error {
	return p.Process.Feed(ctx, r, p.terminal)
}

func (p *agentProcess) Resize(ctx context.Context, s windowSize) error {
	return p.Process.Resize(ctx, guestclient.Size{Cols: s.cols, Rows: s.rows})
}

func (p *agentProcess) Signal(ctx context.Context, sig syscall.Signal) error {
	return p.Process.Signal(ctx, sig)
}
