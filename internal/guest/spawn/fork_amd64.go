package spawn

import (
	"errors"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Package syscall's own fork sends each of the handlers that Go installs back with a call of its own, and learns by a pipe whether the program
// could be run. Here the kernel clears all handlers as it makes the child (Linux 5.5), and the child, which shares this memory until then, says so
// itself: less than half of the system calls, each of which is dear where a sentry answers it.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

// cloneArgs is struct clone_args of linux/sched.h.
type cloneArgs struct {
	flags      uint64
	_          [3]uint64 // pidfd, child_tid, parent_tid
	exitSignal uint64
	_          [5]uint64 // stack, stack_size, tls, set_tid, set_tid_size
	cgroup     uint64
}

//go:noescape
func clone3(args *cloneArgs, size uintptr) (r1, errno uintptr)

// program is what a child needs, ready for a process that may not allocate.
type program struct {
	clone      cloneArgs
	path, dir  *byte
	argv, envv []*byte
	groups     []uint32
	become     bool
	uid, gid   uintptr
	unshare    uintptr
	terminal   bool
	files      [3]uintptr
	mask       uint64        // no signal blocked
	failed     syscall.Errno // why the child could not run the program
}

// forkExec is syscall.ForkExec of what this package uses. It returns errors.ErrUnsupported where the kernel is too old for it.
func forkExec(path string, args []string, attr *syscall.ProcAttr) (int, error) {
	p, err := prepare(path, args, attr)
	if err != nil {
		return 0, err
	}
	syscall.ForkLock.Lock()
	pid, errno := p.fork()
	afterFork()
	syscall.ForkLock.Unlock()
	switch {
	case errno == unix.ENOSYS, errno == unix.EINVAL:
		return 0, errors.ErrUnsupported
	case errno != 0:
		return 0, errno
	case p.failed != 0:
		for {
			if _, err := syscall.Wait4(pid, nil, 0, nil); !errors.Is(err, syscall.EINTR) {
				return 0, p.failed
			}
		}
	}
	return pid, nil
}

func prepare(path string, args []string, attr *syscall.ProcAttr) (*program, error) {
	p := &program{terminal: attr.Sys.Setctty, unshare: attr.Sys.Unshareflags}
	var err error
	if p.path, err = syscall.BytePtrFromString(path); err != nil {
		return nil, err
	}
	if p.dir, err = syscall.BytePtrFromString(attr.Dir); err != nil {
		return nil, err
	}
	if p.argv, err = syscall.SlicePtrFromStrings(args); err != nil {
		return nil, err
	}
	if p.envv, err = syscall.SlicePtrFromStrings(attr.Env); err != nil {
		return nil, err
	}
	for i, fd := range attr.Files {
		if fd <= uintptr(syscall.Stderr) {
			return nil, unix.EBADF // it would be overwritten by an earlier one; the program's own three are always open
		}
		p.files[i] = fd
	}
	if c := attr.Sys.Credential; c != nil {
		p.become, p.uid, p.gid, p.groups = true, uintptr(c.Uid), uintptr(c.Gid), c.Groups
	}
	p.clone = cloneArgs{flags: unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_CLEAR_SIGHAND, exitSignal: uint64(unix.SIGCHLD)}
	if attr.Sys.UseCgroupFD {
		p.clone.flags |= unix.CLONE_INTO_CGROUP
		p.clone.cgroup = uint64(attr.Sys.CgroupFD)
	}
	return p, nil
}

// fork returns in the parent only, once the child has the program or has failed. The child lives in this very frame: it may neither allocate nor
// grow the stack nor call what could.
//
//go:noinline
//go:norace
//go:nocheckptr
func (p *program) fork() (int, syscall.Errno) {
	beforeFork()
	pid, errno := clone3(&p.clone, unsafe.Sizeof(p.clone))
	if errno != 0 || pid != 0 {
		return int(pid), syscall.Errno(errno)
	}
	var e syscall.Errno
	if _, _, e = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); e != 0 {
		goto failed
	}
	if p.unshare != 0 {
		if _, _, e = syscall.RawSyscall(unix.SYS_UNSHARE, p.unshare, 0, 0); e != 0 {
			goto failed
		}
	}
	if p.become {
		if _, _, e = syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(p.groups)), uintptr(unsafe.Pointer(unsafe.SliceData(p.groups))), 0); e != 0 {
			goto failed
		}
		if _, _, e = syscall.RawSyscall(unix.SYS_SETGID, p.gid, 0, 0); e != 0 {
			goto failed
		}
		if _, _, e = syscall.RawSyscall(unix.SYS_SETUID, p.uid, 0, 0); e != 0 {
			goto failed
		}
	}
	if _, _, e = syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(p.dir)), 0, 0); e != 0 {
		goto failed
	}
	for i := range p.files {
		if _, _, e = syscall.RawSyscall(unix.SYS_DUP3, p.files[i], uintptr(i), 0); e != 0 {
			goto failed
		}
	}
	if p.terminal {
		if _, _, e = syscall.RawSyscall(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 1); e != 0 {
			goto failed
		}
	}
	if _, _, e = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&p.mask)), 0, unsafe.Sizeof(p.mask), 0, 0); e != 0 {
		goto failed
	}
	_, _, e = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(p.path)), uintptr(unsafe.Pointer(unsafe.SliceData(p.argv))),
		uintptr(unsafe.Pointer(unsafe.SliceData(p.envv))))
failed:
	p.failed = e
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT, 253, 0, 0)
	}
}
