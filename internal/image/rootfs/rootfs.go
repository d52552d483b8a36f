// Package rootfs makes a root filesystem into one that our runtimes and clients can rely on: the guest agent, the user
// "user" and the mount points are there.
// It adds and mends, and takes nothing away that a guest could miss; run twice, it changes nothing the second time.
package rootfs

import (
	"bytes"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
)

// User is who runs commands unless a template or a caller says otherwise.
const User = "user"

// Home is the home directory of User.
const Home = "/home/user"

// Time is the modification time of all that we put into images ourselves: a fixed one, so that equal
// input gives equal images.
var Time = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// firstUID is that of the first ordinary user on every common Linux.
const firstUID = 1000

// Finish completes the tree in w. Agent is the guest agent's program.
func Finish(w *erofs.Writer, agent []byte) error {
	r := root{w}
	for _, step := range []func() error{
		r.directories,
		r.placeholders,
		r.user,
		func() error { return r.file(tartarus.AgentPath, 0o755, agent) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("complete root filesystem: %w", err)
		}
	}
	return nil
}

type root struct{ *erofs.Writer }

// real follows the symbolic links in a path inside the image, as a guest's kernel would. A part that is missing
// is taken as it is written.
func (r root) real(name string) (string, error) {
	done, rest := "", strings.Split(name, "/")
	for hops := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = strings.TrimPrefix(path.Dir("/"+done), "/")
			continue
		}
		next := path.Join(done, part)
		e, ok := r.Lookup(next)
		if !ok || e.Type() != erofs.TypeSymlink {
			done = next
			continue
		}
		// 40 is what Linux allows.
		if hops++; hops > 40 {
			return "", tartarus.Errorf(tartarus.Invalid, "%s goes through more than 40 symbolic links", name)
		}
		if path.IsAbs(e.Target) {
			done = ""
		}
		rest = append(strings.Split(e.Target, "/"), rest...)
	}
	return done, nil
}

func (r root) file(name string, mode uint32, data []byte) error {
	// The last part is replaced, even when it is a link: it must be this file and nothing else.
	dir, err := r.real(path.Dir(name))
	if err != nil {
		return err
	}
	e := erofs.Entry{Path: path.Join(dir, path.Base(name)), Mode: erofs.TypeRegular | mode, ModTime: Time, Size: int64(len(data))}
	return r.Add(e, bytes.NewReader(data))
}

// update writes a file when its text is another: what is replaced has to be cleared out of the image at its end.
func (r root) update(name, text string) error {
	old, err := r.read(name)
	if err != nil || old == text {
		return err
	}
	return r.file(name, 0o644, []byte(text))
}

func (r root) directories() error {
	for _, d := range []struct {
		path string
		mode uint32
	}{
		{"proc", 0o555}, {"sys", 0o555}, {"dev", 0o755}, {"dev/pts", 0o755}, {"dev/shm", 0o1777}, {"tmp", 0o1777}, {"run", 0o755},
		{"etc", 0o755}, {"home", 0o755}, {"root", 0o700}, {"usr/bin", 0o755}, {"var/tmp", 0o1777},
	} {
		name, err := r.real(d.path)
		if err != nil {
			return err
		}
		if e, ok := r.Lookup(name); ok && e.Type() == erofs.TypeDir {
			continue
		}
		if err := r.Add(erofs.Entry{Path: name, Mode: erofs.TypeDir | d.mode, ModTime: Time}, nil); err != nil {
			return err
		}
	}
	return nil
}

// placeholders makes the files that are written or mounted over when a sandbox starts.
func (r root) placeholders() error {
	for _, name := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/machine-id"} {
		dir, err := r.real(path.Dir(name))
		if err != nil {
			return err
		}
		e, ok := r.Lookup(path.Join(dir, path.Base(name)))
		// resolv.conf is often a link to what a service of the guest would write, and a machine-id
		// of an image would be the same in all its sandboxes: both start empty.
		if ok && e.Type() == erofs.TypeRegular && (name != "/etc/machine-id" || e.Size == 0) {
			continue
		}
		if err := r.file(name, 0o644, nil); err != nil {
			return err
		}
	}
	return nil
}

// user makes the account "user" with its group and home, unless it is there. Its ids are 1000, or the next
// that is free in both files where an image has given 1000 to somebody else.
func (r root) user() error {
	passwd, err := r.read("/etc/passwd")
	if err != nil {
		return err
	}
	group, err := r.read("/etc/group")
	if err != nil {
		return err
	}
	if passwd == "" {
		passwd = "root:x:0:0:root:/root:" + r.shell() + "\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
	}
	if group == "" {
		group = "root:x:0:\nnogroup:x:65534:\n"
	}
	uid, gid, home := firstUID, firstUID, Home
	if f := account(passwd, User); f != nil {
		uid, gid, home = number(f[2]), number(f[3]), f[5]
	} else {
		for taken(passwd, 2, uid) || taken(group, 2, uid) && !groupIs(group, uid) {
			uid++
		}
		gid = uid
		if f := account(group, User); f != nil {
			gid = number(f[2])
		} else {
			group = line(group, fmt.Sprintf("%s:x:%d:", User, gid))
		}
		passwd = line(passwd, fmt.Sprintf("%s:%s:%d:%d::%s:%s", User, r.secret(), uid, gid, home, r.shell()))
	}
	if err := r.update("/etc/passwd", passwd); err != nil {
		return err
	}
	if err := r.update("/etc/group", group); err != nil {
		return err
	}
	if err := r.shadow(); err != nil {
		return err
	}
	name, err := r.real(home)
	if err != nil {
		return err
	}
	if _, ok := r.Lookup(name); ok {
		return nil
	}
	return r.Add(erofs.Entry{Path: name, Mode: erofs.TypeDir | 0o755, UID: uint32(uid), GID: uint32(gid), ModTime: Time}, nil)
}

// shadow adds the account there where the file exists: without it, sudo and su refuse the account.
func (r root) shadow() error {
	name, err := r.real("/etc/shadow")
	if err != nil {
		return err
	}
	e, ok := r.Lookup(name)
	if !ok {
		return nil
	}
	text, err := r.read("/etc/shadow")
	if err != nil || account(text, User) != nil {
		return err
	}
	e.Size = 0
	data := []byte(line(text, User+":*:20454:0:99999:7:::")) // 20454 days: 2026-01-01
	e.Size, e.ModTime = int64(len(data)), Time
	return r.Add(e, bytes.NewReader(data))
}

// secret is the password field: "x" points to the shadow file, "*" fits no password.
func (r root) secret() string {
	if name, err := r.real("/etc/shadow"); err == nil {
		if _, ok := r.Lookup(name); ok {
			return "x"
		}
	}
	return "*"
}

func (r root) shell() string {
	for _, sh := range []string{"/bin/bash", "/usr/bin/bash"} {
		if name, err := r.real(sh); err == nil {
			if _, ok := r.Lookup(name); ok {
				return sh
			}
		}
	}
	return "/bin/sh"
}

// read gives the text of a small file, "" when it is missing.
func (r root) read(name string) (string, error) {
	name, err := r.real(name)
	if err != nil {
		return "", err
	}
	if _, ok := r.Lookup(name); !ok {
		return "", nil
	}
	b, err := r.ReadFile(name)
	return string(b), err
}

// account finds the entry of name in a file like passwd, with at least the 7 fields of that file.
func account(text, name string) []string {
	for l := range strings.Lines(text) {
		if f := strings.Split(strings.TrimSuffix(l, "\n"), ":"); f[0] == name {
			return append(f, make([]string, 7)...)
		}
	}
	return nil
}

func taken(text string, field, id int) bool {
	for l := range strings.Lines(text) {
		if f := strings.Split(strings.TrimSuffix(l, "\n"), ":"); len(f) > field && f[field] == strconv.Itoa(id) {
			return true
		}
	}
	return false
}

// groupIs reports whether id is the group of User already.
func groupIs(group string, id int) bool {
	f := account(group, User)
	return f != nil && f[2] == strconv.Itoa(id)
}

func line(text, more string) string {
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + more + "\n"
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return firstUID
	}
	return n
}
