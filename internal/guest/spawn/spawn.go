// Package spawn starts a program in the guest as one of its users, connected to the agent by pipes or by a
// pseudo-terminal. A program either runs with everything it needs, or nothing of it is left.
package spawn

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
)

// Plan is a program that can be started.
type Plan struct {
	user account.User
	path string
	args []string
	env  []string
	Dir  string

	Group *os.File // control group to start in; nil is the caller's
}

// Prepare finds out whether and how a command can be started as u in dir. The variables of the later layers win.
func Prepare(u account.User, cmd string, args []string, dir string, layers ...map[string]string) (*Plan, error) {
	env, err := environment(u, layers...)
	if err != nil {
		return nil, err
	}
	path, err := find(cmd, dir, env)
	if err != nil {
		return nil, cmp.Or(checkDir(u, dir), err) // in the wrong folder nothing is found
	}
	return &Plan{user: u, path: path, args: append([]string{cmd}, args...), env: env, Dir: dir}, nil
}

// defaultPath is the search path of processes when the agent itself was started without one.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment puts together what a process sees: the user's basics, then the sandbox's own variables,
// then those of the request; the later wins.
func environment(u account.User, layers ...map[string]string) ([]string, error) {
	path := os.Getenv("PATH")
	if path == "" {
		path = defaultPath
	}
	all := map[string]string{"PATH": path, "HOME": u.Home, "USER": u.Name, "LOGNAME": u.Name}
	for _, layer := range layers {
		for k, v := range layer {
			if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
				return nil, tartarus.Errorf(tartarus.Invalid, "environment variable %q has a name or value that cannot be passed on", k)
			}
			all[k] = v
		}
	}
	env := make([]string, 0, len(all))
	for k, v := range all {
		env = append(env, k+"="+v)
	}
	slices.Sort(env)
	return env, nil
}

// find looks a command up as execvp would: by the PATH of its own environment, from its own folder.
func find(cmd, dir string, env []string) (string, error) {
	if cmd == "" {
		return "", tartarus.Errorf(tartarus.Invalid, "no command given")
	}
	if strings.Contains(cmd, "/") {
		return cmd, nil // trouble is told by exec, with the user's permissions
	}
	i := slices.IndexFunc(env, func(v string) bool { return strings.HasPrefix(v, "PATH=") })
	for _, folder := range filepath.SplitList(env[i][len("PATH="):]) {
		full := filepath.Join(folder, cmd)
		if !filepath.IsAbs(full) {
			full = filepath.Join(dir, full)
		}
		if st, err := os.Stat(full); err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0 {
			return full, nil
		}
	}
	return "", tartarus.Errorf(tartarus.NotFound, "command '%s' not found in PATH", cmd)
}

// checkDir makes sure that a process of u can start in dir.
func checkDir(u account.User, dir string) error {
	return u.Act(func() error {
		st, err := os.Stat(dir)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return tartarus.Errorf(tartarus.Invalid, "cwd '%s' does not exist", dir)
		case err != nil:
			return fault.OS(fmt.Errorf("cwd '%s': %w", dir, err))
		case !st.IsDir():
			return tartarus.Errorf(tartarus.Invalid, "cwd '%s' is not a directory", dir)
		}
		return nil
	})
}

// Start starts the program as the leader of a session of its own, with w as its standard files, and returns its number. The
// caller collects it. The program's ends of w are closed here in any case, and all of w when the start does not work.
func (p *Plan) Start(w *Wires) (int, error) {
	defer w.handOver()
	attr := &syscall.ProcAttr{
		Dir: p.Dir, Env: p.env, Files: w.child,
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: w.Terminal != nil, Ctty: 0},
	}
	if p.Group != nil {
		// With a namespace of its own, so that it can neither leave the group nor lift its limits.
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD, attr.Sys.Unshareflags = true, int(p.Group.Fd()), syscall.CLONE_NEWCGROUP
	}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: p.user.UID, Gid: p.user.GID, Groups: p.user.Groups}
	} else if int(p.user.UID) != os.Geteuid() {
		w.abandon()
		return 0, tartarus.Errorf(tartarus.Forbidden, "the agent does not run as root and cannot become '%s'", p.user.Name)
	}
	pid, err := forkExec(p.path, p.args, attr)
	if errors.Is(err, errors.ErrUnsupported) {
		pid, err = syscall.ForkExec(p.path, p.args, attr)
	}
	if err != nil {
		w.abandon()
		// The kernel does not say whether it was the folder or the program that it could not use. Looked at only now, because
		// to look as another user takes a dozen system calls.
		return 0, cmp.Or(checkDir(p.user, p.Dir), p.startError(err))
	}
	return pid, nil
}

// exists reports whether the program's file is there.
func (p *Plan) exists() bool {
	full := p.path
	if !filepath.IsAbs(full) {
		full = filepath.Join(p.Dir, full)
	}
	_, err := os.Stat(full)
	return err == nil
}

// startError words what the kernel said.
func (p *Plan) startError(err error) error {
	cmd := p.args[0]
	switch {
	case errors.Is(err, syscall.ENOENT) && !p.exists():
		return tartarus.Errorf(tartarus.NotFound, "command '%s' not found", cmd)
	case errors.Is(err, syscall.ENOENT):
		// The file was there: its interpreter or loader is what is missing.
		return tartarus.Errorf(tartarus.NotFound, "start '%s': it or its interpreter does not exist", cmd)
	case errors.Is(err, syscall.EACCES):
		return tartarus.Errorf(tartarus.Forbidden, "start '%s': permission denied", cmd)
	case errors.Is(err, syscall.ENOEXEC):
		return tartarus.Errorf(tartarus.Invalid, "start '%s': not a program this system can run", cmd)
	case errors.Is(err, syscall.E2BIG), errors.Is(err, syscall.ENAMETOOLONG): // gVisor says the latter of an argument
		return tartarus.Errorf(tartarus.TooLarge, "start '%s': arguments and environment are too long", cmd)
	}
	return fault.OS(fmt.Errorf("start '%s': %w", cmd, err))
}
