package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func pauseCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "pause ID",
		Short: "Write a sandbox to disk, with its processes, and free its memory",
		Long: `Write a sandbox to disk, with its processes, memory and files as they are at one instant, and free its memory.

A paused sandbox has no timeout. ` + "`tartarus resume`" + ` brings it back, and so does an SDK that connects to it.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: e.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, _, err := e.connect()
			if err != nil {
				return err
			}
			defer cl.Close()
			if err := cl.Pause(cmd.Context(), args[0]); err != nil {
				return err
			}
			return e.printState(args[0], "paused")
		},
	}
}

func resumeCommand(e *Env) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:               "resume ID",
		Short:             "Bring a paused sandbox back to where it was",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: e.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, _, err := e.connect()
			if err != nil {
				return err
			}
			defer cl.Close()
			if _, err := cl.Connect(cmd.Context(), args[0], timeout); err != nil {
				return err
			}
			return e.printState(args[0], "running")
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "how long it lives from now (default 5m)")
	return cmd
}

// printState says what a sandbox has become.
func (e *Env) printState(id, state string) error {
	if e.JSON {
		return e.printJSON(map[string]string{"sandboxID": id, "state": state})
	}
	_, err := fmt.Fprintln(e.Stdout, id)
	return err
}
