// Package process holds on to a process of the host so that nothing ever happens to another one that got its
// number: a Handle is a pidfd, and an Identity tells one process from every other, past and future, of this boot.
package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Identity is a process that a later program can recognise.
type Identity struct {
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"`  // start time in clock ticks since boot, proc_pid_stat(5) field 22
	Device uint64 `json:"device"` // of its program file,
	Inode  uint64 `json:"inode"`  // which may have been replaced since
	Boot   string `json:"boot"`   // the host's boot id
}

// ErrGone means that the process of an Identity does not run.
var ErrGone = errors.New("process is gone")

// Identify describes the process pid as it is now.
func Identify(pid int) (Identity, error) {
	start, err := startTime(pid)
	if err != nil {
		return Identity{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/"+strconv.Itoa(pid)+"/exe", &st); err != nil {
		return Identity{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	boot, err := bootID()
	if err != nil {
		return Identity{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return Identity{PID: pid, Start: start, Device: uint64(st.Dev), Inode: st.Ino, Boot: boot}, nil
}

// bootID is constant for the life of this program.
var bootID = sync.OnceValues(func() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
})

func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold anything; the fields after the last parenthesis are fixed.
	_, rest, ok := strings.Cut(string(b[max(strings.LastIndexByte(string(b), ')'), 0):]), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, errors.New("unreadable stat file")
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// Handle is one process.
type Handle struct {
	file *os.File
}

// Open takes hold of the process pid, whoever it is.
func Open(pid int) (*Handle, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &Handle{file: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// Find takes hold of the very process that id describes, or says ErrGone.
func Find(id Identity) (*Handle, error) {
	boot, err := bootID()
	if err != nil {
		return nil, fmt.Errorf("find process: %w", err)
	}
	if id.PID <= 1 || id.Boot != boot {
		return nil, ErrGone
	}
	h, err := Open(id.PID)
	if err != nil {
		return nil, err
	}
	// The handle is held already: if what is read now matches and the process still runs afterwards,
	// it was this process that was read.
	now, err := Identify(id.PID)
	if err != nil || now != id || h.Ended() {
		h.Close()
		return nil, ErrGone
	}
	return h, nil
}

// Ended reports whether the process has ended, reaped or not.
func (h *Handle) Ended() bool {
	ended := true
	conn, err := h.file.SyscallConn()
	if err != nil {
		return true
	}
	if err := conn.Control(func(fd uintptr) { ended = readable(fd) }); err != nil {
		return true
	}
	return ended
}

// Wait blocks until the process has ended or ctx has.
func (h *Handle) Wait(ctx context.Context) error {
	conn, err := h.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process: %w", err)
	}
	if ctx.Done() == nil {
		return conn.Read(readable)
	}
	done := make(chan error, 1)
	go func() { done <- conn.Read(readable) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err() // the other goroutine ends with the process or the handle
	}
}

// Signal sends a signal to the process; ErrGone when it has ended.
func (h *Handle) Signal(sig unix.Signal) error {
	conn, err := h.file.SyscallConn()
	if err != nil {
		return ErrGone
	}
	var sent error
	if err := conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return ErrGone
	}
	if errors.Is(sent, unix.ESRCH) {
		return ErrGone
	}
	return sent
}

// Close lets go of the process, which lives on.
func (h *Handle) Close() { _ = h.file.Close() }

// readable reports whether a pidfd says that its process has ended.
func readable(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// Forbidden reports whether a process that has ended was killed by its system call filter.
func Forbidden(s *os.ProcessState) bool {
	ws, ok := s.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == unix.SIGSYS
}
