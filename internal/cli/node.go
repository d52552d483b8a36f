package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

func nodeCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "node",
		Aliases: []string{"nodes"},
		Short:   "Look after the machines of the fleet",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(nodeListCommand(e), nodeShowCommand(e), nodeLabelCommand(e),
		nodeCordonCommand(e, "cordon", "Let a node take nothing new", true), nodeCordonCommand(e, "uncordon", "Let a node take work again", false),
		nodeDrainCommand(e), nodeRemoveCommand(e), nodeTokenCommand(e))
	return cmd
}

func nodeListCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the nodes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listing(e, cmd, (*client.Client).Nodes, []string{"NAME", "STATUS", "SANDBOXES", "CPU", "MEMORY", "RUNTIMES", "VERSION", "LABELS"}, nodeRow)
		},
	}
}

func nodeRow(n api.Node) []cell {
	return []cell{
		{n.Name, plain}, {n.Status, nodeColour(n.Status)}, {fmt.Sprint(n.Sandboxes), plain}, {fmt.Sprintf("%d/%d", n.Allocated.VCPU, n.Capacity.VCPU), plain},
		{size(n.Allocated.MemoryMB<<20) + "/" + size(n.Capacity.MemoryMB<<20), plain}, {strings.Join(slices.Sorted(maps.Keys(n.Runtimes)), ","), plain},
		{n.Version, plain}, {dash(strings.Join(pairs(n.Labels), ",")), plain},
	}
}

func nodeColour(status string) string {
	switch status {
	case "ready":
		return green
	case "lost":
		return red
	}
	return yellow
}

func nodeShowCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use: "show NODE", Short: "Show a node", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				n, err := cl.Node(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if e.JSON {
					return e.printJSON(n)
				}
				var facts facts
				row := func(name, value string) { facts = append(facts, [2]string{name, value}) }
				row("name", n.Name)
				row("status", n.Status)
				row("version", n.Version)
				row("sandboxes", fmt.Sprint(n.Sandboxes))
				row("cpu", fmt.Sprintf("%d of %d", n.Allocated.VCPU, n.Capacity.VCPU))
				row("memory", size(n.Allocated.MemoryMB<<20)+" of "+size(n.Capacity.MemoryMB<<20))
				row("disk", size(n.Allocated.DiskMB<<20)+" of "+size(n.Capacity.DiskMB<<20))
				for _, name := range slices.Sorted(maps.Keys(n.Runtimes)) {
					row("runtime", name+" ("+n.Runtimes[name].Tier+")")
				}
				for _, label := range pairs(n.Labels) {
					row("label", label)
				}
				row("lease until", n.LeaseEnds.Local().Format(time.RFC3339))
				return facts.print(e.Stdout)
			})
		},
	}
}

func nodeLabelCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "label NODE NAME=VALUE|NAME- ...",
		Short: "Set labels of a node, or take them away",
		Long: `Set labels of a node (NAME=VALUE), or take them away (NAME-). Labels make pools: tartarus.io/phlegethon=cold|warm|hot|inferno says what
heat of work a node is for, tartarus.io/typhon that it takes what is in quarantine.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			change := api.LabelsChange{}
			for _, arg := range args[1:] {
				name, value, ok := strings.Cut(arg, "=")
				switch {
				case ok:
					change[name] = &value
				case strings.HasSuffix(arg, "-"):
					change[strings.TrimSuffix(arg, "-")] = nil
				default:
					return fmt.Errorf("%q is neither NAME=VALUE nor NAME-", arg)
				}
			}
			return e.withClient(func(cl *client.Client) error {
				if err := cl.Label(cmd.Context(), args[0], change); err != nil {
					return err
				}
				return e.done("node", args[0], "labelled")
			})
		},
	}
}

// done prints that something was done to something.
func (e *Env) done(what, name, state string) error {
	if e.JSON {
		return e.printJSON(map[string]string{what: name, "state": state})
	}
	_, err := fmt.Fprintln(e.Stdout, name, state)
	return err
}

func nodeCordonCommand(e *Env, verb, short string, on bool) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NODE...", Short: short, Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				for _, name := range args {
					if err := cl.Cordon(cmd.Context(), name, on); err != nil {
						return err
					}
					if err := e.done("node", name, verb+"ed"); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func nodeDrainCommand(e *Env) *cobra.Command {
	var deadline time.Duration
	var end, wait bool
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Empty a node: it takes nothing new, and what it holds moves to others",
		Long: `Empty a node. It takes nothing new from now on. What it holds is paused, goes through the object store to another node with the same runtime and
processor, and goes on there; its connections break. Of a node that counts as lost, what was paused is moved, from its copy. With --wait, or where something cannot be moved, the command waits until it has ended. What is
left at the deadline is listed, with the reason why it was not moved, and the command fails with exit code 124, or, with --end, is ended with the reason
"drained". The node stays cordoned.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error { return e.drain(cmd.Context(), cl, args[0], deadline, !wait, end) })
		},
	}
	cmd.Flags().DurationVar(&deadline, "deadline", 10*time.Minute, "how long to wait; 0 does not wait")
	cmd.Flags().BoolVar(&wait, "wait", false, "move nothing, only wait")
	cmd.Flags().BoolVar(&end, "end", false, "end what is left at the deadline")
	return cmd
}

// exitDeadline is what timeout(1) exits with.
const exitDeadline = 124

// drainEvery is how often a node is looked at while it empties.
const drainEvery = time.Second

// endTries is how often what is left is ended again: a sandbox in the middle of its start or pause refuses at first.
const endTries = 10

func (e *Env) drain(ctx context.Context, cl *client.Client, node string, deadline time.Duration, move, end bool) error {
	began, last, ended, moved := time.Now(), -1, 0, 0
	for try := 0; ; {
		over := time.Since(began) >= deadline
		d, err := cl.Drain(ctx, node, api.DrainRequest{Move: move && !over, End: end && over})
		if err != nil && (!tartarus.Is(err, tartarus.Unavailable) || over) {
			return err
		}
		ended, moved = ended+d.Ended, moved+d.Moved
		if d.Moved > 0 && !e.JSON {
			e.note("moved %d sandboxes away from %s", d.Moved, node)
		}
		switch {
		case err == nil && len(d.Left) == 0:
			d.Ended, d.Moved = ended, moved
			if e.JSON {
				return e.printJSON(d)
			}
			return e.done("node", node, "drained")
		case over && end:
			if try++; try < endTries {
				break
			}
			fallthrough
		case over:
			return e.undrained(d)
		}
		if len(d.Left) != last && err == nil && !e.JSON {
			last = len(d.Left)
			e.note("waiting for %d sandboxes on %s", last, node)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(drainEvery, max(10*time.Millisecond, deadline-time.Since(began)))):
		}
	}
}

// undrained tells what a node still holds.
func (e *Env) undrained(d api.Drain) error {
	if e.JSON {
		return errors.Join(e.printJSON(d), &exitError{code: exitDeadline})
	}
	t := table{head: []string{"SANDBOX", "TENANT", "PHASE", "ENDS IN", "NOT MOVED BECAUSE"}}
	for _, sb := range d.Left {
		ends := "-"
		if sb.EndAt != nil {
			ends = span(max(0, time.Until(*sb.EndAt)))
		}
		t.row(sb.SandboxID, sb.Tenant, sb.Phase, ends, dash(sb.Why))
	}
	if err := t.print(e.Stdout, e.coloured(e.Stdout)); err != nil {
		return err
	}
	return &exitError{code: exitDeadline, err: fmt.Errorf("node %s still holds %d sandboxes; wait longer with --deadline, or end them with --end", d.Node, len(d.Left))}
}

func nodeRemoveCommand(e *Env) *cobra.Command {
	var lose bool
	cmd := &cobra.Command{
		Use:   "rm NODE",
		Short: "Take a node out of the fleet",
		Long: `Take a node out of the fleet. A node that lives must be drained or cordoned first. What runs on it counts as lost, and its certificate is
refused from now on; it can join again with a new token.

While sandboxes are paused on it, it is not removed: ` + "`tartarus node drain`" + ` brings those elsewhere that the object store has all of, also when the node
itself is gone, and says which it has not. With --lose what is left there is lost too.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				if err := cl.RemoveNode(cmd.Context(), args[0], lose); err != nil {
					return err
				}
				return e.done("node", args[0], "removed")
			})
		},
	}
	cmd.Flags().BoolVar(&lose, "lose", false, "also when sandboxes are paused on it, which are lost then")
	return cmd
}

func nodeTokenCommand(e *Env) *cobra.Command {
	var node string
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make a token that lets one node join the fleet, once",
		Long: `Make a token that lets one node join the fleet, once, and print it. Whoever has it can run sandboxes for this fleet, so it is
good for ten minutes unless --for says otherwise. With --node it is for the node of that name, also to replace one that lives.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.withClient(func(cl *client.Client) error {
				token, err := cl.NodeToken(cmd.Context(), node, life)
				if err != nil {
					return err
				}
				if e.JSON {
					return e.printJSON(token)
				}
				_, err = fmt.Fprintln(e.Stdout, token.Token)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "name of the one node that may use it")
	cmd.Flags().DurationVar(&life, "for", 0, "how long it is good (default 10m, at most 24h)")
	return cmd
}
