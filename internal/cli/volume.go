package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

func volumeCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume",
		Short: "Storage that outlives sandboxes",
		Long: `Storage that outlives sandboxes. A file of a volume is named VOLUME:PATH.

  tartarus volume create data
  tartarus volume put input.csv data:/input.csv
  tartarus volume get data:/result.csv result.csv`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(volumeCreateCommand(e), volumeListCommand(e), volumeRemoveCommand(e), volumeFilesCommand(e), volumePutCommand(e), volumeGetCommand(e))
	return cmd
}

func volumeCreateCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "create NAME",
		Short: "Make an empty volume",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				v, err := cl.CreateVolume(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if e.JSON { // without its token: this may be a log
					return e.printJSON(api.Volume{VolumeID: v.VolumeID, Name: v.Name})
				}
				_, err = fmt.Fprintln(e.Stdout, v.VolumeID)
				return err
			})
		},
	}
}

func volumeListCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List volumes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listing(e, cmd, (*client.Client).Volumes, []string{"NAME", "ID"}, func(v api.Volume) []cell { return cells(v.Name, v.VolumeID) })
		},
	}
}

func volumeRemoveCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:     "rm VOLUME[:PATH]...",
		Aliases: []string{"remove"},
		Short:   "Remove volumes, or files and folders in them",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				return e.removeEach(args, func(arg string) error {
					name, path, inside := strings.Cut(arg, ":")
					if !inside {
						return cl.RemoveVolume(cmd.Context(), name)
					}
					v, err := cl.Volume(cmd.Context(), name)
					if err != nil {
						return err
					}
					return v.Remove(cmd.Context(), path)
				})
			})
		},
	}
}

// inVolume finds the volume and path of an argument.
func (e *Env) inVolume(cmd *cobra.Command, cl *client.Client, arg string) (*client.Volume, string, error) {
	name, path, ok := strings.Cut(arg, ":")
	if !ok || name == "" {
		return nil, "", fmt.Errorf("%q: not VOLUME:PATH", arg)
	}
	v, err := cl.Volume(cmd.Context(), name)
	return v, path, err
}

func volumeFilesCommand(e *Env) *cobra.Command {
	var depth int
	cmd := &cobra.Command{
		Use:   "files VOLUME[:PATH]",
		Short: "List what is in a volume",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				arg := args[0]
				if !strings.Contains(arg, ":") {
					arg += ":/"
				}
				v, path, err := e.inVolume(cmd, cl, arg)
				if err != nil {
					return err
				}
				list, err := v.List(cmd.Context(), path, depth)
				if err != nil {
					return err
				}
				return printAll(e, list, []string{"MODE", "OWNER", "SIZE", "MODIFIED", "PATH"}, func(f api.VolumeEntry) []cell {
					at := f.Path
					if f.Type == "directory" {
						at += "/"
					}
					return cells(fs.FileMode(f.Mode).Perm().String(), fmt.Sprintf("%d:%d", f.UID, f.GID), fmt.Sprint(f.Size), f.Mtime.Local().Format(time.DateTime), at)
				})
			})
		},
	}
	cmd.Flags().IntVar(&depth, "depth", 1, "how many folders deep")
	return cmd
}

func volumePutCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "put FILE VOLUME:PATH",
		Short: "Write a file into a volume; - is stdin",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := e.Stdin
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			return e.withClient(func(cl *client.Client) error {
				v, path, err := e.inVolume(cmd, cl, args[1])
				if err != nil {
					return err
				}
				return v.Put(cmd.Context(), path, in)
			})
		},
	}
}

func volumeGetCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "get VOLUME:PATH [FILE]",
		Short: "Read a file out of a volume; without FILE, or with -, to stdout",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			cl, _, err := e.connect()
			if err != nil {
				return err
			}
			defer cl.Close()
			v, path, err := e.inVolume(cmd, cl, args[0])
			if err != nil {
				return err
			}
			in, err := v.Get(cmd.Context(), path)
			if err != nil {
				return err
			}
			defer in.Close()
			if len(args) == 1 || args[1] == "-" {
				_, err = io.Copy(e.Stdout, in)
				return err
			}
			out, err := os.Create(args[1])
			if err != nil {
				return err
			}
			_, err = io.Copy(out, in)
			return errors.Join(err, out.Close())
		},
	}
}
