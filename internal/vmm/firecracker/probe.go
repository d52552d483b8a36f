package firecracker

import (
	"context"
	"fmt"
	"os"
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
		s.Reason = err.Error() + "; put firecracker and jailer of one release into the data folder's firecracker folder or into PATH"
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
	v := kvm.Judge(ctx)
	switch {
	case d.cfg.Guest.Bare && !v.Openable:
		return "no guest runs on " + kvm.Device + ": " + v.Reason
	case d.cfg.Guest.Bare: // runs on any KVM, which on a busy host cannot be judged in time
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
	g := d.cfg.Guest
	if g.Kernel == "" {
		return "no kernel for guests: run ./dev-setup.sh, or name one in the configuration"
	}
	for _, path := range []string{g.Kernel, g.Initrd} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			return "no kernel for guests (" + err.Error() + "): run ./dev-setup.sh, or name one in the configuration"
		}
	}
	return ""
}
