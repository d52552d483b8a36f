package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
)

// What the user whom a client names may do is done as that user. What the user may not do, the agent does all the same, on the user's
// behalf: programs count on it, and whoever may ask may also name root. What is made that way belongs to the user.
//
// The right to it is the client's, though, not that of code inside the sandbox. Such code may have put a link where the client
// writes. So on behalf of a user only links that root made are followed, folder by folder and each held open, so that nothing
// can be exchanged underneath; and a file that may be somebody else's under a second name is left alone.

// refused reports whether what failed as u is to be done on u's behalf.
func refused(u account.User, err error) bool {
	return u.UID != 0 && errors.Is(err, fs.ErrPermission) && os.Geteuid() == 0
}

// look runs do, which only reads what is at path, as u or on u's behalf.
func look(u account.User, path string, do func() error) error {
	err := u.Act(do)
	if !refused(u, err) || !trusted(u, path) {
		return err
	}
	return do()
}

// trusted reports whether no link on the way to what path means was made by anybody but root.
func trusted(u account.User, path string) bool {
	p, err := reach(u, path, false, true)
	p.close()
	return !errors.Is(err, fs.ErrPermission)
}

// place is a name in a folder that is held open.
type place struct {
	dir  int
	name string
}

func (p place) close() {
	if p.dir >= 0 {
		unix.Close(p.dir)
	}
}

// path names the place for calls that take no descriptor. The kernel goes from there, not from the root.
func (p place) path() string { return fmt.Sprintf("/proc/self/fd/%d/%s", p.dir, p.name) }

// maxLinks is the kernel's own limit of links on one way.
const maxLinks = 40

// reach goes to the folder that path is in. With parents, missing folders are made and given to u. With follow, a link at
// the end is followed too. The caller closes the place.
func reach(u account.User, path string, parents, follow bool) (place, error) {
	at := place{dir: -1}
	steps := split(path)
	fail := func(err error) (place, error) {
		at.close()
		return place{dir: -1}, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var err error
	if at.dir, err = open(unix.AT_FDCWD, "/"); err != nil {
		return fail(err)
	}
	for links := 0; ; {
		at.name = steps[0]
		last := len(steps) == 1
		if last && (!follow || at.name == ".") {
			return at, nil
		}
		next, err := open(at.dir, at.name)
		if errors.Is(err, unix.ENOENT) && last {
			return at, nil
		}
		if errors.Is(err, unix.ENOENT) && parents {
			next, err = mkdir(at, u)
		}
		if err != nil {
			return fail(err)
		}
		target, err := linkAt(next)
		switch {
		case err != nil || target == "" && last:
			unix.Close(next)
			if err != nil {
				return fail(err)
			}
			return at, nil
		case target == "":
			unix.Close(at.dir)
			at.dir, steps = next, steps[1:]
			continue
		}
		unix.Close(next)
		if links++; links > maxLinks {
			return fail(unix.ELOOP)
		}
		if strings.HasPrefix(target, "/") {
			unix.Close(at.dir)
			if at.dir, err = open(unix.AT_FDCWD, "/"); err != nil {
				return fail(err)
			}
		}
		steps = append(split(target), steps[1:]...)
	}
}

// split cuts a path into its steps, of which there is at least one.
func split(path string) []string {
	steps := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	if len(steps) == 0 {
		return []string{"."}
	}
	return steps
}

// open gets a hold of a name without following or opening it.
func open(dir int, name string) (int, error) {
	return unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// linkAt is where a link that root made leads, and empty for what is no link.
func linkAt(fd int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", nil
	}
	if st.Uid != 0 {
		return "", unix.EACCES
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err == nil && n == 0 {
		err = unix.ENOENT
	}
	return string(buf[:max(n, 0)]), err
}

// mkdir makes a folder for u and holds it.
func mkdir(at place, u account.User) (int, error) {
	if err := unix.Mkdirat(at.dir, at.name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	} else if err != nil {
		return open(at.dir, at.name) // somebody was faster
	}
	fd, err := unix.Openat(at.dir, at.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Fchown(fd, int(u.UID), int(u.GID)); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// openFor opens a file for writing on u's behalf and makes it u's.
func openFor(u account.User, path string) (file *os.File, fresh bool, err error) {
	at, err := reach(u, path, true, true)
	if err != nil {
		return nil, false, err
	}
	defer at.close()
	const flags = unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := unix.Openat(at.dir, at.name, flags|unix.O_CREAT|unix.O_EXCL, 0o666)
	if fresh = err == nil; errors.Is(err, unix.EEXIST) {
		fd, err = unix.Openat(at.dir, at.name, flags, 0)
	}
	if err == nil {
		if err = take(at, fd, u); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return nil, false, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), fresh, nil
}

// take empties a regular file and gives it to u.
func take(at place, fd int, u account.User) error {
	var st, dir unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &st), unix.Fstat(at.dir, &dir)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil // a device stays what it is
	}
	if open := dir.Uid != 0 || dir.Mode&0o022 != 0; open && st.Nlink > 1 && st.Uid != u.UID {
		return unix.EACCES // a second name that somebody may have put there
	}
	if err := unix.Ftruncate(fd, 0); err != nil {
		return err
	}
	return unix.Fchown(fd, int(u.UID), int(u.GID))
}

// remove removes a file, or a folder with all that is in it, as u or on u's behalf. What does not exist is removed already.
func remove(u account.User, path string) error {
	err := u.Act(func() error { return os.RemoveAll(path) })
	if !refused(u, err) {
		return err
	}
	at, reached := reach(u, path, false, false)
	if errors.Is(reached, fs.ErrNotExist) {
		return nil
	}
	if reached != nil {
		return err
	}
	defer at.close()
	return plain(os.RemoveAll(at.path()), path)
}

// moveFor moves on u's behalf; folders above the target that it makes are u's.
func moveFor(u account.User, source, target string) error {
	from, err := reach(u, source, false, false)
	if err != nil {
		return err
	}
	defer from.close()
	to, err := reach(u, target, true, false)
	if err != nil {
		return err
	}
	defer to.close()
	return plain(move(from.path(), to.path()), target)
}

// plain takes the descriptors' names out of an error's text.
func plain(err error, path string) error {
	var errno syscall.Errno
	if err != nil && strings.Contains(err.Error(), "/proc/self/fd/") && errors.As(err, &errno) {
		return &fs.PathError{Op: "change", Path: filepath.Clean(path), Err: errno}
	}
	return err
}
