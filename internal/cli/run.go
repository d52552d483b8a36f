package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

// invocation are the flags that say how a command runs in a sandbox.
type invocation struct {
	interactive, tty bool
	user, workdir    string
}

func (i *invocation) add(f *pflag.FlagSet) {
	f.BoolVarP(&i.interactive, "interactive", "i", false, "pass stdin on even when it is a terminal")
	f.BoolVarP(&i.tty, "tty", "t", false, "give the command a terminal")
	f.StringVarP(&i.user, "user", "u", "", "user to run as (default the template's)")
	f.StringVarP(&i.workdir, "workdir", "w", "", "folder to run in (default the template's)")
}

// command makes the command of argv for these flags.
func (i *invocation) command(e *Env, argv []string, env map[string]string) command {
	c := command{argv: argv, env: env, user: i.user, workdir: i.workdir}
	_, terminal := isTerminal(e.Stdin)
	c.input = i.interactive || i.tty || !terminal
	if i.tty {
		size := e.windowSize()
		c.terminal = &size
		if c.env == nil {
			c.env = map[string]string{}
		}
		if _, set := c.env["TERM"]; !set {
			c.env["TERM"] = "xterm-256color"
			if v, ok := e.lookup("TERM"); ok && v != "" {
				c.env["TERM"] = v
			}
		}
	}
	return c
}

type runOptions struct {
	wanted
	invocation
	keep   bool
	copies []string
}

func runCommand(e *Env) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a command in a sandbox of its own",
		Long: `Run a command in a sandbox of its own: the sandbox is made, output and input are passed through, and it is removed at the end.

Without a server it is run by this process itself, which needs root. The exit code is the command's; 125 means that the sandbox or
the server failed, 126 that the command could not be started, 127 that it was not found.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, argv []string) error { return e.run(cmd.Context(), &o, argv) },
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	o.wanted.add(f)
	o.invocation.add(f)
	f.DurationVar(&o.timeout, "timeout", 0, "end sandbox and command after this time (default: when the command ends)")
	f.BoolVar(&o.keep, "keep", false, "leave the sandbox running at the end and print its id on stderr")
	f.StringArrayVar(&o.copies, "cp", nil, "copy LOCAL:REMOTE into the sandbox first (repeatable)")
	return cmd
}

// A sandbox that nothing else limits lives as long as this process renews it: when the process is killed, it ends by itself.
const (
	lease      = 2 * time.Minute
	renewEvery = 30 * time.Second // three more tries before it ends
)

// keptTime is how much longer a kept sandbox lives.
const keptTime = time.Hour

func (e *Env) run(ctx context.Context, o *runOptions, argv []string) (err error) {
	in, err := o.request(e.lookup)
	if err != nil {
		return err
	}
	copies, err := parseCopies(o.copies)
	if err != nil {
		return err
	}
	cl, stop, err := e.serverOrStack(ctx, o.runtime, o.keep)
	if err != nil {
		return err
	}
	defer stop()
	defer cl.Close()
	if o.timeout == 0 {
		in.Timeout = seconds(lease)
	}
	sb, err := createSurely(ctx, cl, in)
	if err != nil {
		return unknownTemplate(err, in.TemplateID)
	}
	defer func() { err = errors.Join(err, e.leave(ctx, cl, sb.SandboxID, o)) }()
	if o.timeout == 0 {
		defer renew(ctx, cl, sb.SandboxID)()
	}
	e.noteTemplate(&o.wanted, sb)
	g := e.guest(cl.Guest(sb))
	for _, c := range copies {
		if err := e.copyIn(ctx, g, o.user, c.local, c.remote); err != nil {
			return err
		}
	}
	code, err := e.begin(ctx, g, o.command(e, argv, nil))
	if err != nil {
		return e.explain(ctx, cl, sb.SandboxID, err)
	}
	return e.signalled(ctx, cl, sb.SandboxID, code)
}

// createSurely makes a sandbox such that none is left when ctx ends in between: a create that is under way
// is waited for, and what came of it is removed.
func createSurely(ctx context.Context, cl *client.Client, in api.NewSandbox) (*api.Sandbox, error) {
	type result struct {
		sb  *api.Sandbox
		err error
	}
	done := make(chan result, 1)
	creating, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	go func() {
		sb, err := cl.Create(creating, in, client.CreateOptions{IdempotencyKey: tartarus.NewID()})
		done <- result{sb, err}
	}()
	select {
	case r := <-done:
		return r.sb, r.err
	case <-ctx.Done():
	}
	return nil, errors.Join(ctx.Err(), afterwards(ctx, func(ctx context.Context) error {
		select {
		case r := <-done:
			if r.err != nil {
				return nil
			}
			return cl.Kill(ctx, r.sb.SandboxID)
		case <-ctx.Done():
			return nil // its time runs out by itself
		}
	}))
}

// leave removes the sandbox, or tells that it is kept.
func (e *Env) leave(ctx context.Context, cl *client.Client, id string, o *runOptions) error {
	return afterwards(ctx, func(ctx context.Context) error {
		if !o.keep {
			if err := cl.Kill(ctx, id); err != nil && !tartarus.Is(err, tartarus.NotFound) {
				return fmt.Errorf("remove sandbox %s: %w", id, err)
			}
			return nil
		}
		if o.timeout == 0 {
			if err := cl.SetTimeout(ctx, id, keptTime); err != nil {
				return fmt.Errorf("keep sandbox %s: %w", id, err)
			}
		}
		e.note("sandbox %s is kept; `tartarus exec -it %s -- sh` enters it, `tartarus kill %s` ends it", id, id, id)
		return nil
	})
}

// renew extends the sandbox's time until the returned function is called.
func renew(ctx context.Context, cl *client.Client, id string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(renewEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				call, end := context.WithTimeout(ctx, renewEvery)
				_ = cl.SetTimeout(call, id, lease) // one that fails is made good by the next
				end()
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// copyPair is one LOCAL:REMOTE.
type copyPair struct{ local, remote string }

func parseCopies(list []string) ([]copyPair, error) {
	out := make([]copyPair, 0, len(list))
	for _, s := range list {
		i := strings.LastIndexByte(s, ':')
		if i <= 0 || i == len(s)-1 {
			return nil, fmt.Errorf("--cp %q: not LOCAL:REMOTE", s)
		}
		out = append(out, copyPair{s[:i], s[i+1:]})
	}
	return out, nil
}
