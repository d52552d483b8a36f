package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

func policyCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Write, test and explain the policies that requests are held against",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(policyApplyCommand(e), policyGetCommand(e), policyListCommand(e), policyHistoryCommand(e), policyDiffCommand(e),
		policyRollbackCommand(e), policyRemoveCommand(e), policyTestCommand(e), policyExplainCommand(e))
	return cmd
}

// readSource reads a file, or the standard input for -.
func (e *Env) readSource(name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(io.LimitReader(e.Stdin, 1<<20))
	}
	return os.ReadFile(name)
}

func policyApplyCommand(e *Env) *cobra.Command {
	var expect int64
	var dry bool
	cmd := &cobra.Command{
		Use:   "apply FILE...",
		Short: "Store new versions of policies, if they compile and their own tests pass",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if expect > 0 && len(args) > 1 {
				return fmt.Errorf("--expect goes with one file")
			}
			return e.withClient(func(cl *client.Client) error {
				for _, file := range args {
					if err := e.applyPolicy(cmd.Context(), cl, file, expect, dry); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().Int64Var(&expect, "expect", 0, "version that must be current (default whatever is)")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "check it and run its tests, no more")
	return cmd
}

func (e *Env) applyPolicy(ctx context.Context, cl *client.Client, file string, expect int64, dry bool) error {
	raw, err := e.readSource(file)
	if err != nil {
		return err
	}
	p, err := themis.Parse(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if expect == 0 && !dry {
		now, err := cl.Policy(ctx, p.Name, 0)
		switch {
		case err == nil && now.Body == string(raw):
			if !e.JSON {
				_, err = fmt.Fprintf(e.Stdout, "%s@%d unchanged\n", now.Name, now.Version)
				return err
			}
			return e.printJSON(api.PolicyApplied{Policy: *now, Tests: []any{}})
		case err == nil:
			expect = now.Version
		case !tartarus.Is(err, tartarus.NotFound):
			return err
		}
	}
	out, err := cl.ApplyPolicy(ctx, p.Name, api.PolicyChange{Body: string(raw), Expect: expect, DryRun: dry})
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if e.JSON {
		return e.printJSON(out)
	}
	if dry {
		_, err = fmt.Fprintf(e.Stdout, "%s can be applied, %d tests passed\n", out.Policy.Name, len(out.Tests))
		return err
	}
	_, err = fmt.Fprintf(e.Stdout, "%s@%d applied, %d tests passed\n", out.Policy.Name, out.Policy.Version, len(out.Tests))
	return err
}

func policyGetCommand(e *Env) *cobra.Command {
	var version int64
	cmd := &cobra.Command{
		Use:   "get NAME",
		Short: "Print a policy as it was written",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				p, err := cl.Policy(cmd.Context(), args[0], version)
				if err != nil {
					return err
				}
				if e.JSON {
					return e.printJSON(p)
				}
				_, err = fmt.Fprintln(e.Stdout, strings.TrimSuffix(p.Body, "\n"))
				return err
			})
		},
	}
	cmd.Flags().Int64Var(&version, "version", 0, "an earlier version")
	return cmd
}

func policyListCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the policies that are in force",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listing(e, cmd, (*client.Client).Policies, policyHead, policyRow)
		},
	}
}

func policyHistoryCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "history NAME",
		Short: "List all versions of a policy, newest first",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			versions := func(cl *client.Client, ctx context.Context) ([]api.Policy, error) {
				return cl.PolicyHistory(ctx, args[0])
			}
			return listing(e, cmd, versions, policyHead, policyRow)
		},
	}
}

var policyHead = []string{"NAME", "VERSION", "SCOPE", "RULES", "AUTHOR", "WRITTEN"}

func policyRow(p api.Policy) []cell {
	scope, rules := "removed", "-"
	if doc, err := themis.Parse([]byte(p.Body)); err == nil {
		scope, rules = string(doc.Scope), strconv.Itoa(len(doc.Rules))
		if who := doc.Tenant + doc.Template; who != "" {
			scope += " " + who
		}
	}
	return cells(p.Name, fmt.Sprint(p.Version), scope, rules, dash(p.Author), p.CreatedAt.Local().Format(time.DateTime))
}

func policyDiffCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "diff NAME [FROM [TO]]",
		Short: "Show what changed between two versions: the last two, or FROM and the current one",
		Args:  cobra.RangeArgs(1, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				versions := []int64{0, 0}
				for i, a := range args[1:] {
					v, err := strconv.ParseInt(a, 10, 64)
					if err != nil || v < 1 {
						return fmt.Errorf("%q is no version", a)
					}
					versions[i] = v
				}
				to, err := cl.Policy(cmd.Context(), args[0], versions[1])
				if err != nil {
					return err
				}
				if versions[0] == 0 {
					versions[0] = to.Version - 1
				}
				from := &api.Policy{}
				if versions[0] > 0 {
					if from, err = cl.Policy(cmd.Context(), args[0], versions[0]); err != nil {
						return err
					}
				}
				lines := diff(strings.Split(strings.TrimSuffix(from.Body, "\n"), "\n"), strings.Split(strings.TrimSuffix(to.Body, "\n"), "\n"))
				if e.JSON {
					return e.printJSON(map[string]any{"name": args[0], "from": from.Version, "to": to.Version, "diff": lines})
				}
				_, err = fmt.Fprintf(e.Stdout, "--- %s@%d\n+++ %s@%d\n%s\n", args[0], from.Version, args[0], to.Version, strings.Join(lines, "\n"))
				return err
			})
		},
	}
}

// diff is the lines of a and b with what was taken out and put in, by the longest common subsequence: documents have a few hundred lines.
func diff(a, b []string) []string {
	if len(a)*len(b) > 4_000_000 {
		return []string{"(too long to compare)"}
	}
	table := make([][]int, len(a)+1)
	for i := range table {
		table[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				table[i][j] = table[i+1][j+1] + 1
			} else {
				table[i][j] = max(table[i+1][j], table[i][j+1])
			}
		}
	}
	var out []string
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			out = append(out, " "+a[i])
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && table[i+1][j] >= table[i][j+1]:
			out = append(out, "-"+a[i])
			i++
		default:
			out = append(out, "+"+b[j])
			j++
		}
	}
	return out
}

func policyRollbackCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "rollback NAME VERSION",
		Short: "Make an earlier version the newest one",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil || v < 1 {
				return fmt.Errorf("%q is no version", args[1])
			}
			return e.withClient(func(cl *client.Client) error {
				p, err := cl.RollBackPolicy(cmd.Context(), args[0], v)
				if err != nil {
					return err
				}
				return printAll(e, []api.Policy{*p}, policyHead, policyRow)
			})
		},
	}
}

func policyRemoveCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME",
		Short: "Take a policy out of force; its versions stay",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error { return cl.RemovePolicy(cmd.Context(), args[0]) })
		},
	}
}

func policyTestCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "test FILE...",
		Short: "Compile policies and run their own tests, without a server",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			failed := 0
			all := []themis.CaseResult{}
			for _, file := range args {
				raw, err := e.readSource(file)
				if err != nil {
					return err
				}
				c, err := themis.Compile(raw, 0)
				if err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				for _, r := range c.RunTests() {
					all = append(all, r)
					word := "ok  "
					if !r.OK {
						word = "FAIL"
						failed++
					}
					if !e.JSON {
						fmt.Fprintf(e.Stdout, "%s %s: %s: %s\n", word, c.Name, r.Name, r.Got)
					}
				}
			}
			if e.JSON {
				if err := e.printJSON(all); err != nil {
					return err
				}
			}
			if failed > 0 {
				return &exitError{1, fmt.Errorf("%d of %d tests fail", failed, len(all))}
			}
			return nil
		},
	}
}

func policyExplainCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "explain FILE",
		Short: "Say what the policies in force would say to a request",
		Long: `Say what the policies in force would say to a request, and why. FILE (- for standard input) has, in YAML, what expressions see of it, as
the input of a policy's own tests:

  request: {vcpu: 8, internet: true}
  tenant: {name: acme}
  template: {names: [base]}`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := e.readSource(args[0])
			if err != nil {
				return err
			}
			var in themis.Input
			d := yaml.NewDecoder(strings.NewReader(string(raw)))
			d.KnownFields(true)
			if err := d.Decode(&in); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return e.withClient(func(cl *client.Client) error {
				out, err := cl.ExplainPolicies(cmd.Context(), in)
				if err != nil {
					return err
				}
				if e.JSON {
					return e.printJSON(out)
				}
				fmt.Fprintf(e.Stdout, "%s, by %d policies at revision %s\n", out.Verdict, out.Policies, out.Revision)
				for _, r := range out.Reasons {
					fmt.Fprintf(e.Stdout, "  %s %s: %s\n", r.Policy, r.Rule, r.Message)
				}
				e.printDemand(out.Demand)
				return nil
			})
		},
	}
}

// printDemand says what policies require of what runs a sandbox.
func (e *Env) printDemand(d *api.PolicyDemand) {
	if d == nil {
		return
	}
	for _, one := range [][2]string{{"isolation", d.Tier}, {"runtime", d.Runtime}} {
		if one[1] != "" {
			fmt.Fprintf(e.Stdout, "it must run with %s %s\n", one[0], one[1])
		}
	}
	for _, r := range d.Reasons {
		fmt.Fprintf(e.Stdout, "  %s %s: %s\n", r.Policy, r.Rule, r.Message)
	}
}
