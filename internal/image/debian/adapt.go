package debian

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
	"github.com/tartarus-sandbox/tartarus/internal/image/rootfs"
)

// owner is the id that rootfs.Finish gives to the user "user" on a Debian that has no other account.
const owner = 1000

// adapt turns a plain Debian into what SDK users assume.
func (r *Recipe) adapt(w *erofs.Writer) error {
	file := func(name string, mode uint32, uid uint32, data string) error {
		e := erofs.Entry{Path: name, Mode: erofs.TypeRegular | mode, UID: uid, GID: uid, ModTime: rootfs.Time, Size: int64(len(data))}
		return w.Add(e, strings.NewReader(data))
	}
	errs := []error{
		file("etc/sudoers.d/user", 0o440, 0, rootfs.User+" ALL=(ALL:ALL) NOPASSWD:ALL\n"),
		file("etc/default/locale", 0o644, 0, "LANG=C.UTF-8\n"),
		file("etc/apt/sources.list", 0o644, 0, guestSources(r.suite)),
		// What the build took over from this host.
		file("etc/resolv.conf", 0o644, 0, ""),
		file("etc/hostname", 0o644, 0, ""),
		w.Add(erofs.Entry{Path: "home/user", Mode: erofs.TypeDir | 0o755, UID: owner, GID: owner, ModTime: rootfs.Time}, nil),
	}
	for _, name := range []string{".bashrc", ".profile", ".bash_logout"} {
		data, err := w.ReadFile("etc/skel/" + name)
		if err != nil {
			continue // a Debian without bash
		}
		errs = append(errs, file("home/user/"+name, 0o644, owner, string(data)))
	}
	if _, ok := w.Lookup("usr/bin/python"); !ok {
		if _, ok := w.Lookup("usr/bin/python3"); ok {
			errs = append(errs, w.Add(erofs.Entry{Path: "usr/bin/python", Mode: erofs.TypeSymlink, Target: "python3", ModTime: rootfs.Time}, nil))
		}
	}
	errs = append(errs, everybodysLocal(w), prune(w, r.without))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("adapt Debian: %w", err)
	}
	return nil
}

// everybodysLocal lets every user of the guest install into /usr/local.
func everybodysLocal(w *erofs.Writer) error {
	return w.Walk("usr/local", func(e erofs.Entry) error {
		if e.Type() != erofs.TypeDir {
			return nil
		}
		e.Mode |= 0o777
		return w.Add(e, nil)
	})
}

// prune takes away what a sandbox does not need, or what is only in its way.
func prune(w *erofs.Writer, without []string) error {
	w.NextLayer()
	gone := append([]string{
		"etc/apt/apt.conf.d/99mmdebstrap", // the proxy of this host
		"var/lib/apt/lists", "var/cache/apt", "var/log", "var/cache/ldconfig",
		"usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian",
	}, without...)
	// Pip would refuse to install beside Debian's packages. In a sandbox that is the point.
	err := w.Walk("usr/lib", func(e erofs.Entry) error {
		if path.Base(e.Path) == "EXTERNALLY-MANAGED" {
			gone = append(gone, e.Path)
		}
		return nil
	})
	docs := w.Walk("usr/share/doc", func(e erofs.Entry) error {
		if e.Type() != erofs.TypeDir && path.Base(e.Path) != "copyright" {
			gone = append(gone, e.Path)
		}
		return nil
	})
	errs := []error{err, docs}
	for _, name := range gone {
		errs = append(errs, w.RemoveLower(name))
	}
	for _, dir := range []string{"var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt", "usr/share/man"} {
		errs = append(errs, w.Add(erofs.Entry{Path: dir, Mode: erofs.TypeDir | 0o755, ModTime: rootfs.Time}, nil))
	}
	return errors.Join(errs...)
}
