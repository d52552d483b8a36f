package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

func psCommand(e *Env) *cobra.Command {
	var all, quiet bool
	var metadata []string
	var template string
	cmd := &cobra.Command{
		Use:     "ps",
		Aliases: []string{"ls", "list"},
		Short:   "List sandboxes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := parsePairs(metadata)
			if err != nil {
				return fmt.Errorf("--metadata: %w", err)
			}
			o := client.ListOptions{Metadata: m, Template: template}
			if all {
				for _, p := range tartarus.Phases {
					o.States = append(o.States, string(p))
				}
			}
			found, err := e.list(cmd.Context(), o)
			if err != nil {
				return err
			}
			switch {
			case e.JSON:
				return e.printJSON(found)
			case quiet:
				for _, sb := range found {
					fmt.Fprintln(e.Stdout, sb.SandboxID)
				}
				return nil
			}
			return e.printSandboxes(found, time.Now())
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, "also those that ended, while the server remembers them")
	f.BoolVarP(&quiet, "quiet", "q", false, "ids only")
	f.StringArrayVar(&metadata, "metadata", nil, "only those with this NAME=VALUE (repeatable)")
	f.StringVar(&template, "template", "", "only those of this template")
	return cmd
}

func (e *Env) list(ctx context.Context, o client.ListOptions) ([]api.ListedSandbox, error) {
	cl, _, err := e.connect()
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	out := []api.ListedSandbox{}
	for sb, err := range cl.List(ctx, o) {
		if err != nil {
			return nil, err
		}
		out = append(out, sb)
	}
	return out, nil
}

// stateColour shows at a glance what works, sleeps and went wrong.
func stateColour(state string) string {
	switch tartarus.Phase(state) {
	case tartarus.Running:
		return green
	case tartarus.Failed, tartarus.Rejected, tartarus.Quarantined:
		return red
	case tartarus.Stopped:
		return faint
	}
	return yellow
}

func (e *Env) printSandboxes(found []api.ListedSandbox, now time.Time) error {
	t := table{head: []string{"ID", "TEMPLATE", "STATE", "RUNTIME", "ISOLATION", "CPU", "MEMORY", "AGE", "ENDS IN"}}
	for _, sb := range found {
		state, ends := sb.State, "-"
		if p := tartarus.Phase(sb.Phase); p.Ended() {
			state = sb.Phase
			if sb.Reason != "" {
				state += " (" + sb.Reason + ")"
			}
		} else if sb.EndAt.After(now) {
			ends = span(sb.EndAt.Sub(now))
		}
		t.rows = append(t.rows, []cell{{sb.SandboxID, plain}, {name(sb), plain}, {state, stateColour(sb.State)}, {dash(sb.Runtime), plain},
			{dash(sb.Tier), plain}, {fmt.Sprint(sb.CPUCount), plain}, {size(sb.MemoryMB << 20), plain}, {span(now.Sub(sb.StartedAt)), plain}, {ends, plain}})
	}
	return t.print(e.Stdout, e.coloured(e.Stdout))
}

func name(sb api.ListedSandbox) string {
	if sb.Alias != "" {
		return sb.Alias
	}
	return sb.TemplateID
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func inspectCommand(e *Env) *cobra.Command {
	var secrets bool
	cmd := &cobra.Command{
		Use:               "inspect ID",
		Short:             "Show everything about a sandbox",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: e.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, _, err := e.connect()
			if err != nil {
				return err
			}
			defer cl.Close()
			sb, err := cl.GetEnded(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if !secrets {
				sb.EnvdAccessToken, sb.TrafficAccessToken = "", ""
			}
			if e.JSON {
				return e.printJSON(sb)
			}
			return e.printDetail(sb)
		},
	}
	cmd.Flags().BoolVar(&secrets, "secrets", false, "also print the sandbox's tokens")
	return cmd
}

func (e *Env) printDetail(sb *api.SandboxDetail) error {
	rows := [][2]string{
		{"id", sb.SandboxID}, {"template", fmt.Sprintf("%s (%s)", dash(sb.Alias), sb.TemplateID)},
		{"state", sb.State}, {"reason", strings.TrimSpace(sb.Reason + " " + sb.Message)},
		{"runtime", sb.Runtime}, {"isolation", sb.Tier}, {"node", sb.Node},
		{"cpus", fmt.Sprint(sb.CPUCount)}, {"memory", size(sb.MemoryMB << 20)}, {"disk", size(sb.DiskSizeMB << 20)},
		{"started", sb.StartedAt.Local().Format(time.RFC3339)}, {"ends", sb.EndAt.Local().Format(time.RFC3339)},
		{"internet", fmt.Sprint(sb.AllowInternetAccess)},
	}
	if sb.Network != nil {
		rows = append(rows, [2]string{"allow", strings.Join(sb.Network.AllowOut, " ")}, [2]string{"deny", strings.Join(sb.Network.DenyOut, " ")})
	}
	rows = append(rows, [2]string{"metadata", strings.Join(pairs(sb.Metadata), " ")},
		[2]string{"agent token", sb.EnvdAccessToken}, [2]string{"traffic token", sb.TrafficAccessToken})
	for _, r := range rows {
		if r[1] == "" {
			continue
		}
		if _, err := fmt.Fprintf(e.Stdout, "%-14s %s\n", r[0], printable(r[1])); err != nil {
			return err
		}
	}
	return nil
}

// killed is one line of what kill prints as JSON.
type killed struct {
	SandboxID string `json:"sandboxID"`
	Killed    bool   `json:"killed"`
	Error     string `json:"error,omitempty"`
}

func killCommand(e *Env) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:               "kill ID...",
		Aliases:           []string{"rm"},
		Short:             "End sandboxes",
		ValidArgsFunction: e.completeSandboxes,
		RunE: func(cmd *cobra.Command, ids []string) error {
			if all == (len(ids) > 0) {
				return errors.New("name the sandboxes to end, or give --all")
			}
			if all {
				found, err := e.list(cmd.Context(), client.ListOptions{})
				if err != nil {
					return err
				}
				for _, sb := range found {
					ids = append(ids, sb.SandboxID)
				}
			}
			cl, _, err := e.connect()
			if err != nil {
				return err
			}
			defer cl.Close()
			return e.kill(cmd.Context(), cl, ids, all)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every running and paused sandbox of this key's tenant")
	return cmd
}

// atOnce is how many calls a command that works on many sandboxes or files has under way.
const atOnce = 8

// kill ends sandboxes, several at once, and reports each. With goneIsFine those that ended meanwhile are no error.
func (e *Env) kill(ctx context.Context, cl *client.Client, ids []string, goneIsFine bool) error {
	errs := make([]error, len(ids))
	forEach(len(ids), func(i int) { errs[i] = cl.Kill(ctx, ids[i]) })
	out := make([]killed, len(ids))
	var failed []error
	for i, id := range ids {
		out[i] = killed{SandboxID: id, Killed: errs[i] == nil}
		switch err := errs[i]; {
		case err == nil && !e.JSON:
			fmt.Fprintln(e.Stdout, id)
		case err != nil && !(goneIsFine && tartarus.Is(err, tartarus.NotFound)):
			out[i].Error = err.Error()
			failed = append(failed, fmt.Errorf("kill %s: %w", id, err))
		}
	}
	if e.JSON {
		if err := e.printJSON(out); err != nil {
			return err
		}
	}
	if len(failed) == 1 {
		return failed[0]
	}
	return errors.Join(failed...)
}

// forEach calls f for 0..n-1, atOnce at a time.
func forEach(n int, f func(int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wg.Wait()
}

func timeoutCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:               "timeout ID DURATION",
		Short:             "Let a sandbox end this long from now, later or earlier than it would",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: e.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := time.ParseDuration(args[1])
			if err != nil || d < 0 {
				return fmt.Errorf("%q is no duration such as 30s, 5m or 2h", args[1])
			}
			cl, _, err := e.connect()
			if err != nil {
				return err
			}
			defer cl.Close()
			if err := cl.SetTimeout(cmd.Context(), args[0], d); err != nil {
				return err
			}
			if e.JSON {
				return e.printJSON(map[string]any{"sandboxID": args[0], "timeoutSeconds": *seconds(d)})
			}
			return nil
		},
	}
}
