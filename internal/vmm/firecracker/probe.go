package firecracker

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/kvm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// Probe implements vmm.Driver.
func (d *Driver) Probe(ctx context.Context) vmm.Support {
	s := vmm.Support{Tier: tartarus.TierHardware}
	if os.Geteuid() != 0 {
		s.Reason = "needs root for the jailer, which gives each monitor a user of its own; run as root"
		return s
	}
	p, err := d.monitor(ctx)
	if err != nil {
		s.Reason = err.Error() + "; " + getPrograms
		return s
	}
	s.Version = p.version.String()
	if s.Reason = d.lacks(ctx); s.Reason == "" {
		s.Usable = true
	}
	return s
}

// lacks says what keeps machines from running here; empty when nothing does.
func (d *Driver) lacks(ctx context.Context) string {
	bare := d.cfg.Guest.Bare != ""
	v := d.cfg.KVM(ctx)
	switch {
	case bare && !v.Openable:
		return "no guest runs on " + kvm.Device + ": " + v.Reason
	case bare: // runs on any KVM, which on a busy host cannot be judged in time
	case !v.Usable:
		return kvm.Device + " cannot run a Linux guest: " + v.Reason
	}
	if missing := d.host.Missing(); len(missing) > 0 {
		return fmt.Sprintf("control group controllers %v are not available; turn them on in the kernel command line or in the container that runs this", missing)
	}
	if err := unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK); err != nil {
		return "/dev/net/tun cannot be used (" + err.Error() + "); load the module tun, or run the container privileged"
	}
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		return "Firecracker runs on x86-64 and aarch64 only"
	}
	if bare {
		return ""
	}
	if _, err := d.cfg.Guest.Linux.Find(); err != nil {
		return err.Error() + "; ./dev-setup.sh puts one into data/firecracker, and the setting kernel names another"
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		return "mkfs.ext4 is not installed; install the package e2fsprogs"
	}
	return ""
}
