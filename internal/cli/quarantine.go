package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

func quarantineCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "quarantine",
		Short: "Cut sandboxes off, freeze them, and look at what they did",
		Long: `Cut a running sandbox off from everything, have it show what goes on in it, freeze it, and keep all that as evidence. A paused one is held
as it is: nothing of it runs. It needs an operator's key.
A sandbox in quarantine does not run out of time. It is released by another operator than the one who put it there, or destroyed; its evidence stays.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(quarantineAddCommand(e), quarantineListCommand(e), quarantineShowCommand(e), quarantineEvidenceCommand(e), quarantineInspectCommand(e),
		quarantineReleaseCommand(e), quarantineDestroyCommand(e))
	return cmd
}

func quarantineAddCommand(e *Env) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "add ID --reason TEXT", Short: "Put a running or paused sandbox into quarantine", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				q, err := cl.Quarantine(cmd.Context(), args[0], reason)
				if err != nil {
					return err
				}
				if e.JSON {
					return e.printJSON(q)
				}
				e.note("sandbox %s stands still; see `tartarus quarantine show %s`", q.SandboxID, q.SandboxID)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who read it later (needed)")
	return cmd
}

func quarantineListCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List what is in quarantine", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listing(e, cmd, (*client.Client).Quarantines, []string{"ID", "TENANT", "TEMPLATE", "NODE", "SINCE", "BY", "REASON"}, func(q api.Quarantined) []cell {
				return cells(q.SandboxID, q.Tenant, q.Alias, q.Node, q.Since.Local().Format(time.DateTime), q.By, q.Reason)
			})
		},
	}
}

// exhibit is the evidence as the API gives it.
type exhibit struct {
	api.Quarantined
	Evidence tartarus.Evidence `json:"evidence"`
	Audit    []json.RawMessage `json:"audit"`
}

func quarantineShowCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Sum up what was found in a sandbox", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				raw, err := cl.Evidence(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				var x exhibit
				if err := json.Unmarshal(raw, &x); err != nil {
					return fmt.Errorf("read the evidence: %w", err)
				}
				if e.JSON {
					return e.printJSON(x.Quarantined)
				}
				x.print(e.Stdout)
				return nil
			})
		},
	}
}

// print sums the evidence up: what stands out first. Everything that comes from the guest is quoted, because it may want to write on the
// reader's terminal.
func (x *exhibit) print(w io.Writer) {
	fmt.Fprintf(w, "sandbox    %s of %s, on %s, %s\n", x.SandboxID, x.Tenant, x.Node, x.Phase)
	if x.Reason != "" {
		fmt.Fprintf(w, "because    %q, by %s, since %s\n", x.Reason, x.By, x.Since.Local().Format(time.DateTime))
	}
	v := x.Evidence
	fmt.Fprintf(w, "used       %s of processor time, %s of memory, %s of disk\n", v.Usage.CPU.Round(time.Millisecond), size(v.Usage.MemoryBytes), size(v.Usage.DiskBytes))
	fmt.Fprintf(w, "refused    %d packets, %s\n", v.Refused.Packets, size(int64(v.Refused.Bytes)))
	fmt.Fprintf(w, "audit      %d records\n", len(x.Audit))
	if v.Guest != nil {
		printInspection(w, *v.Guest)
	}
	for _, n := range v.Notes {
		fmt.Fprintf(w, "note       %q\n", n)
	}
}

// printInspection shows processes, sockets and files; what stands out comes first.
func printInspection(w io.Writer, g tartarus.Inspection) {
	fmt.Fprintf(w, "\nprocesses  %d\n", len(g.Processes))
	for _, p := range g.Processes {
		fmt.Fprintf(w, "  %6d uid %d %s %q\n", p.PID, p.UID, p.State, strings.Join(p.Argv, " "))
	}
	fmt.Fprintf(w, "\nsockets    %d\n", len(g.Sockets))
	for _, s := range g.Sockets {
		fmt.Fprintf(w, "  %-5s %s -> %s %s\n", s.Proto, s.Local, s.Remote, s.State)
	}
	files := slices.Clone(g.Files)
	slices.SortStableFunc(files, func(a, b tartarus.GuestFile) int { return weight(b) - weight(a) })
	fmt.Fprintf(w, "\nfiles changed  %d, setuid and programs first\n", len(files))
	for _, f := range files[:min(len(files), shownFiles)] {
		fmt.Fprintf(w, "  %s %d:%d %8s %.12s %q\n", f.Mode, f.UID, f.GID, size(f.Size), f.SHA256, f.Path)
	}
	if g.Truncated {
		fmt.Fprintln(w, "  the guest had more to show than there was time or room for")
	}
}

// shownFiles is how many files a summary shows; the evidence has them all.
const shownFiles = 50

// weight is how much a changed file stands out.
func weight(f tartarus.GuestFile) (n int) {
	if f.Setuid {
		n += 4
	}
	if strings.HasPrefix(f.Path, "/etc/cron") || strings.HasPrefix(f.Path, "/var/spool/cron") {
		n += 2
	}
	if f.Executable {
		n++
	}
	return n
}

func quarantineEvidenceCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use: "evidence ID", Short: "Print all that was found, with the audit records, as JSON", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				raw, err := cl.Evidence(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				var out bytes.Buffer
				if err := json.Indent(&out, raw, "", "  "); err != nil {
					return fmt.Errorf("read the evidence: %w", err)
				}
				out.WriteByte('\n')
				_, err = out.WriteTo(e.Stdout)
				return err
			})
		},
	}
}

func quarantineReleaseCommand(e *Env) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "release ID --reason TEXT", Short: "Let a sandbox go on; needs the key of another operator than the one who put it there", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error { return cl.Release(cmd.Context(), args[0], reason) })
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who read it later (needed)")
	return cmd
}

func quarantineDestroyCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use: "destroy ID", Short: "End a sandbox in quarantine; its evidence stays", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error { return cl.Destroy(cmd.Context(), args[0]) })
		},
	}
}

func quarantineInspectCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use: "inspect ID", Short: "Look at the disk of a sandbox, which stays frozen", Args: cobra.ExactArgs(1),
		Long: `Look at the disk of a sandbox in quarantine. It stays frozen: a copy of its writable layer is put under a new machine without network, which
lists every changed file with its hash, setuid programs first, and is thrown away. Processes and sockets are those from before the freeze.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				in, err := cl.Examine(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if e.JSON {
					return e.printJSON(in)
				}
				printInspection(e.Stdout, *in)
				return nil
			})
		},
	}
}
