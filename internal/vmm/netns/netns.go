// Package netns runs things in network namespaces. A thread that could not come back to its own namespace never serves
// anybody else: it ends.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// empty belongs to the program: it lives as long, and no driver can change it.
var empty = sync.OnceValues(func() (f *os.File, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, herr := os.Open("/proc/thread-self/ns/net")
		if err = herr; err != nil {
			runtime.UnlockOSThread()
			return
		}
		defer home.Close()
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		// Without the unlock the thread ends here, unless it is the program's first, which must come back.
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	<-done
	if err != nil {
		return nil, fmt.Errorf("make empty network namespace: %w", err)
	}
	return f, nil
})

// Empty is a network namespace with nothing in it, for guests without a network. Making a namespace takes the kernel's
// global network lock, so it is made once and shared: nothing in it can carry a packet. It must not be closed.
func Empty() (*os.File, error) { return empty() }

// In runs f on a thread that is in the network namespace ns.
func In(ns *os.File, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			result <- err
			return
		}
		defer home.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = f()
		// Without the unlock the thread ends here.
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// OwnTAP lets an unprivileged user attach to the TAP device of a namespace, which must be there; nobody but root can before.
func OwnTAP(ns *os.File, device string, uid, gid int) error {
	err := In(ns, func() error {
		// Attaching to a name that does not exist would make a device.
		if here, err := hasDevice(device); err != nil || !here {
			return errors.Join(err, errors.New("no such device"))
		}
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		defer unix.Close(fd)
		req, err := unix.NewIfreq(device)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		return errors.Join(unix.IoctlSetInt(fd, unix.TUNSETOWNER, uid), unix.IoctlSetInt(fd, unix.TUNSETGROUP, gid))
	})
	if err != nil {
		return fmt.Errorf("give TAP device %s to user %d: %w", device, uid, err)
	}
	return nil
}

// hasDevice asks the kernel for the index of a device of the calling thread's namespace.
func hasDevice(device string) (bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(device)
	if err != nil {
		return false, err
	}
	err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	return err == nil, err
}
