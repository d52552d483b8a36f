// Package vmboot takes a virtual machine from the kernel's first process to a running guest: modules, disks, root, network, and
// then the agent or the program that the host named. Whatever fails on the way is said on the console, and the machine
// ends: a guest that is half there must not be taken for a whole one.
package vmboot

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/guest/handover"
	"github.com/tartarus-sandbox/tartarus/internal/guest/system"
)

// What the guest says on its console, each at the beginning of a line. Drivers wait for the first two.
const (
	Up    = "tartarus: up"
	Down  = "tartarus: down: "
	Ended = "tartarus: ended: "
)

// modulesDir is where the initramfs has modules (internal/kernel).
const modulesDir = "/modules"

// First reports whether this process is the init of an initramfs that internal/kernel built.
func First() bool {
	if os.Getpid() != 1 {
		return false
	}
	_, err := os.Stat(modulesDir + "/order")
	return err == nil
}

// Guest is a machine that has come up.
type Guest struct {
	Machine handover.Machine
	Group   *os.File // control group for everything but the agent; nil without a limit

	console *os.File
	kernel  system.Kernel
}

// Start brings the machine up: afterwards / is the guest's root and the network is there. It must be called once, by the first process.
func Start() (*Guest, error) {
	g := &Guest{console: openConsole(), kernel: system.Linux()}
	if err := g.start(); err != nil {
		g.Fail(err)
		return nil, err
	}
	return g, nil
}

func (g *Guest) start() error {
	if err := earlyMounts(); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if g.Machine, err = handover.FromCommandLine(string(line)); err != nil {
		return err
	}
	// As on every runtime: loopback has ::1, the device gets no address but the one it is given.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	if err := loadModules("order", string(line)); err != nil {
		return err
	}
	if err := makeRoot(string(line)); err != nil {
		return err
	}
	// /tmp is part of the writable layer and of its size limit; memory is scarcer.
	if err := system.Prepare("/tmp"); err != nil {
		return err
	}
	if err := os.Mkdir("/tmp", 0o777); err == nil {
		err = os.Chmod("/tmp", 0o777|os.ModeSticky)
		if err != nil {
			return err
		}
	}
	if err := g.limit(); err != nil {
		return err
	}
	return g.become(g.Machine)
}

// openConsole opens what the kernel calls its console; without one, words go nowhere.
func openConsole() *os.File {
	f, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return os.Stderr
	}
	return f
}

// Ready tells the host that the first process runs, or is about to.
func (g *Guest) Ready() { fmt.Fprintf(g.console, "\r\n%s\r\n", Up) }

// Fail tells the host why the machine cannot be used, and ends it.
func (g *Guest) Fail(err error) {
	fmt.Fprintf(g.console, "\r\n%s%s\r\n", Down, oneLine(err.Error()))
	halt()
}

// End tells the host how the first process ended, and ends the machine.
func (g *Guest) End(what string) {
	fmt.Fprintf(g.console, "\r\n%s%s\r\n", Ended, oneLine(what))
	halt()
}

func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' }), "; ")
}

// halt restarts the machine, which virtual machine monitors are told to take for its end: microVMs have no power switch.
func halt() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	os.Exit(1) // the kernel panics, and ends the machine too
}

// earlyMounts are what the first steps need; they move into the guest's root later.
func earlyMounts() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		err := unix.Mount(m.kind, m.at, m.kind, unix.MS_NOSUID, "")
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

// become takes on a name and an address.
func (g *Guest) become(m handover.Machine) error {
	if len(m.Entropy) > 0 {
		if err := g.kernel.AddEntropy(m.Entropy); err != nil {
			return fmt.Errorf("add entropy: %w", err)
		}
	}
	if !m.Time.IsZero() {
		if err := g.kernel.SetClock(m.Time); err != nil {
			return fmt.Errorf("set clock: %w", err)
		}
	}
	if m.Hostname != "" {
		if err := g.kernel.SetHostname(m.Hostname); err != nil {
			return fmt.Errorf("set hostname: %w", err)
		}
	}
	if m.Interface == nil {
		return nil
	}
	return configure(*m.Interface)
}
