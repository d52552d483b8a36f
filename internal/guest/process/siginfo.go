package process

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigchldPID reads si_pid out of a siginfo that waitid filled. The kernel's layout on 64-bit Linux is three
// ints (signo, errno, code), four bytes of padding, then the union, which for SIGCHLD begins with the pid.
func sigchldPID(info *unix.Siginfo) int {
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), 16)))
}
