package cli

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

func pauseCommand(e *Env) *cobra.Command {
	var o client.PauseOptions
	cmd := &cobra.Command{
		Use:   "pause ID",
		Short: "Write a sandbox to disk, with its processes, and free its memory",
		Long: `Write a sandbox to disk, with its processes, memory and files as they are at one instant, and free its memory.

A paused sandbox has no timeout. ` + "`tartarus resume`" + ` brings it back, and so does an SDK that connects to it.
With --disk only the files are kept: it boots anew when it comes back.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: e.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				if err := cl.PauseWith(cmd.Context(), args[0], o); err != nil {
					return err
				}
				return e.printState(args[0], "paused")
			})
		},
	}
	cmd.Flags().BoolVar(&o.DiskOnly, "disk", false, "keep the files only, without processes and memory")
	cmd.Flags().BoolVar(&o.Strict, "strict", false, "refuse when the guest agent does not answer")
	return cmd
}

func resumeCommand(e *Env) *cobra.Command {
	var timeout time.Duration
	var reboot bool
	cmd := &cobra.Command{
		Use:               "resume ID",
		Short:             "Bring a paused sandbox back to where it was",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: e.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				back := cl.Connect
				if reboot {
					back = cl.Reboot
				}
				if _, err := back(cmd.Context(), args[0], timeout); err != nil {
					return err
				}
				return e.printState(args[0], "running")
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "how long it lives from now (default 5m)")
	cmd.Flags().BoolVar(&reboot, "reboot", false, "boot it from its files, without the memory that was kept")
	return cmd
}

func forkCommand(e *Env) *cobra.Command {
	var timeout time.Duration
	var count int
	cmd := &cobra.Command{
		Use:   "fork ID",
		Short: "Clone a running sandbox, which goes on",
		Long: `Clone a running sandbox, with its processes, memory and files as they are at one instant. The sandbox itself goes on.

Clones have an id, address, hostname, tokens and random numbers of their own, and none of the sandbox's open connections.
Prints their ids.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: e.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				results, err := cl.Fork(cmd.Context(), args[0], count, timeout)
				if err != nil {
					return err
				}
				return e.printForks(results)
			})
		},
	}
	cmd.Flags().IntVarP(&count, "count", "n", 1, "how many clones, 1 to 100")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long they live from now")
	return cmd
}

// printForks prints the clones that there are and says which there are not.
func (e *Env) printForks(results []api.ForkResult) error {
	if e.JSON {
		if err := e.printJSON(results); err != nil {
			return err
		}
	}
	var errs []error
	for i, r := range results {
		switch {
		case r.Sandbox == nil && r.Error != nil:
			errs = append(errs, fmt.Errorf("clone %d: %s", i+1, r.Error.Message))
		case r.Sandbox != nil && !e.JSON:
			if _, err := fmt.Fprintln(e.Stdout, r.Sandbox.SandboxID); err != nil {
				return err
			}
		}
	}
	return errors.Join(errs...)
}

// printState says what a sandbox has become.
func (e *Env) printState(id, state string) error {
	if e.JSON {
		return e.printJSON(map[string]string{"sandboxID": id, "state": state})
	}
	_, err := fmt.Fprintln(e.Stdout, id)
	return err
}
