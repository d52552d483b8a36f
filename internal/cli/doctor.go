package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/daemon"
	"github.com/tartarus-sandbox/tartarus/internal/doctor"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

func doctorCommand(e *Env) *cobra.Command {
	var leaks, fix bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out whether sandboxes can run on this machine",
		Long: `Find out whether sandboxes can run on this machine, by trying what they need.

The exit code is 0 only where they can. With --leaks it lists what is on the machine that no sandbox owns, and is 0 only
when there is nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.configure(nil)
			if err != nil {
				return err
			}
			switch {
			case leaks:
				return e.leaks(cmd.Context(), c.Config, fix)
			case fix:
				return errors.New("--fix removes leaks: it needs --leaks")
			}
			return e.examine(cmd.Context(), c.Config)
		},
	}
	cmd.Flags().BoolVar(&leaks, "leaks", false, "list what no sandbox owns: processes, cgroups, mounts, network, files")
	cmd.Flags().BoolVar(&fix, "fix", false, "with --leaks, remove it")
	return cmd
}

func (e *Env) examine(ctx context.Context, c daemon.Config) error {
	drivers, problem := daemon.Drivers(c)
	r := doctor.Examine(ctx, doctor.Config{DataDir: c.DataDir, Drivers: drivers, Range: c.Network.Base, UID: os.Geteuid(), Problem: problem})
	var err error
	if e.JSON {
		err = e.printJSON(r)
	} else {
		err = e.printReport(r)
	}
	if err == nil && !r.OK {
		err = exit(1)
	}
	return err
}

func (e *Env) printReport(r doctor.Report) error {
	colours := map[doctor.Status]string{doctor.OK: green, doctor.Warn: yellow, doctor.Fail: red}
	coloured := e.coloured(e.Stdout)
	t := table{head: []string{"", "CHECK", "FOUND"}}
	for _, c := range r.Checks {
		t.rows = append(t.rows, []cell{{string(c.Status), colours[c.Status]}, {c.Name, plain}, {c.Detail, plain}})
		if c.Fix != "" {
			t.rows = append(t.rows, []cell{{}, {}, {"→ " + c.Fix, faint}})
		}
	}
	if err := t.print(e.Stdout, coloured); err != nil {
		return err
	}
	fmt.Fprintln(e.Stdout)
	t = table{head: []string{"", "RUNTIME", "ISOLATION", "DETAIL"}}
	best := ""
	for _, rt := range r.Runtimes {
		status, detail := cell{"no", yellow}, rt.Reason
		if rt.Usable {
			status, detail = cell{"yes", green}, strings.TrimSpace(rt.Version+" "+rt.Reason)
			if best == "" && rt.Tier != tartarus.TierEmulated { // which is never chosen
				best = fmt.Sprintf("%s (%s)", rt.Name, rt.Tier)
			}
		}
		t.rows = append(t.rows, []cell{status, {rt.Name, plain}, {string(rt.Tier), plain}, {detail, plain}})
	}
	if err := t.print(e.Stdout, coloured); err != nil {
		return err
	}
	verdict := "sandboxes cannot run here: mend what is marked fail, or use --url with a server elsewhere"
	switch {
	case r.OK:
		verdict = "sandboxes run here, by default on " + best
	case best == "":
		verdict = "sandboxes cannot run here: no runtime is usable; use --url with a server elsewhere"
	}
	_, err := fmt.Fprintln(e.Stdout, "\n"+verdict)
	return err
}

// leaksDocument is what doctor --leaks prints as JSON.
type leaksDocument struct {
	Leaks   []vmm.Leftover `json:"leaks"`
	Removed bool           `json:"removed"`
}

func (e *Env) leaks(ctx context.Context, c daemon.Config, remove bool) error {
	found, err := daemon.Leaks(ctx, c, remove)
	if err != nil {
		return err
	}
	switch {
	case e.JSON:
		if found == nil {
			found = []vmm.Leftover{}
		}
		err = e.printJSON(leaksDocument{found, remove})
	case len(found) == 0:
		_, err = fmt.Fprintln(e.Stdout, "no leaks")
	default:
		t := table{head: []string{"KIND", "NAME"}}
		for _, l := range found {
			t.row(l.Kind, l.Name)
		}
		err = t.print(e.Stdout, false)
		if !remove {
			e.note("%d leaks; `tartarus doctor --leaks --fix` removes them", len(found))
		}
	}
	if err == nil && len(found) > 0 {
		err = exit(1)
	}
	return err
}
