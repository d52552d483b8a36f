package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// maxDepth of a folder copied out: deeper than any real tree, and an end for one that a guest makes up.
const maxDepth = 256

// maxEntries of a folder copied out bounds what is remembered of it: some 100 bytes each.
const maxEntries = 1_000_000

// copyOut copies a file or folder out of the sandbox. What a guest says of its files is not trusted: nothing is written
// outside the target, through no link of the guest's making either, and no set-uid bit survives.
func (e *Env) copyOut(ctx context.Context, g guest, user, remote, local string) error {
	if local == "-" {
		_, err := download(ctx, g, user, remote, e.Stdout)
		return err
	}
	there, err := g.Stat(ctx, user, remote)
	if err != nil {
		return fmt.Errorf("look at %s: %w", remote, err)
	}
	contents := there.mode.IsDir() && (strings.HasSuffix(remote, "/.") || remote == ".")
	info, err := os.Stat(local)
	intoFolder := err == nil && info.IsDir() || errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(local, "/") && !there.mode.IsDir()
	target := local
	if intoFolder && !contents {
		base := path.Base(path.Clean(remote))
		if !localName(base) {
			base = path.Base(there.path)
		}
		if !localName(base) {
			return fmt.Errorf("%s has no name to copy it under: name the target", remote)
		}
		target = filepath.Join(local, base)
	}
	if there.mode.IsDir() {
		c, err := e.copyTree(ctx, g, user, remote, target)
		if err != nil {
			return err
		}
		return e.reportCopied(c)
	}
	n, err := copyFile(ctx, g, user, remote, target, there.mode)
	if err != nil {
		return err
	}
	return e.reportCopied(copied{1, n})
}

// localName reports whether s can be the name of a file in a folder and nothing else.
func localName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00") && filepath.IsLocal(s)
}

// copyFile writes beside the target and renames, so that a target is never half of something.
func copyFile(ctx context.Context, g guest, user, remote, target string, mode fs.FileMode) (n int64, err error) {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return 0, fmt.Errorf("make folder: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(target), ".tartarus-cp-")
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", target, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	n, err = download(ctx, g, user, remote, f)
	if cerr := errors.Join(f.Chmod(permissions(mode)), f.Close()); err == nil && cerr != nil {
		err = fmt.Errorf("write %s: %w", target, cerr)
	}
	if err != nil {
		return n, err
	}
	if err = os.Rename(f.Name(), target); err != nil {
		return n, fmt.Errorf("write %s: %w", target, err)
	}
	return n, nil
}

// permissions keeps what a guest may decide about a file here: not more than its owner's umask would.
func permissions(mode fs.FileMode) fs.FileMode { return mode.Perm()&0o755 | 0o600 }

// copyTree copies a folder. Every path is resolved inside the target by os.Root: a link that the guest put there before cannot
// lead out of it.
func (e *Env) copyTree(ctx context.Context, g guest, user, remote, target string) (copied, error) {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return copied{}, fmt.Errorf("make folder: %w", err)
	}
	root, err := os.OpenRoot(target)
	if err != nil {
		return copied{}, fmt.Errorf("open %s: %w", target, err)
	}
	defer root.Close()
	t := tree{env: e, g: g, user: user, root: root}
	if err := t.walk(ctx, remote, ".", 0); err != nil {
		return copied{}, err
	}
	if err := each(ctx, t.files, func(f transfer) error { return t.file(ctx, f) }); err != nil {
		return copied{}, err
	}
	for _, l := range t.links {
		if err := t.link(l); err != nil {
			return copied{}, err
		}
	}
	return sum(t.files), nil
}

// tree is a folder on its way out of a sandbox. Links come last, so that no file is written through one.
type tree struct {
	env          *Env
	g            guest
	user         string
	root         *os.Root
	files, links []transfer
	seen         int
}

func (t *tree) walk(ctx context.Context, remote, rel string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s is nested deeper than %d folders", remote, maxDepth)
	}
	list, err := t.g.List(ctx, t.user, remote)
	if err != nil {
		return fmt.Errorf("list %s: %w", remote, err)
	}
	if t.seen += len(list); t.seen > maxEntries {
		return fmt.Errorf("%s holds more than %d files", remote, maxEntries)
	}
	for _, en := range list {
		if !localName(en.name) {
			return tartarus.Errorf(tartarus.Invalid, "the sandbox names a file %q in %s, which is no name", en.name, remote)
		}
		from, to := path.Join(remote, en.name), filepath.Join(rel, en.name)
		switch {
		case en.mode.IsDir():
			if err := t.root.MkdirAll(to, 0o755); err != nil {
				return fmt.Errorf("make folder: %w", err)
			}
			if err := t.walk(ctx, from, to, depth+1); err != nil {
				return err
			}
		case en.mode&fs.ModeSymlink != 0:
			t.links = append(t.links, transfer{from: en.target, to: to})
		case en.mode.IsRegular():
			t.files = append(t.files, transfer{from, to, en.size, en.mode})
		default:
			t.env.note("%s is neither file, folder nor link: left out", from)
		}
	}
	return nil
}

func (t *tree) file(ctx context.Context, f transfer) (err error) {
	// A new file, never the one a link of the same name points to.
	if err := t.root.Remove(f.to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace %s: %w", f.to, err)
	}
	out, err := t.root.OpenFile(f.to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, permissions(f.mode))
	if err != nil {
		return fmt.Errorf("write %s: %w", f.to, err)
	}
	_, err = download(ctx, t.g, t.user, f.from, out)
	if cerr := out.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("write %s: %w", f.to, cerr)
	}
	if err != nil {
		_ = t.root.Remove(f.to)
	}
	return err
}

func (t *tree) link(l transfer) error {
	if err := t.root.Remove(l.to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace %s: %w", l.to, err)
	}
	if err := t.root.Symlink(l.from, l.to); err != nil {
		return fmt.Errorf("link %s: %w", l.to, err)
	}
	return nil
}
