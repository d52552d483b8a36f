package vmboot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	groupsAt = "/sys/fs/cgroup"
	group    = "guest" // of everything but the agent

	// defaultPath is the PATH of a guest that was not given one.
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// limit makes the control group of the guest's processes. The first process stays outside: it must be able to go on, and to kill, in the
// middle of a fork bomb. Those inside have a namespace of it, whose edge is one of delegation (nsdelegate): they can neither leave nor lift
// its limits by the usual means. The host's own limits do not depend on it: no process of the guest is one of the host's.
func (g *Guest) limit() error {
	if err := unix.Mount("cgroup2", groupsAt, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "nsdelegate"); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount control groups: %w", err)
	}
	if g.Machine.PIDs <= 0 {
		return nil
	}
	if err := os.WriteFile(filepath.Join(groupsAt, "cgroup.subtree_control"), []byte("+pids"), 0); err != nil {
		return fmt.Errorf("turn limit of processes on: %w", err)
	}
	dir := filepath.Join(groupsAt, group)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make control group: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pids.max"), []byte(strconv.FormatInt(g.Machine.PIDs, 10)), 0); err != nil {
		return fmt.Errorf("limit processes: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open control group: %w", err)
	}
	g.Group = f
	return nil
}

// Supervise runs the program that the host named in place of the agent, takes zombies away, and returns how it ended.
func (g *Guest) Supervise() (string, error) {
	m := g.Machine
	env := slices.Clone(m.Env)
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		env = append([]string{defaultPath}, env...)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer null.Close()
	attr := &syscall.ProcAttr{Dir: "/", Env: env, Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true}}
	if g.Group != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD, attr.Sys.Unshareflags = true, int(g.Group.Fd()), unix.CLONE_NEWCGROUP
	}
	pid, err := syscall.ForkExec(m.Args[0], m.Args, attr)
	if err != nil {
		return "", fmt.Errorf("start %s: %w", m.Args[0], err)
	}
	g.Ready()
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		if errors.Is(err, syscall.EINTR) || err == nil && got != pid {
			continue
		}
		switch {
		case err != nil:
			return "", fmt.Errorf("wait for %s: %w", m.Args[0], err)
		case ws.Signaled():
			return fmt.Sprintf("the guest's first process ended by signal %d", ws.Signal()), nil
		}
		return fmt.Sprintf("the guest's first process ended with status %d", ws.ExitStatus()), nil
	}
}
