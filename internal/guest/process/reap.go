package process

import (
	"context"
	"errors"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reaping. Every child is collected in two steps: waitid with WNOWAIT blocks until there is a dead one and leaves
// it be; then, under Manager.mu, it is taken away and its Process is told. A start holds the same lock from
// fork to registration, so a process that dies at once is never taken for a stranger, and a signal sent under
// the lock never reaches a number that was given away.
//
// With Config.Reap the agent is init or a subreaper: one goroutine waits for any child, strangers (orphans of
// others) included. Without, one goroutine waits for each process, and other code in the program may have children.

// reapAll collects all children until ctx ends.
func (m *Manager) reapAll(ctx context.Context) {
	for ctx.Err() == nil {
		pid, err := deadChild(unix.P_ALL, 0)
		switch {
		case err == nil:
			m.collect(pid)
		case errors.Is(err, unix.ECHILD):
			// No child at all, and so nobody whose death could leave us one: the next comes with a start.
			select {
			case <-ctx.Done():
			case <-m.started:
			}
		}
	}
}

// reapOne collects one process of ours.
func (m *Manager) reapOne(p *Process) {
	for {
		_, err := deadChild(unix.P_PID, p.PID)
		if err == nil || errors.Is(err, unix.ECHILD) {
			m.collect(p.PID)
			return
		}
	}
}

// deadChild blocks until a child is dead and returns its number without collecting it.
func deadChild(kind, id int) (int, error) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(kind, id, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return sigchldPID(&info), err
		}
	}
}

// collect takes a dead child away and tells its Process.
func (m *Manager) collect(pid int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ws syscall.WaitStatus
	got, err := syscall.Wait4(pid, &ws, syscall.WNOHANG, nil)
	p := m.running[pid]
	if p == nil || (err == nil && got != pid) {
		return
	}
	if err != nil {
		ws = 0xff << 8 // somebody else collected it; its status is lost
	}
	delete(m.running, pid)
	p.mu.Lock()
	p.exited, p.status = true, ws
	p.mu.Unlock()
	close(p.exit)
}

func itoa(n int) string { return strconv.Itoa(n) }
