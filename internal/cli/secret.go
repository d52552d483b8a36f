package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

func secretCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secret",
		Short: "Values that sandboxes may use and never see",
		Long: `Values that sandboxes may use and never see.

A secret's value is kept sealed on the server and put into the headers of requests that leave a sandbox, where a rule
of its network says ${e2b.secrets.NAME}. No command prints it again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(secretSetCommand(e), secretListCommand(e), secretRemoveCommand(e))
	return cmd
}

func secretSetCommand(e *Env) *cobra.Command {
	var file string
	var metadata map[string]string
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Make a secret, or give it a new value",
		Long: `Make a secret, or give it a new value. The value comes from stdin or a file: never from the command line, where every
user of the machine could read it. One newline at its end is taken off.

  printf %s "$TOKEN" | tartarus secret set api-token
  tartarus secret set api-token --file token.txt`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := e.readSecret(file)
			if err != nil {
				return err
			}
			return e.withClient(func(cl *client.Client) error {
				s, err := cl.UpdateSecret(cmd.Context(), args[0], api.SecretUpdate{Value: value, Metadata: metadata})
				if tartarus.Is(err, tartarus.NotFound) {
					s, err = cl.CreateSecret(cmd.Context(), api.NewSecret{Name: args[0], Value: value, Metadata: metadata})
				}
				if err != nil {
					return err
				}
				if e.JSON {
					return e.printJSON(s)
				}
				_, err = fmt.Fprintln(e.Stdout, s.Name)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "file that holds the value (default: stdin)")
	cmd.Flags().StringToStringVar(&metadata, "metadata", nil, "key=value to keep beside it, repeatable; replaces what is there")
	return cmd
}

// maxSecret is more than a server takes, so that it can say so.
const maxSecret = 1 << 20

// readSecret reads a value from a file, or from stdin where that is no terminal that would show it.
func (e *Env) readSecret(file string) (string, error) {
	in := e.Stdin
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	} else if _, terminal := isTerminal(e.Stdin); terminal {
		return "", errors.New("the value is read from stdin, which is a terminal that would show it: pipe it in, or use --file")
	}
	raw, err := io.ReadAll(io.LimitReader(in, maxSecret))
	if err != nil {
		return "", fmt.Errorf("read the value: %w", err)
	}
	value := strings.TrimSuffix(string(raw), "\n")
	if value = strings.TrimSuffix(value, "\r"); value == "" {
		return "", errors.New("the value is empty: pipe it in, or use --file")
	}
	return value, nil
}

func secretListCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List secrets, without their values",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listing(e, cmd, (*client.Client).Secrets, []string{"NAME", "ID", "VERSION", "UPDATED"}, func(s api.Secret) []cell {
				return cells(s.Name, s.SecretID, fmt.Sprint(s.CurrentVersion), s.UpdatedAt.Local().Format(time.DateTime))
			})
		},
	}
}

func secretRemoveCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"remove"},
		Short:   "Forget secrets and their values",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				return e.removeEach(args, func(name string) error { return cl.RemoveSecret(cmd.Context(), name) })
			})
		},
	}
}

// removeEach removes one after the other, goes on where one cannot be, and prints what is gone.
func (e *Env) removeEach(names []string, remove func(string) error) error {
	var errs []error
	gone := []string{}
	for _, name := range names {
		if err := remove(name); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		gone = append(gone, name)
		if !e.JSON {
			if _, err := fmt.Fprintln(e.Stdout, name); err != nil {
				return err
			}
		}
	}
	if e.JSON {
		errs = append(errs, e.printJSON(map[string][]string{"removed": gone}))
	}
	return errors.Join(errs...)
}
