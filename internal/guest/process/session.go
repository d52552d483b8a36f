package process

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// Signal sends sig to the process and its group; SIGKILL goes to its whole session, so that no job of a shell
// survives it. A process that has ended is tartarus.NotFound.
func (m *Manager) Signal(p *Process, sig unix.Signal) error {
	if !m.signalGroup(p, sig) {
		return tartarus.Errorf(tartarus.NotFound, "process with pid %d not found", p.PID)
	}
	if sig == unix.SIGKILL {
		killSession(p.PID)
	}
	return nil
}

// signalGroup signals the group that p leads, unless p was collected and its number may be another's.
func (m *Manager) signalGroup(p *Process, sig unix.Signal) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running[p.PID] != p {
		return false
	}
	return unix.Kill(-p.PID, sig) == nil
}

// expire kills p because the time of its Start call is up.
func (m *Manager) expire(p *Process) {
	p.mu.Lock()
	p.expired = true
	p.mu.Unlock()
	m.mu.Lock()
	other := m.running[p.PID]
	m.mu.Unlock()
	if other != nil && other != p {
		return // p is dead and its number was given away
	}
	m.signalGroup(p, unix.SIGKILL)
	killSession(p.PID)
}

// killRounds bounds killSession against something that forks faster than it is killed; each round
// kills all that the one before left behind.
const killRounds = 16

// killSession kills every process whose session is sid.
func killSession(sid int) {
	for range killRounds {
		found := false
		for _, t := range tasks() {
			if t.session == sid && t.state != 'Z' {
				found = true
				_ = unix.Kill(t.pid, unix.SIGKILL) // it may be gone already
			}
		}
		if !found {
			return
		}
	}
}

// task is a line of the process table.
type task struct {
	pid, parent, session int
	state                byte
	kernel               bool // a thread of the kernel, which cannot be signalled
}

// kernelThread is PF_KTHREAD of the Linux sources; gVisor has no such tasks and no such flag.
const kernelThread = 0x00200000

// tasks reads the process table. Processes that end while it is read are left out.
func tasks() []task {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var all []task
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		data, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		if t, ok := parseStat(pid, data); ok {
			all = append(all, t)
		}
	}
	return all
}

// parseStat reads "pid (comm) state ppid pgrp session tty tpgid flags ...". comm may hold anything, also
// parentheses, but nothing after it does.
func parseStat(pid int, data []byte) (task, bool) {
	f := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(f) < 7 || len(f[0]) != 1 {
		return task{}, false
	}
	parent, err1 := strconv.Atoi(string(f[1]))
	session, err2 := strconv.Atoi(string(f[3]))
	flags, err3 := strconv.ParseUint(string(f[6]), 10, 64)
	return task{pid, parent, session, f[0][0], flags&kernelThread != 0}, err1 == nil && err2 == nil && err3 == nil
}

// Shutdown asks every process in the guest to end with SIGTERM, kills after grace what has not, and returns
// the numbers of those that live all the same. In a program that is not init these are its descendants only.
// When ctx ends, the grace is over at once.
func (m *Manager) Shutdown(ctx context.Context, grace time.Duration) []int {
	if m.end(ctx, unix.SIGTERM, grace) == nil {
		return nil
	}
	return m.end(context.WithoutCancel(ctx), unix.SIGKILL, killWait)
}

// Terminate asks every process in the guest to end with SIGTERM, waits for at most grace, and returns the numbers of those that live all the same.
// Nothing is killed.
func (m *Manager) Terminate(ctx context.Context, grace time.Duration) []int {
	return m.end(ctx, unix.SIGTERM, grace)
}

// killWait is how long the kernel gets to take killed processes away; one in uninterruptible sleep
// may need longer, and is then reported.
const killWait = 2 * time.Second

// end signals all others and waits until they are gone. It returns those that are not.
func (m *Manager) end(ctx context.Context, sig unix.Signal, wait time.Duration) []int {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	asked := false
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		left := m.others()
		if len(left) == 0 {
			return nil
		}
		// Whoever is started after the question was asked may be what somebody ends in good order with.
		for _, pid := range left {
			if !asked || sig == unix.SIGKILL {
				_ = unix.Kill(pid, sig) // it may be gone already
			}
		}
		asked = true
		select {
		case <-ctx.Done():
			return left
		case <-time.After(pause):
		}
	}
}

// others lists every living process of the guest but this one.
func (m *Manager) others() []int {
	self := os.Getpid()
	all := tasks()
	mine := map[int]bool{self: true}
	if self != 1 {
		m.mu.Lock()
		for p := range m.live {
			mine[p.PID] = true
		}
		m.mu.Unlock()
		// Parents may stand after their children in the table, so it takes as many rounds as the tree is deep.
		for again := true; again; {
			again = false
			for _, t := range all {
				if !mine[t.pid] && (mine[t.parent] || mine[t.session] && t.session != self) {
					mine[t.pid], again = true, true
				}
			}
		}
	}
	var pids []int
	for _, t := range all {
		if t.pid == self || t.kernel || t.state == 'Z' || t.state == 'X' {
			continue
		}
		if self == 1 || mine[t.pid] {
			pids = append(pids, t.pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// close kills what runs and lets go of everything. No process starts afterwards.
func (m *Manager) close() {
	m.mu.Lock()
	m.closed = true
	if m.sweep != nil {
		m.sweep.Stop()
		m.sweep = nil
	}
	for file := range m.orphans {
		_ = file.SetReadDeadline(time.Unix(1, 0)) // wakes its reader, which closes it
	}
	var rest []*Process
	for p := range m.live {
		rest = append(rest, p)
	}
	m.mu.Unlock()
	m.spares.close()
	for _, p := range rest {
		m.signalGroup(p, unix.SIGKILL)
		killSession(p.PID)
	}
}
