package network

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// withoutForks runs f while no process is started: until it is another program, a child has a copy of every descriptor, and a device that is
// attached to twice is busy for the virtual machine that comes next.
func withoutForks(f func() error) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return f()
}

// openTAP attaches to the TAP device of the calling thread's namespace, making it where it is missing.
func openTAP() (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(tapLink)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("attach to TAP device: %w", err)
	}
	return fd, nil
}

// makeTAP makes a TAP device that stays when nobody is attached, in the calling thread's namespace.
func makeTAP() error {
	return withoutForks(func() error {
		fd, err := openTAP()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
			return fmt.Errorf("keep TAP device: %w", err)
		}
		return nil
	})
}

// bridgeTAP joins the TAP device and the cable's inner end. The bridge has no address and the namespace no route: frames
// pass unchanged between the virtual machine and the host's end, where they are judged.
func bridgeTAP(inside *netlink.Handle, s *Slot) error {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = bridgeLink, s.mtu
	snooping := false
	if err := inside.LinkAdd(&netlink.Bridge{LinkAttrs: a, MulticastSnooping: &snooping}); err != nil {
		return fmt.Errorf("create bridge: %w", err)
	}
	bridge, err := inside.LinkByName(bridgeLink)
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	for _, name := range []string{guestLink, tapLink} {
		l, err := inside.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if err := errors.Join(inside.LinkSetMTU(l, s.mtu), inside.LinkSetMaster(l, bridge), inside.LinkSetUp(l)); err != nil {
			return fmt.Errorf("join %s to bridge: %w", name, err)
		}
	}
	if err := inside.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("bring bridge up: %w", err)
	}
	return nil
}

// OwnTAP lets an unprivileged user attach to the TAP device of a lent slot; nobody but root can before.
func (p *Pool) OwnTAP(ctx context.Context, s *Slot, uid, gid int) error {
	if s.kind != TAP {
		return tartarus.Errorf(tartarus.Invalid, "network: slot %s has no TAP device", s.name)
	}
	return p.host.onThread(func() error {
		if err := p.host.enter(s.name); err != nil {
			return err
		}
		if err := setTAPOwner(uid, gid); err != nil {
			return fmt.Errorf("give TAP device of %s to user %d: %w", s.name, uid, err)
		}
		return nil
	})
}

// setTAPOwner says who may attach to the TAP device of the calling thread's namespace.
func setTAPOwner(uid, gid int) error {
	return withoutForks(func() error {
		fd, err := openTAP()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return errors.Join(unix.IoctlSetInt(fd, unix.TUNSETOWNER, uid), unix.IoctlSetInt(fd, unix.TUNSETGROUP, gid))
	})
}

// disownTAP makes the TAP device of the calling thread's namespace root's again.
func disownTAP() error {
	if err := setTAPOwner(0, 0); err != nil {
		return fmt.Errorf("take TAP device back: %w", err)
	}
	return nil
}
