package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

func placeCommand(e *Env) *cobra.Command {
	var w wanted
	var explain bool
	cmd := &cobra.Command{
		Use:   "place",
		Short: "Say which node a sandbox would go to, and make none",
		Long: `Say which node a sandbox would go to, and make none.

The heat of the sandbox (cold, warm, hot or inferno) is how many processors it is expected to keep busy: by what sandboxes of its template
did lately, else by its size and its time to live. Nodes labelled tartarus.io/phlegethon with that heat come first, then nodes without the
label, then others. Metadata tartarus.io/phlegethon hints at another heat. With --explain the arithmetic and the nodes that were compared.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, err := w.request(e.lookup)
			if err != nil {
				return err
			}
			return e.withClient(func(cl *client.Client) error {
				p, err := cl.Place(cmd.Context(), in)
				if err != nil {
					return unknownTemplate(err, in.TemplateID)
				}
				if e.JSON {
					return e.printJSON(p)
				}
				return e.printPlacement(p, explain)
			})
		},
	}
	w.add(cmd.Flags())
	cmd.Flags().DurationVar(&w.timeout, "timeout", 0, "time to live that is asked for (default the server's, 5m)")
	cmd.Flags().BoolVar(&explain, "explain", false, "say why")
	return cmd
}

func (e *Env) printPlacement(p *api.Placement, explain bool) error {
	if p.Refused != "" {
		fmt.Fprintf(e.Stdout, "nowhere: %s\n", p.Refused)
	} else {
		fmt.Fprintln(e.Stdout, p.Node)
	}
	if !explain {
		return nil
	}
	rows := [][2]string{{"heat", p.Heat + ": " + p.HeatWhy}, {"confined", p.Confined}, {"nodes", counts(p.Nodes)}}
	if p.Refused == "" {
		pool := p.Pool
		if pool == "" {
			pool = "any heat"
		}
		rows = append(rows, [2]string{"pool", pool}, [2]string{"runtime", p.Runtime}, [2]string{"over capacity", yes(p.Full)}, [2]string{"machine waits", yes(p.Warm)})
	}
	for _, r := range rows {
		if r[1] == "" {
			continue
		}
		if _, err := fmt.Fprintf(e.Stdout, "%-14s  %s\n", r[0], r[1]); err != nil {
			return err
		}
	}
	if len(p.Candidates) == 0 {
		return nil
	}
	t := table{head: []string{"COMPARED", "POOL", "WARM", "SNAPSHOT", "LOAD"}}
	for _, c := range p.Candidates {
		t.rows = append(t.rows, []cell{{c.Node, plain}, {dash(c.Pool), plain}, {fmt.Sprint(c.Warm), plain}, {dash(yes(c.Near)), plain}, {fmt.Sprintf("%.0f %%", 100*c.Load), plain}})
	}
	return t.print(e.Stdout, e.coloured(e.Stdout))
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

// counts says how the nodes that were looked at fared.
func counts(n api.PlacementNodes) string {
	parts := []string{fmt.Sprintf("%d looked at", n.Seen)}
	for _, c := range []struct {
		n    int
		what string
	}{
		{n.Fit, "with room"}, {n.Busy, "full"}, {n.Cordoned, "cordoned"}, {n.Lost, "not answering"}, {n.NoRuntime, "without the runtime"},
		{n.TooSmall, "too small"}, {n.NoTemplate, "without the template"}, {n.Apart, "on the other side of the quarantine"},
		{n.OtherCPU, "with another processor"},
	} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.what))
		}
	}
	return strings.Join(parts, ", ")
}
