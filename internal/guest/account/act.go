package account

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Act runs do with the file permissions of u: what it opens, makes and removes is checked and owned
// as if u had done it. do must stay on its goroutine for everything that needs those permissions.
//
// The identity is that of one thread, changed by raw system calls, because the C library's rule
// that all threads agree would make every request share one user. setfsuid would say it more plainly,
// but gVisor does not have it. Only the effective ids change: the real and saved ids stay root's, so
// that the user can neither signal nor trace the agent.
func (u User) Act(do func() error) error {
	if u.UID == 0 || unix.Geteuid() != 0 {
		return do()
	}
	runtime.LockOSThread()
	back, err := become(u)
	defer func() {
		if back() != nil {
			// Nobody else may inherit this thread. It is still locked, so it ends with its goroutine.
			runtime.Goexit()
		}
		runtime.UnlockOSThread()
	}()
	if err != nil {
		return fmt.Errorf("act as %s: %w", u.Name, err)
	}
	return do()
}

// become changes the calling thread and returns the way back, which works from any half-way state.
func become(u User) (back func() error, err error) {
	old, err := unix.Getgroups()
	oldGID := unix.Getegid()
	back = func() error {
		// The uid first: it brings back the capabilities that the rest needs.
		if err := setEUID(0); err != nil {
			return err
		}
		if err := setEGID(oldGID); err != nil {
			return err
		}
		groups := make([]uint32, len(old))
		for i, g := range old {
			groups[i] = uint32(g)
		}
		return setGroups(groups)
	}
	if err != nil {
		return back, err
	}
	if err := setGroups(u.Groups); err != nil {
		return back, err
	}
	if err := setEGID(int(u.GID)); err != nil {
		return back, err
	}
	return back, setEUID(int(u.UID))
}

func setEUID(uid int) error { return setThree(unix.SYS_SETRESUID, uid) }
func setEGID(gid int) error { return setThree(unix.SYS_SETRESGID, gid) }

// setThree sets the effective one of real, effective and saved id of this thread.
func setThree(call uintptr, id int) error {
	const keep = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(call, keep, uintptr(id), keep); errno != 0 {
		return errno
	}
	return nil
}

func setGroups(groups []uint32) error {
	var first unsafe.Pointer
	if len(groups) > 0 {
		first = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0); errno != 0 {
		return errno
	}
	return nil
}
