package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

type execOptions struct {
	invocation
	env     []string
	timeout time.Duration
	detach  bool
}

// started is what exec --detach prints as JSON.
type started struct {
	SandboxID string `json:"sandboxID"`
	PID       int    `json:"pid"`
}

func execCommand(e *Env) *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:               "exec [flags] ID -- COMMAND [ARGUMENT...]",
		Short:             "Run a command in a sandbox that runs",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: e.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			argv := args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return fmt.Errorf("no command; usage: %s", cmd.UseLine())
			}
			return e.exec(cmd.Context(), &o, args[0], argv)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	o.invocation.add(f)
	f.StringArrayVarP(&o.env, "env", "e", nil, "environment variable NAME=VALUE, or NAME to pass on this one's (repeatable)")
	f.DurationVar(&o.timeout, "timeout", 0, "kill the command after this time")
	f.BoolVarP(&o.detach, "detach", "d", false, "leave it running in the background and print its process id")
	return cmd
}

func (e *Env) exec(ctx context.Context, o *execOptions, id string, argv []string) error {
	env, err := environment(o.env, e.lookup)
	if err != nil {
		return err
	}
	if o.detach && (o.tty || o.interactive) {
		return fmt.Errorf("--detach leaves nobody to use -i and -t")
	}
	cl, _, err := e.connect()
	if err != nil {
		return err
	}
	defer cl.Close()
	g, err := e.guestOf(ctx, cl, id)
	if err != nil {
		return err
	}
	c := o.command(e, argv, env)
	c.timeout = o.timeout
	if o.detach {
		if err := e.detached(ctx, g, id, c); err != nil {
			return e.explain(ctx, cl, id, err)
		}
		return nil
	}
	code, err := e.begin(ctx, g, c)
	if err != nil {
		return e.explain(ctx, cl, id, err)
	}
	return e.signalled(ctx, cl, id, code)
}

func (e *Env) detached(ctx context.Context, g guest, id string, c command) error {
	c.input = false
	proc, err := g.Start(ctx, c)
	if err != nil {
		return startFailure(err)
	}
	defer proc.Close()
	if e.JSON {
		return e.printJSON(started{id, proc.PID()})
	}
	_, err = fmt.Fprintln(e.Stdout, proc.PID())
	return err
}
