package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netlinkTimeout bounds one exchange with the kernel. Removing many links at once takes it longest, under a second.
const netlinkTimeout = 10 * time.Second

// host is the namespace in which the pool was opened, and everything that is done to it.
type host struct {
	runDir string
	links  *netlink.Handle
	ns     *os.File
}

func openHost(runDir string) (*host, error) {
	if os.Geteuid() != 0 {
		return nil, tartarus.Errorf(tartarus.Unsupported, "network: making namespaces and egress rules needs root")
	}
	for _, d := range []string{"netns", "realms"} {
		if err := os.MkdirAll(filepath.Join(runDir, d), 0o755); err != nil {
			return nil, fmt.Errorf("create run folder: %w", err)
		}
	}
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	h, err := newLinks()
	if err != nil {
		ns.Close()
		return nil, err
	}
	return &host{runDir: runDir, links: h, ns: ns}, nil
}

// newLinks opens a routing socket in the calling thread's namespace.
func newLinks() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open routing socket: %w", err)
	}
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("set routing socket timeout: %w", err)
	}
	return h, nil
}

func (h *host) close() {
	h.links.Close()
	h.ns.Close()
}

func (h *host) nsDir() string             { return filepath.Join(h.runDir, "netns") }
func (h *host) nsPath(name string) string { return filepath.Join(h.nsDir(), name) }

// mountNamespaces makes the folder of namespace handles a private mount point: otherwise every handle
// would be copied into the mount namespace of every service of the host.
func (h *host) mountNamespaces() error {
	dir := h.nsDir()
	if mounted, err := isMountPoint(dir); err != nil || mounted {
		return err
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", dir, err)
	}
	return nil
}

func (h *host) unmountNamespaces() error {
	dir := h.nsDir()
	if mounted, err := isMountPoint(dir); err != nil || !mounted {
		return err
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

func isMountPoint(dir string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st); err != nil {
		return false, fmt.Errorf("stat %s: %w", dir, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, tartarus.Errorf(tartarus.Unsupported, "network: the kernel is older than 5.8 and cannot tell mount points")
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// onThread runs f on an OS thread of its own that may change its namespace; afterwards the thread is back in the host's.
// The process's first thread is never used, because /proc/self means it.
func (h *host) onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- h.onThread(f) // on another one, while this one is taken
			runtime.UnlockOSThread()
			return
		}
		err := f()
		if back := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); back != nil {
			done <- errors.Join(err, fmt.Errorf("return to the host's namespace: %w", back))
			return // still locked: the thread ends with its goroutine
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// back returns the calling thread to the host's namespace.
func (h *host) back() error {
	if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("return to the host's namespace: %w", err)
	}
	return nil
}

// enter takes the calling thread into the namespace of a slot.
func (h *host) enter(name string) error {
	f, err := os.Open(h.nsPath(name))
	if err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", name, err)
	}
	return nil
}

// namespaces lists the namespace handles by slot name.
func (h *host) namespaces() ([]string, error) {
	entries, err := os.ReadDir(h.nsDir())
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// dropNamespace removes the handle. The namespace ends with its last process. Removing the file also
// takes the handle out of copies of the mount table that other processes hold.
func (h *host) dropNamespace(name string) error {
	path := h.nsPath(name)
	for { // a handle that was mounted twice
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue
		}
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount namespace %s: %w", name, err)
		}
		break
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove namespace %s: %w", name, err)
	}
	return nil
}

// uplinkMTU is that of the default route's device: larger packets would only be cut up there.
func (h *host) uplinkMTU() int {
	const ethernet = 1500
	routes, err := whole(func() ([]netlink.Route, error) {
		return h.links.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	})
	if err != nil {
		return ethernet
	}
	mtu := ethernet
	for _, r := range routes {
		if l, err := h.links.LinkByIndex(r.LinkIndex); err == nil && l.Attrs().MTU >= 576 {
			mtu = min(mtu, l.Attrs().MTU)
		}
	}
	return mtu
}

// addresses lists the host's own IPv4 addresses and their networks.
func (h *host) addresses() ([]*net.IPNet, error) {
	addrs, err := whole(func() ([]netlink.Addr, error) { return h.links.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	nets := make([]*net.IPNet, 0, len(addrs))
	for _, a := range addrs {
		nets = append(nets, a.IPNet)
	}
	return nets, nil
}

// lockHost serialises changes to what all pools of the host share. Everything done under it takes milliseconds.
func lockHost(ctx context.Context, runDir string) (func(), error) {
	f, err := os.OpenFile(filepath.Join(runDir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open host lock: %w", err)
	}
	const patience, step = 10 * time.Second, 2 * time.Millisecond
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return func() { f.Close() }, nil // closing the only descriptor unlocks
		} else if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock host: %w", err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock host: %w", ctx.Err())
		case <-deadline.C:
			f.Close()
			return nil, tartarus.Errorf(tartarus.Unavailable, "network: another process holds %s", f.Name())
		case <-time.After(step):
		}
	}
}
