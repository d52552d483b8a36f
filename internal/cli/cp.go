package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/client"
)

// place is one side of a copy: a path here or in a sandbox.
type place struct {
	sandbox string // "" here
	path    string
}

// parsePlace reads ID:PATH or PATH. A path here that looks like the former is written with a slash: ./a:b.
func parsePlace(s string) (place, error) {
	if id, p, ok := strings.Cut(s, ":"); ok && tartarus.ValidID(id) {
		if p == "" {
			return place{}, fmt.Errorf("%q names no path in the sandbox", s)
		}
		return place{id, p}, nil
	}
	if s == "" {
		return place{}, errors.New("a path is empty")
	}
	return place{path: s}, nil
}

// copied is what cp prints as JSON.
type copied struct {
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
}

func cpCommand(e *Env) *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:   "cp SOURCE TARGET",
		Short: "Copy files and folders into or out of a sandbox",
		Long: `Copy files and folders into or out of a sandbox. One side is ID:PATH, the other a path here, or - for stdin or stdout.

A folder is copied with all that is in it: into the target when that is a folder, else as the target. Symbolic links stay links.`,
		Example: "  tartarus cp data.csv ID:/tmp/\n  tartarus cp ID:/home/user/out ./out\n  tartarus cp ID:/etc/os-release -",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := parsePlace(args[0])
			if err != nil {
				return err
			}
			to, err := parsePlace(args[1])
			if err != nil {
				return err
			}
			if (from.sandbox == "") == (to.sandbox == "") {
				return errors.New("exactly one side must be in a sandbox, as ID:PATH")
			}
			return e.withClient(func(cl *client.Client) error {
				id := from.sandbox + to.sandbox
				g, err := e.guestOf(cmd.Context(), cl, id)
				if err != nil {
					return err
				}
				if to.sandbox != "" {
					err = e.copyIn(cmd.Context(), g, user, from.path, to.path)
				} else {
					err = e.copyOut(cmd.Context(), g, user, from.path, to.path)
				}
				if tartarus.Is(err, tartarus.GuestGone) {
					return e.explain(cmd.Context(), cl, id, err)
				}
				return err
			})
		},
	}
	cmd.Flags().StringVarP(&user, "user", "u", "", "user in the sandbox (default the template's)")
	return cmd
}

func (e *Env) reportCopied(c copied) error {
	if !e.JSON {
		return nil
	}
	return e.printJSON(c)
}

// transfer is one file of a copy of a folder.
type transfer struct {
	from, to string
	size     int64
	mode     fs.FileMode
}

// copyIn copies a file, folder or stdin into the sandbox.
func (e *Env) copyIn(ctx context.Context, g guest, user, local, remote string) error {
	if local == "-" {
		if err := g.Write(ctx, user, remote, e.Stdin); err != nil {
			return fmt.Errorf("write %s: %w", remote, err)
		}
		return nil
	}
	info, err := os.Stat(local)
	if err != nil {
		return fmt.Errorf("read %s: %w", local, err)
	}
	target, err := targetIn(ctx, g, user, local, remote, info.IsDir())
	if err != nil {
		return err
	}
	if !info.IsDir() {
		t := transfer{local, target, info.Size(), info.Mode()}
		if err := upload(ctx, g, user, t); err != nil {
			return err
		}
		if t.to, err = absolute(ctx, g, user, target); err != nil {
			return err
		}
		return errors.Join(e.restoreModes(ctx, g, user, []transfer{t}), e.reportCopied(copied{1, t.size}))
	}
	if err := g.MakeDir(ctx, user, target); err != nil {
		return fmt.Errorf("make folder %s: %w", target, err)
	}
	if target, err = absolute(ctx, g, user, target); err != nil {
		return err
	}
	files, links, err := e.prepareIn(ctx, g, user, local, target)
	if err != nil {
		return err
	}
	if err := each(ctx, files, func(t transfer) error { return upload(ctx, g, user, t) }); err != nil {
		return err
	}
	if err := errors.Join(e.restoreLinks(ctx, g, user, links), e.restoreModes(ctx, g, user, files)); err != nil {
		return err
	}
	return e.reportCopied(sum(files))
}

// targetIn decides where a source goes: into an existing folder, or as the target itself.
func targetIn(ctx context.Context, g guest, user, local, remote string, isDir bool) (string, error) {
	contents := isDir && (strings.HasSuffix(local, "/.") || local == ".")
	there, err := g.Stat(ctx, user, remote)
	switch {
	case err != nil && !tartarus.Is(err, tartarus.NotFound):
		return "", fmt.Errorf("look at %s: %w", remote, err)
	case err == nil && there.mode.IsDir() && !contents:
		return path.Join(remote, filepath.Base(local)), nil
	case err == nil && !there.mode.IsDir() && isDir:
		return "", fmt.Errorf("%s in the sandbox is no folder", remote)
	case err != nil && !isDir && strings.HasSuffix(remote, "/"):
		return path.Join(remote, filepath.Base(local)), nil
	}
	return remote, nil
}

// prepareIn makes the folders of a tree in the sandbox and lists its files and links.
func (e *Env) prepareIn(ctx context.Context, g guest, user, local, remote string) (files, links []transfer, err error) {
	err = filepath.WalkDir(local, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(local, p)
		if err != nil {
			return err
		}
		to := path.Join(remote, filepath.ToSlash(rel))
		switch {
		case d.IsDir():
			if err := g.MakeDir(ctx, user, to); err != nil {
				return fmt.Errorf("make folder %s: %w", to, err)
			}
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			links = append(links, transfer{from: target, to: to})
		case d.Type().IsRegular():
			info, err := d.Info()
			if err != nil {
				return err
			}
			files = append(files, transfer{p, to, info.Size(), info.Mode()})
		default:
			e.note("%s is neither file, folder nor link: left out", p)
		}
		return nil
	})
	return files, links, err
}

func upload(ctx context.Context, g guest, user string, t transfer) error {
	f, err := os.Open(t.from)
	if err != nil {
		return fmt.Errorf("read %s: %w", t.from, err)
	}
	defer f.Close()
	if err := g.Write(ctx, user, t.to, f); err != nil {
		return fmt.Errorf("write %s: %w", t.to, err)
	}
	return nil
}

// absolute is the whole path of what was just written. Small tools of the guest get such paths only: they resolve relative ones from
// another folder than files are, and take one that begins with a dash for an option.
func absolute(ctx context.Context, g guest, user, remote string) (string, error) {
	there, err := g.Stat(ctx, user, remote)
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", remote, err)
	}
	return there.path, nil
}

// argsAtOnce keeps command lines far below the kernel's limit: 200 paths of at most 4 KiB are under 1 MiB.
const argsAtOnce = 200

// restoreModes gives files that were executable their permissions again: uploads carry none.
func (e *Env) restoreModes(ctx context.Context, g guest, user string, files []transfer) error {
	byMode := map[fs.FileMode][]string{}
	for _, f := range files {
		if perm := f.mode.Perm(); perm&0o111 != 0 {
			byMode[perm] = append(byMode[perm], f.to)
		}
	}
	for mode, paths := range byMode {
		for part := range slices.Chunk(paths, argsAtOnce) {
			if err := e.silently(ctx, g, user, append([]string{"chmod", fmt.Sprintf("%o", mode)}, part...)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *Env) restoreLinks(ctx context.Context, g guest, user string, links []transfer) error {
	for _, l := range links {
		target := l.from
		if strings.HasPrefix(target, "-") {
			target = "./" + target
		}
		if err := e.silently(ctx, g, user, []string{"ln", "-s", "-f", target, l.to}); err != nil {
			return err
		}
	}
	return nil
}

// silently runs a small tool of the guest. A guest without that tool is told about and is no error.
func (e *Env) silently(ctx context.Context, g guest, user string, argv []string) error {
	proc, err := g.Start(ctx, command{argv: argv, user: user, timeout: callTime})
	if tartarus.Is(err, tartarus.NotFound) {
		e.note("the sandbox has no %s: permissions and links of what was copied are not kept", argv[0])
		return nil
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	defer proc.Close()
	var said []byte
	for {
		ev, err := proc.Next()
		if err != nil {
			return fmt.Errorf("run %s: %w", argv[0], err)
		}
		said = append(said, ev.stderr[:min(len(ev.stderr), 1024-min(len(said), 1024))]...)
		if ev.end == nil {
			continue
		}
		if code := ev.end.ShellCode(); code != 0 {
			return fmt.Errorf("run %s: exit code %d: %s", argv[0], code, printable(strings.TrimSpace(string(said))))
		}
		return nil
	}
}

// each handles the transfers, several at once, and stops starting new ones at the first error.
func each(ctx context.Context, list []transfer, f func(transfer) error) error {
	errs := make([]error, len(list))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	forEach(len(list), func(i int) {
		if ctx.Err() != nil {
			return
		}
		if errs[i] = f(list[i]); errs[i] != nil {
			cancel()
		}
	})
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

func sum(files []transfer) copied {
	c := copied{Files: len(files)}
	for _, f := range files {
		c.Bytes += f.size
	}
	return c
}

// download copies a file of the guest to w.
func download(ctx context.Context, g guest, user, remote string, w io.Writer) (int64, error) {
	r, err := g.Read(ctx, user, remote)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", remote, err)
	}
	defer r.Close()
	n, err := io.Copy(w, r)
	if err != nil {
		return n, fmt.Errorf("copy %s: %w", remote, err)
	}
	return n, nil
}
