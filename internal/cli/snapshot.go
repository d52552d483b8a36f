package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/image"
)

func snapshotCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "snapshot",
		Aliases: []string{"snapshots"},
		Short:   "Take, list, check and remove snapshots of sandboxes",
		Long: `Take, list, check and remove snapshots of sandboxes.

A snapshot is a sandbox at one instant: its processes, memory and files. ` + "`tartarus create SNAPSHOT`" + ` makes sandboxes from it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(snapshotCreateCommand(e), snapshotListCommand(e), snapshotRemoveCommand(e), snapshotInspectCommand(e), snapshotVerifyCommand(e))
	return cmd
}

func snapshotCreateCommand(e *Env) *cobra.Command {
	var name string
	var disk, wait bool
	cmd := &cobra.Command{
		Use:               "create ID",
		Short:             "Take a snapshot of a running sandbox, which goes on",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: e.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				snap, err := cl.Snapshot(cmd.Context(), args[0], name, disk)
				if err != nil {
					return err
				}
				if wait {
					if snap, err = e.awaitCopy(cmd.Context(), cl, snap.ID); err != nil {
						return err
					}
				}
				if e.JSON {
					return e.printJSON(snap)
				}
				_, err = fmt.Fprintln(e.Stdout, snap.SnapshotID)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name or name:tag; an older snapshot of this name loses it")
	cmd.Flags().BoolVar(&disk, "disk", false, "keep the files only: what is made from it boots")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it has digests and, where there is an object store, a copy there")
	return cmd
}

// copyLook is how often a copy under way is looked at.
const copyLook = 200 * time.Millisecond

// awaitCopy shows how far the copy of a snapshot is until it is there.
func (e *Env) awaitCopy(ctx context.Context, cl *client.Client, id string) (*api.Snapshot, error) {
	p := e.newProgress(time.Now())
	defer p.finish()
	for hashed := false; ; {
		snap, err := cl.GetSnapshot(ctx, id)
		if err != nil {
			return nil, err
		}
		c := snap.Copy
		hashed = hashed || c.State != "local"
		if !e.JSON {
			p.report(image.Progress{Stage: c.State, Done: c.DoneBytes, Total: c.TotalBytes, Message: size(c.DoneBytes) + " of " + size(c.TotalBytes)}, time.Now())
		}
		switch {
		case c.State == "copied", c.State == "local" && hashed:
			return snap, nil
		case c.State == "failed":
			return nil, fmt.Errorf("the snapshot is on its node, but its copy failed and will be tried again: %s", c.Error)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(copyLook):
		}
	}
}

func snapshotListCommand(e *Env) *cobra.Command {
	var o client.SnapshotOptions
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List snapshots, the newest first",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			snapshots := func(cl *client.Client, ctx context.Context) ([]api.Snapshot, error) { return cl.Snapshots(ctx, o) }
			return listing(e, cmd, snapshots, []string{"SNAPSHOT", "OF", "KEEPS", "RUNTIME", "SIZE", "COPY", "AGE"}, func(s api.Snapshot) []cell {
				return cells(s.SnapshotID, s.SandboxID, keeps(s), s.Runtime, size(s.StoredBytes), copyState(s.Copy), span(time.Since(s.CreatedAt)))
			})
		},
	}
	cmd.Flags().StringVar(&o.SandboxID, "sandbox", "", "only those of this sandbox")
	cmd.Flags().StringVar(&o.Name, "name", "", "only those of this name")
	return cmd
}

func keeps(s api.Snapshot) string {
	if s.Memory {
		return "memory, files"
	}
	return "files"
}

func copyState(c api.CopyProgress) string {
	if c.State == "copying" && c.TotalBytes > 0 {
		return fmt.Sprintf("%d%%", c.DoneBytes*100/c.TotalBytes)
	}
	return c.State
}

func snapshotRemoveCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:     "rm SNAPSHOT...",
		Aliases: []string{"remove"},
		Short:   "Remove snapshots; sandboxes made from them live on",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				for _, ref := range args {
					if err := cl.RemoveSnapshot(cmd.Context(), ref); err != nil {
						return err
					}
					if !e.JSON {
						fmt.Fprintln(e.Stdout, ref)
					}
				}
				if e.JSON {
					return e.printJSON(map[string][]string{"removed": args})
				}
				return nil
			})
		},
	}
}

func snapshotInspectCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect SNAPSHOT",
		Short: "Show everything about a snapshot",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				snap, err := cl.GetSnapshot(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return e.printSnapshot(snap)
			})
		},
	}
}

func snapshotVerifyCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "verify SNAPSHOT",
		Short: "Compare all of a snapshot with its digests",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				snap, err := cl.VerifySnapshot(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if e.JSON {
					return e.printJSON(snap)
				}
				_, err = fmt.Fprintf(e.Stdout, "%s is whole: %s\n", snap.SnapshotID, size(snap.SizeBytes))
				return err
			})
		},
	}
}

func (e *Env) printSnapshot(s *api.Snapshot) error {
	if e.JSON {
		return e.printJSON(s)
	}
	t := table{head: []string{"snapshot", s.SnapshotID}}
	for _, row := range [][2]string{
		{"id", s.ID}, {"names", strings.Join(s.Names, " ")}, {"of sandbox", s.SandboxID}, {"template", s.TemplateID + " build " + s.BuildID},
		{"keeps", keeps(*s)}, {"runtime", s.Runtime + " " + s.RuntimeVersion}, {"processor", s.CPUModel}, {"node", s.Node},
		{"limits", fmt.Sprintf("%d vCPU, %d MiB memory, %d MiB disk", s.CPUCount, s.MemoryMB, s.DiskSizeMB)},
		{"size", size(s.SizeBytes) + ", " + size(s.StoredBytes) + " on disk"}, {"copy", copyState(s.Copy) + " " + s.Copy.Error},
		{"created", s.CreatedAt.Local().Format(time.RFC3339)},
	} {
		t.row(row[0], row[1])
	}
	return t.print(e.Stdout, false)
}
