package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func nodeCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Look after the machines of the fleet",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(nodeTokenCommand(e))
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
			cl, _, err := e.connect()
			if err != nil {
				return err
			}
			defer cl.Close()
			token, err := cl.NodeToken(cmd.Context(), node, life)
			if err != nil {
				return err
			}
			if e.JSON {
				return e.printJSON(token)
			}
			_, err = fmt.Fprintln(e.Stdout, token.Token)
			return err
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "name of the one node that may use it")
	cmd.Flags().DurationVar(&life, "for", 0, "how long it is good (default 10m, at most 24h)")
	return cmd
}
