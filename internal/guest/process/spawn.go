package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
)

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
		full := cmd
		if !filepath.IsAbs(full) {
			full = filepath.Join(dir, full)
		}
		if _, err := os.Stat(full); errors.Is(err, os.ErrNotExist) {
			return "", tartarus.Errorf(tartarus.NotFound, "command '%s' not found", cmd)
		}
		return cmd, nil // any other trouble is told by exec, with the user's permissions
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

// wires are the files that connect a process with the agent.
type wires struct {
	child  []uintptr  // standard input, output and error of the process
	theirs []*os.File // closed once the process has them
	ours   []*os.File // closed only when the start does not work

	stdin    *os.File
	outputs  []output
	terminal *terminal
}

type output struct {
	stream Stream
	file   *os.File
}

func (w *wires) abandon() {
	for _, f := range w.ours {
		f.Close()
	}
}

func (w *wires) handOver() {
	for _, f := range w.theirs {
		f.Close()
	}
}

// wirePipes connects a process by pipes.
func wirePipes(withStdin bool) (w *wires, err error) {
	w = &wires{}
	defer func() {
		if err != nil {
			w.abandon()
			w.handOver()
		}
	}()
	if withStdin {
		r, ours, err := pipe(false)
		if err != nil {
			return w, err
		}
		w.stdin = ours
		w.theirs, w.ours = append(w.theirs, r), append(w.ours, ours)
	} else {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return w, err
		}
		w.theirs = append(w.theirs, null)
	}
	for _, stream := range []Stream{Stdout, Stderr} {
		theirs, ours, err := pipe(true)
		if err != nil {
			return w, err
		}
		w.theirs, w.ours = append(w.theirs, theirs), append(w.ours, ours)
		w.outputs = append(w.outputs, output{stream, ours})
	}
	for _, f := range w.theirs {
		w.child = append(w.child, f.Fd())
	}
	return w, nil
}

// wireTerminal connects a process by a new pseudo-terminal.
func wireTerminal(u account.User, cols, rows uint32) (*wires, error) {
	t, err := openTerminal(cols, rows, u.UID, u.GID)
	if err != nil {
		return nil, err
	}
	fd := t.slave.Fd()
	return &wires{
		child: []uintptr{fd, fd, fd}, ours: []*os.File{t.master, t.slave}, outputs: []output{{Terminal, t.master}}, terminal: t,
	}, nil
}

// pipe makes a pipe of which only our end is non-blocking: the other one is an ordinary pipe to a
// process that expects one.
func pipe(weRead bool) (theirs, ours *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	our, their := fds[1], fds[0]
	if weRead {
		our, their = fds[0], fds[1]
	}
	if err := unix.SetNonblock(our, true); err != nil {
		unix.Close(our)
		unix.Close(their)
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(their), "|theirs"), os.NewFile(uintptr(our), "|ours"), nil
}

// fork starts the program. The caller holds Manager.mu.
func fork(path string, args, env []string, dir string, u account.User, w *wires) (int, error) {
	attr := &syscall.ProcAttr{
		Dir: dir, Env: env, Files: w.child,
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: w.terminal != nil, Ctty: 0},
	}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
	} else if int(u.UID) != os.Geteuid() {
		return 0, tartarus.Errorf(tartarus.Forbidden, "the agent does not run as root and cannot become '%s'", u.Name)
	}
	return syscall.ForkExec(path, args, attr)
}

// startError words what fork returned.
func startError(cmd string, err error) error {
	switch {
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
