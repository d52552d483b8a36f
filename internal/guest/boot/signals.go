package boot

import (
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The real-time signals that programs may use.
const (
	firstRealtime = 34
	lastRealtime  = 64
)

// forgetSignals gives signals of which nothing is heard here back to the kernel, each with its default action. Go takes all of them in hand,
// and lets go of each with one system call in every process that it starts: that is every third call of a command's start, and a call is
// dear where a sentry answers it.
func forgetSignals() error {
	unused := []syscall.Signal{
		unix.SIGALRM, unix.SIGVTALRM, unix.SIGIO, unix.SIGPWR, unix.SIGSTKFLT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH,
		unix.SIGCHLD, // dead children are waited for
	}
	for s := firstRealtime; s <= lastRealtime; s++ {
		unused = append(unused, syscall.Signal(s))
	}
	for _, s := range unused {
		signal.Ignore(s) // so that the runtime knows of no handler
		// All zero is the default action: being ignored would be passed on to every process.
		var action [4]uint64
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0); e != 0 {
			return os.NewSyscallError("rt_sigaction", e)
		}
	}
	return nil
}
