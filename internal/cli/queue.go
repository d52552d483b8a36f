package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

func queueCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "Look at the queue that creates and resumes cross, and mend it",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(queueListCommand(e), queueShowCommand(e),
		queueVerb(e, "requeue", "Let dead jobs wait again, with their attempts reset", "requeued", func(cmd *cobra.Command, cl *client.Client, id string) error {
			return cl.Requeue(cmd.Context(), id)
		}),
		queueVerb(e, "cancel", "Call jobs off", "cancelled", func(cmd *cobra.Command, cl *client.Client, id string) error {
			return cl.CancelJob(cmd.Context(), id)
		}),
		queuePurgeCommand(e))
	return cmd
}

func queueListCommand(e *Env) *cobra.Command {
	var state string
	var limit int
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List jobs of all tenants", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			jobs := func(cl *client.Client, ctx context.Context) ([]api.Job, error) { return cl.Jobs(ctx, state, limit) }
			return listing(e, cmd, jobs, []string{"JOB", "TENANT", "NODE", "KIND", "STATE", "TRIES", "AGE", "REASON"}, func(j api.Job) []cell {
				return cells(j.ID, j.Tenant, j.Node, j.Kind, j.State, tries(j), span(time.Since(j.EnqueuedAt)), dash(j.Reason))
			})
		},
	}
	cmd.Flags().StringVar(&state, "state", "waiting", "waiting, leased, done, dead or cancelled")
	cmd.Flags().IntVar(&limit, "limit", 100, "most jobs to list, up to 1000")
	return cmd
}

func tries(j api.Job) string { return fmt.Sprintf("%d/%d", j.Attempt, j.MaxAttempts) }

func queueShowCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use: "show JOB", Short: "Show a job, with its position when it waits", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				j, err := cl.Job(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if e.JSON {
					return e.printJSON(j)
				}
				var facts facts
				row := func(name, value string) { facts = append(facts, [2]string{name, value}) }
				row("job", j.ID)
				row("tenant", j.Tenant)
				row("node", j.Node)
				row("kind", j.Kind)
				row("state", j.State)
				row("tries", tries(j))
				if j.Position > 0 {
					row("position", fmt.Sprint(j.Position))
				}
				row("reason", j.Reason)
				row("queued", j.EnqueuedAt.Local().Format(time.RFC3339))
				if j.Deadline != nil {
					row("deadline", j.Deadline.Local().Format(time.RFC3339))
				}
				if j.EndedAt != nil {
					row("ended", j.EndedAt.Local().Format(time.RFC3339))
				}
				return facts.print(e.Stdout)
			})
		},
	}
}

// queueVerb is a command that does one thing to each job it is given.
func queueVerb(e *Env, verb, short, state string, f func(*cobra.Command, *client.Client, string) error) *cobra.Command {
	return &cobra.Command{
		Use: verb + " JOB...", Short: short, Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				for _, id := range args {
					if err := f(cmd, cl, id); err != nil {
						return err
					}
					if err := e.done("job", id, state); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func queuePurgeCommand(e *Env) *cobra.Command {
	var age time.Duration
	cmd := &cobra.Command{
		Use:   "purge",
		Short: "Forget ended jobs, and the idempotency keys with them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if age < 0 {
				return fmt.Errorf("--older-than must not be negative")
			}
			return e.withClient(func(cl *client.Client) error {
				n, err := cl.PurgeJobs(cmd.Context(), age)
				if err != nil {
					return err
				}
				if e.JSON {
					return e.printJSON(api.Purged{Purged: n})
				}
				_, err = fmt.Fprintf(e.Stdout, "%d jobs forgotten\n", n)
				return err
			})
		},
	}
	cmd.Flags().DurationVar(&age, "older-than", time.Hour, "only those that ended longer ago")
	return cmd
}
