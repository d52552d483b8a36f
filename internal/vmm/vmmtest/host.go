package vmmtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// slot is a network slot: a namespace with the guest's device, and another that plays the host.
type slot struct {
	guest *vmm.Interface
	host  *os.File // network namespace of the host's end
}

// newSlot makes slot n, which goes when the row ends.
func (e *env) newSlot(n int) *slot {
	e.Helper()
	guest, host := e.netns(), e.netns()
	address := netip.AddrFrom4([4]byte{10, 199, byte(n), 2})
	gateway := netip.AddrFrom4([4]byte{10, 199, byte(n), 1})
	i := &vmm.Interface{
		NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), guest.Fd()), Device: "slot0", MTU: 1500,
		MAC: fmt.Sprintf("02:00:00:00:%02x:02", n), GatewayMAC: fmt.Sprintf("02:00:00:00:%02x:01", n),
		Address: netip.PrefixFrom(address, 24), Gateway: gateway,
	}
	must := func(err error) {
		e.Helper()
		if err != nil {
			e.Fatalf("make network slot: %v", err)
		}
	}
	cable := i.Device
	if e.factory.TAP {
		cable = "cable0"
	}
	must(within(host, func() error { return linkSlot(i, cable, guest) }))
	if e.factory.TAP {
		must(within(guest, func() error { return bridgeTAP(i.Device, cable) }))
		return &slot{guest: i, host: host}
	}
	must(within(guest, func() error {
		link, err := netlink.LinkByName(i.Device)
		if err != nil {
			return err
		}
		if n%2 == 0 { // some slots have the address on the device, some do not
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(i.Address)}); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(link)
	}))
	return &slot{guest: i, host: host}
}

// TAP makes network slots for a driver's own tests, each with a TAP device. They go when the test ends.
func TAP(t *testing.T) func() *vmm.Interface {
	e := &env{T: t, factory: Factory{TAP: true}}
	t.Cleanup(func() {
		for _, undo := range e.after {
			undo()
		}
	})
	n := 100
	return func() *vmm.Interface {
		n++
		return e.newSlot(n).guest
	}
}

// bridgeTAP makes a TAP device and joins it with the cable's end, in the guest's namespace.
func bridgeTAP(device, cable string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = device
	tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: unix.IFF_NO_PI | unix.IFF_VNET_HDR}
	if err := netlink.LinkAdd(tap); err != nil {
		return fmt.Errorf("make TAP device: %w", err)
	}
	attrs = netlink.NewLinkAttrs()
	attrs.Name = "bridge0"
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make bridge: %w", err)
	}
	for _, name := range []string{device, cable, attrs.Name} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if name != attrs.Name {
			if err := netlink.LinkSetMaster(link, bridge); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	return nil
}

// linkSlot makes the device pair, from the host's end; cable is the name of the other.
func linkSlot(i *vmm.Interface, cable string, guest *os.File) error {
	mac, err := net.ParseMAC(i.MAC)
	if err != nil {
		return err
	}
	hostMAC, err := net.ParseMAC(i.GatewayMAC)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "up0", hostMAC
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: cable, PeerNamespace: netlink.NsFd(int(guest.Fd())),
	}
	if cable == i.Device { // a TAP's guest has its address behind the cable, not on it
		pair.PeerHardwareAddr = mac
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	up, err := netlink.LinkByName("up0")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(up, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(i.Gateway, i.Address.Bits()))}); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(up); err != nil {
		return err
	}
	return netlink.NeighSet(&netlink.Neigh{
		LinkIndex: up.Attrs().Index, State: netlink.NUD_PERMANENT, HardwareAddr: mac, IP: i.Address.Addr().AsSlice(),
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// netns makes a network namespace that lives as long as its file.
func (e *env) netns() *os.File {
	e.Helper()
	type result struct {
		f   *os.File
		err error
	}
	made := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		made <- result{f, err}
	}()
	r := <-made
	if r.err != nil {
		e.Fatalf("make network namespace: %v", r.err)
	}
	e.after = append(e.after, func() { _ = r.f.Close() })
	return r.f
}

// within runs f in a network namespace.
func within(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// ask has the guest's first process run argv, over the network.
func (s *slot) ask(e *env, argv ...string) string {
	e.Helper()
	out, code, err := call(e.ctx, s.host, s.guest.Address.Addr(), argv)
	if err != nil || code != 0 {
		e.Errorf("ask %v: %s, code %d, %v", argv, out, code, err)
	}
	return out
}

// dialVerb is ask for a guest that has only just begun, or has ended: the one is waited for, the other is tartarus.GuestGone.
func dialVerb(ctx context.Context, m vmm.Machine, host *os.File, guest netip.Addr, argv []string) (string, int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if x, err := m.Wait(ctx); err == nil {
			cancel(tartarus.Errorf(tartarus.GuestGone, "the machine has ended: %+v", x))
		}
	}()
	for {
		out, code, err := call(ctx, host, guest, argv)
		if ctx.Err() != nil {
			return "", 0, context.Cause(ctx)
		}
		if err == nil || !errors.Is(err, unix.ECONNREFUSED) {
			return out, code, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// call has the guest's first process run argv.
func call(ctx context.Context, host *os.File, guest netip.Addr, argv []string) (out string, code int, err error) {
	var reply struct {
		Out  string
		Code int
	}
	var c net.Conn
	err = within(host, func() (err error) {
		d := net.Dialer{Timeout: 20 * time.Second}
		c, err = d.DialContext(ctx, "tcp", netip.AddrPortFrom(guest, 7007).String())
		return err
	})
	if err != nil {
		return "", 0, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if err := json.NewEncoder(c).Encode(map[string]any{"argv": argv}); err != nil {
		return "", 0, err
	}
	err = json.NewDecoder(c).Decode(&reply)
	return strings.TrimSpace(reply.Out), reply.Code, err
}

// bystander is a process that must not be touched.
type bystander struct{ *exec.Cmd }

func (e *env) bystander() bystander {
	e.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		e.Skipf("start a process: %v", err)
	}
	e.after = append(e.after, func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return bystander{cmd}
}

func (b bystander) alive() bool {
	var info unix.Siginfo
	// A dead child would be reported; it stays a child until the row's end.
	err := unix.Waitid(unix.P_PID, b.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo == 0
}

// look is what of the host a row must leave as it was.
type look struct {
	Groups     []string // control groups of this test's machines
	Folder     []string
	Mounts     int
	Files      int
	Children   []string
	Goroutines int
}

func lookAround(t *testing.T, dir string) look {
	t.Helper()
	l := look{Goroutines: runtime.NumGoroutine()}
	for _, pattern := range []string{"/sys/fs/cgroup/tartarus/", "/sys/fs/cgroup/*/tartarus/"} {
		found, _ := filepath.Glob(pattern + prefix + "*")
		l.Groups = append(l.Groups, found...)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		l.Folder = append(l.Folder, e.Name())
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) { // other tests of this host have mounts of their own
		if strings.Contains(line, filepath.Dir(dir)) || strings.Contains(line, prefix) {
			l.Mounts++
		}
	}
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	l.Files = len(files)
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, p := range tasks {
		b, _ := os.ReadFile(p) // a thread may be gone
		l.Children = append(l.Children, strings.Fields(string(b))...)
	}
	return l
}

// compare fails the test when there is more of anything than before. What ends in the background is given a moment.
func (l look) compare(t *testing.T, dir string) {
	t.Helper()
	var now look
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		now = lookAround(t, dir)
		same := slices.Equal(now.Groups, l.Groups) && slices.Equal(now.Folder, l.Folder) && now.Mounts <= l.Mounts &&
			now.Files <= l.Files && len(now.Children) <= len(l.Children) && now.Goroutines <= l.Goroutines
		if same {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	t.Errorf("the host is not as it was before\nbefore: %+v\nnow:    %+v", l, now)
	if now.Goroutines > l.Goroutines {
		buf := make([]byte, 1<<16)
		t.Logf("goroutines:\n%s", buf[:runtime.Stack(buf, true)])
	}
	if now.Files > l.Files {
		files, _ := filepath.Glob("/proc/self/fd/*")
		for _, f := range files {
			target, _ := os.Readlink(f)
			t.Logf("%s -> %s", f, target)
		}
	}
}
