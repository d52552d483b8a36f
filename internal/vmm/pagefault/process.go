package pagefault

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// acceptTimeout bounds the wait for the monitor, which connects when its snapshot is loaded.
const acceptTimeout = time.Minute

// Main must be called first thing in main, and in TestMain of tests that restore machines with page-fault handlers. When this process is one,
// Main serves and never returns. Otherwise it returns at once and has done nothing.
func Main(openers map[string]Opener) {
	if len(os.Args) == 0 || filepath.Base(os.Args[0]) != Program {
		return
	}
	if err := run(openers); err != nil {
		fmt.Fprintln(os.Stderr, Program+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(openers map[string]Opener) error {
	var o order
	const most = 64 << 20 // a link to each chunk of 4 MiB of memory: 500 bytes
	told := os.NewFile(orderFD, "order")
	if err := json.NewDecoder(io.LimitReader(told, most)).Decode(&o); err != nil {
		return fmt.Errorf("read order: %w", err)
	}
	told.Close()
	src, err := openSource(o, openers)
	if err != nil {
		return err
	}
	defer src.Close()
	l, err := net.FileListener(os.NewFile(listenFD, "listener"))
	if err != nil {
		return err
	}
	working := os.NewFile(workingFD, "working set")
	if err := giveUpRights(o); err != nil {
		return err
	}
	conn, err := accept(l.(*net.UnixListener), o.Monitor)
	if err != nil {
		return err
	}
	defer conn.Close()
	return serve(conn, src, o.Size, working)
}

func openSource(o order, openers map[string]Opener) (Source, error) {
	if o.Kind == "" {
		return os.NewFile(memoryFD, "memory"), nil
	}
	open, ok := openers[o.Kind]
	if !ok {
		return nil, fmt.Errorf("no source of kind %q in this program", o.Kind)
	}
	return open(o.Spec)
}

// giveUpRights leaves this process nothing but its open descriptors.
func giveUpRights(o order) error {
	if o.UID <= 0 {
		return errors.New("no user to become")
	}
	const files, working = 64, 8 << 20
	return errors.Join(
		unix.Chroot(o.Root), unix.Chdir("/"),
		unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: files}),
		unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: working, Max: working}),
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}),
		syscall.Setgroups(nil), syscall.Setresgid(o.UID, o.UID, o.UID), syscall.Setresuid(o.UID, o.UID, o.UID),
		noNewPrivileges(),
	)
}

// noNewPrivileges gives the right to gain any up, in every thread: the kernel keeps that for each by itself, and this process has several by now.
func noNewPrivileges() error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if errno == syscall.ENOTSUP { // built with cgo, as with the race detector: this thread, and those that it makes
		return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// accept waits for the one process that is served.
func accept(l *net.UnixListener, monitor int) (*net.UnixConn, error) {
	defer l.Close()
	if err := l.SetDeadline(time.Now().Add(acceptTimeout)); err != nil {
		return nil, err
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("wait for monitor: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(cerr, err); err != nil {
		return nil, err
	}
	if int(cred.Uid) != monitor {
		return nil, fmt.Errorf("user %d connects in place of the monitor", cred.Uid)
	}
	return conn, nil
}
