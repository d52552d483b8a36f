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
	"github.com/tartarus-sandbox/tartarus/internal/guest/hostapi"
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
	t := table{head: []string{"ID", "TEMPLATE", "STATE", "RUNTIME", "ISOLATION", "HEAT", "CPU", "MEMORY", "AGE", "ENDS IN"}}
	for _, sb := range found {
		state, ends := stateOf(&sb), "-"
		switch p := tartarus.Phase(sb.Phase); {
		case p.Ended() && sb.Reason != "":
			state += " (" + sb.Reason + ")"
		case p.Ended(), timeless(&sb):
		case sb.Termination != nil:
			state += " (ending: " + sb.Termination.Reason + ")"
			ends = span(max(0, sb.Termination.Until.Sub(now)))
		case sb.EndAt.After(now):
			ends = span(sb.EndAt.Sub(now))
		}
		t.rows = append(t.rows, []cell{{sb.SandboxID, plain}, {name(sb), plain}, {state, stateColour(stateOf(&sb))}, {dash(sb.Runtime), plain},
			{dash(sb.Tier), plain}, {dash(sb.Heat), plain}, {fmt.Sprint(sb.CPUCount), plain}, {size(sb.MemoryMB << 20), plain}, {span(now.Sub(sb.StartedAt)), plain}, {ends, plain}})
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
			return e.withClient(func(cl *client.Client) error {
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
			})
		},
	}
	cmd.Flags().BoolVar(&secrets, "secrets", false, "also print the sandbox's tokens")
	return cmd
}

func (e *Env) printDetail(sb *api.SandboxDetail) error {
	ends := sb.EndAt.Local().Format(time.RFC3339)
	if timeless(&sb.ListedSandbox) {
		ends = ""
	}
	rows := [][2]string{
		{"id", sb.SandboxID}, {"template", fmt.Sprintf("%s (%s)", dash(sb.Alias), sb.TemplateID)},
		{"state", stateOf(&sb.ListedSandbox)}, {"reason", strings.TrimSpace(sb.Reason + " " + sb.Message)},
		{"runtime", sb.Runtime}, {"isolation", sb.Tier}, {"node", sb.Node}, {"heat", sb.Heat}, {"confined", sb.Confined},
		{"cpus", fmt.Sprint(sb.CPUCount)}, {"memory", size(sb.MemoryMB << 20)}, {"disk", size(sb.DiskSizeMB << 20)},
		{"termination", termination(sb.Termination)},
		{"started", sb.StartedAt.Local().Format(time.RFC3339)}, {"ends", ends},
		{"internet", fmt.Sprint(sb.AllowInternetAccess)},
	}
	rows = append(rows, networkRows(sb.Network)...)
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

// termination says in one line how the end of a sandbox went, or stands.
func termination(t *api.Termination) string {
	if t == nil {
		return ""
	}
	text := fmt.Sprintf("%s, %s until %s", t.Reason, t.Rung, t.Until.Local().Format(time.RFC3339))
	if t.Killed > 0 {
		text += fmt.Sprintf("; %d processes did not end by themselves", t.Killed)
	}
	if t.Snapshot != "" {
		text += "; kept as " + t.Snapshot
	}
	return strings.Join(append([]string{text}, t.Notes...), "; ")
}

// killed is one line of what kill prints as JSON.
type killed struct {
	SandboxID string `json:"sandboxID"`
	Killed    bool   `json:"killed"`
	Cancelled bool   `json:"cancelled,omitempty"` // it lives on
	Error     string `json:"error,omitempty"`
}

func killCommand(e *Env) *cobra.Command {
	var all, cancel bool
	var grace time.Duration
	var how client.KillOptions
	cmd := &cobra.Command{
		Use:     "kill ID...",
		Aliases: []string{"rm"},
		Short:   "End sandboxes",
		Long: `End sandboxes, and return when they are gone.

Without --grace a sandbox ends at once, unless it was created with a grace or its template has one. With a grace, nothing new reaches it, the
executables in ` + hostapi.HooksDir + ` run in it, and everything in it gets SIGTERM; it ends when all of that is done, or when the grace is
over. Until then ` + "`tartarus kill --cancel`" + ` lets it live on; interrupting this command does not.`,
		ValidArgsFunction: e.completeSandboxes,
		RunE: func(cmd *cobra.Command, ids []string) error {
			if all == (len(ids) > 0) {
				return errors.New("name the sandboxes to end, or give --all")
			}
			if cmd.Flags().Changed("grace") {
				how.Grace = &grace
			}
			if grace < 0 || cancel && (how != client.KillOptions{}) {
				return errors.New("--grace must not be negative, and --cancel goes with nothing else")
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
			return e.withClient(func(cl *client.Client) error {
				if cancel {
					return e.each(ids, all, "cancel", func(id string) error { return cl.CancelTermination(cmd.Context(), id) })
				}
				return e.each(ids, all, "kill", func(id string) error { return cl.Terminate(cmd.Context(), id, how) })
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "every running and paused sandbox of this key's tenant")
	f.DurationVar(&grace, "grace", 0, "time to end in good order")
	f.BoolVar(&how.Checkpoint, "checkpoint", false, "keep a snapshot; when that fails the sandbox runs on")
	f.BoolVar(&how.Logs, "logs", false, "wait until the whole log is kept")
	f.BoolVar(&cancel, "cancel", false, "let sandboxes live on that are about to end")
	return cmd
}

// atOnce is how many calls a command that works on many sandboxes or files has under way.
const atOnce = 8

// each does something to sandboxes, several at once, and reports each. With goneIsFine those that ended meanwhile are no error.
func (e *Env) each(ids []string, goneIsFine bool, verb string, do func(id string) error) error {
	errs := make([]error, len(ids))
	forEach(len(ids), func(i int) { errs[i] = do(ids[i]) })
	out := make([]killed, len(ids))
	var failed []error
	for i, id := range ids {
		out[i] = killed{SandboxID: id, Killed: errs[i] == nil && verb == "kill", Cancelled: errs[i] == nil && verb == "cancel"}
		switch err := errs[i]; {
		case err == nil && !e.JSON:
			fmt.Fprintln(e.Stdout, id)
		case err != nil && !(goneIsFine && tartarus.Is(err, tartarus.NotFound)):
			out[i].Error = err.Error()
			failed = append(failed, fmt.Errorf("%s %s: %w", verb, id, err))
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
			return e.withClient(func(cl *client.Client) error {
				if err := cl.SetTimeout(cmd.Context(), args[0], d); err != nil {
					return err
				}
				if e.JSON {
					return e.printJSON(map[string]any{"sandboxID": args[0], "timeoutSeconds": *seconds(d)})
				}
				return nil
			})
		},
	}
}
