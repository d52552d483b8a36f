package boot

import (
	"os"
	"os/signal"
	"unsafe"

	"golang.org/x/sys/unix"
)

// forgetChildren gives SIGCHLD back to the kernel, with its default action: dead children are waited for, and each would interrupt the
// agent once more for a handler that does nothing.
func forgetChildren() error {
	signal.Ignore(unix.SIGCHLD) // so that the runtime knows of no handler
	// All zero is the default action: being ignored would be passed on to every process.
	var action [4]uint64
	if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0); e != 0 {
		return os.NewSyscallError("rt_sigaction", e)
	}
	return nil
}
