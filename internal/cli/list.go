package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus/client"
)

// listing asks the server for what there is of something, by a method of the client's, and prints it.
func listing[T any](e *Env, cmd *cobra.Command, get func(*client.Client, context.Context) ([]T, error), head []string, row func(T) []cell) error {
	return e.withClient(func(cl *client.Client) error {
		found, err := get(cl, cmd.Context())
		if err != nil {
			return err
		}
		return printAll(e, found, head, row)
	})
}

// printAll prints what was found: as a JSON array, or as a table with a row for each.
func printAll[T any](e *Env, found []T, head []string, row func(T) []cell) error {
	if e.JSON {
		if found == nil {
			found = []T{}
		}
		return e.printJSON(found)
	}
	t := table{head: head}
	for _, v := range found {
		t.rows = append(t.rows, row(v))
	}
	return t.print(e.Stdout, e.coloured(e.Stdout))
}
