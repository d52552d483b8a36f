package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/manifest"
)

const (
	// bootTimeout bounds a start for callers whose context does not. Measured: 25 ms alone, 2 s when fifty start
	// at once on two processors.
	bootTimeout = time.Minute

	// cleanupTimeout bounds what is done after a caller has gone.
	cleanupTimeout = 10 * time.Second

	// oomScore makes the kernel take a monitor before the server when the host itself runs out of memory.
	oomScore = "500"

	// overheadMB is what a machine may use beside its guest's memory: the monitor's own 5 MiB, the kernel's page tables (2 MiB
	// for each GiB), device queues, and what of the images is in the page cache on its account.
	overheadMB = 64

	// hostThreads are the monitor's threads beside those of the guest's processors: its own, the API's, and workers
	// of io_uring.
	hostThreads = 64

	// mostFiles bounds the monitor's open files: about ten, and two for each device.
	mostFiles = 256

	defaultMemoryMB = 512
	defaultDiskMB   = 1024
)

// Boot implements vmm.Driver.
func (d *Driver) Boot(ctx context.Context, c vmm.Config) (vmm.Machine, error) {
	m, err := d.make(ctx, c, d.boot)
	if err != nil {
		return nil, fmt.Errorf("boot machine %s: %w", c.ID, err)
	}
	return m, nil
}

// make claims what a machine needs and has begin put a guest into it. When it fails, nothing is left.
func (d *Driver) make(ctx context.Context, c vmm.Config, begin func(context.Context, *machine, vmm.Config) error) (_ *machine, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c, err = checked(c); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	p, err := d.monitor(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.held.Claim(c.ID); err != nil {
		return nil, err
	}
	m := d.newMachine(c.ID)
	m.state.Version, m.state.Needs, m.state.Disk = p.version.String(), d.needs(c), c.Resources.DiskMB > 0
	m.state.Rates = d.rates()
	defer func() {
		if err == nil {
			return
		}
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if why := m.lastWords(); why != "" && ctx.Err() == nil {
			err = fmt.Errorf("%w (%s)", err, why)
		}
		if cerr := m.discard(cctx); cerr != nil {
			err = errors.Join(err, cerr)
		}
	}()
	if m.state.RootFS, err = manifest.ImageID(c.RootFS); err != nil {
		return nil, err
	}
	if err := d.makeJail(m, c); err != nil {
		return nil, err
	}
	m.api.version = p.version
	if err := begin(ctx, m, c); err != nil {
		return nil, err
	}
	if err := m.group.SetCPUs(c.Resources.VCPU); err != nil {
		return nil, err
	}
	m.watch(context.WithoutCancel(ctx))
	return m, nil
}

// checked is c with what it leaves open, or why it cannot be.
func checked(c vmm.Config) (vmm.Config, error) {
	const mostVCPU = 32 // the monitor's own limit
	r := &c.Resources
	switch {
	case !tartarus.ValidID(c.ID):
		return c, tartarus.Errorf(tartarus.Invalid, "machine id %q is not lower-case letters and digits", c.ID)
	case c.RootFS == "":
		return c, tartarus.Errorf(tartarus.Invalid, "no root file system")
	case r.VCPU < 0 || r.MemoryMB < 0 || r.DiskMB < 0 || r.PIDs < 0:
		return c, tartarus.Errorf(tartarus.Invalid, "a limit is negative")
	case r.VCPU > mostVCPU:
		return c, tartarus.Errorf(tartarus.Invalid, "%d processors: Firecracker gives a machine at most %d", r.VCPU, mostVCPU)
	case c.Interface != nil && (c.Interface.NetNS == "" || c.Interface.Device == "" || !c.Interface.Address.IsValid()):
		return c, tartarus.Errorf(tartarus.Invalid, "network interface is incomplete")
	}
	r.VCPU = max(r.VCPU, 1)
	if r.MemoryMB == 0 {
		r.MemoryMB = defaultMemoryMB
	}
	if r.DiskMB == 0 {
		r.DiskMB = defaultDiskMB
	}
	return c, nil
}

// bootable is what a monitor boots.
type bootable struct{ kernel, initrd, command string }

// guest prepares what boots in the machine that c describes.
func (d *Driver) guest(c vmm.Config) (b bootable, err error) {
	if b.kernel = d.cfg.Guest.Bare; b.kernel != "" {
		return b, nil
	}
	if b.kernel, b.initrd, err = d.cfg.Guest.Linux.Prepare(); err != nil {
		return b, err
	}
	// The only controller that the machine has is a keyboard's, and of that only the reset line: a restart is the machine's end.
	b.command, err = linux.CommandLine(c, "reboot=k", "pci=off", "i8042.noaux", "i8042.nomux", "i8042.nopnp", "i8042.dumbkbd")
	return b, err
}

// boot has a monitor boot the guest.
func (d *Driver) boot(ctx context.Context, m *machine, c vmm.Config) error {
	if err := checkImage(c.RootFS); err != nil {
		return err
	}
	b, err := d.guest(c)
	if err != nil {
		return err
	}
	for name, from := range map[string]string{imageName: c.RootFS, kernelName: b.kernel, initrdName: b.initrd} {
		if from == "" {
			continue
		}
		if err := d.placePath(ctx, from, m.path(name)); err != nil {
			return err
		}
	}
	if err := d.makeDisk(ctx, m, c.Resources.DiskMB); err != nil {
		return err
	}
	if err := d.spawn(ctx, m, c); err != nil {
		return err
	}
	if err := d.configure(ctx, m, c, b); err != nil {
		return fmt.Errorf("configure guest: %w", err)
	}
	if err := m.api.Start(ctx); err != nil {
		return fmt.Errorf("start guest: %w", err)
	}
	if d.cfg.Guest.Linux == nil {
		return nil
	}
	return m.awaitUp(ctx)
}

// makeDisk makes the writable disk: an empty file system, or nothing but a hole for a guest that knows of none.
func (d *Driver) makeDisk(ctx context.Context, m *machine, mb int64) error {
	path := m.path(diskName)
	if d.cfg.Guest.Linux != nil {
		if err := d.disks.Make(ctx, path, mb); err != nil {
			return err
		}
		return os.Chown(path, m.state.UID, m.state.UID)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(f.Truncate(mb<<20), f.Chown(m.state.UID, m.state.UID))
}

// awaitUp waits until the guest says on its console that its first process runs, or why it never will.
func (m *machine) awaitUp(ctx context.Context) error {
	ended := make(chan struct{})
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(ended)
		if m.handle.Wait(waiting) == nil {
			cancel()
		}
	}()
	defer func() { cancel(); <-ended }()
	for at := int64(0); ; {
		if up, err := linux.Up([]byte(m.console.text())); up || err != nil {
			return err
		}
		_, next, err := m.console.Next(waiting, at)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			if up, _ := linux.Up([]byte(m.console.text())); up {
				return nil
			}
			return errors.New("the guest ended while it booted")
		}
		at = next
	}
}

// configure describes the machine to its monitor.
func (d *Driver) configure(ctx context.Context, m *machine, c vmm.Config, b bootable) error {
	boot := BootSource{Kernel: "/" + kernelName, Command: b.command}
	if b.initrd != "" {
		boot.Initrd = "/" + initrdName
	}
	machine := MachineConfig{
		VCPUs: c.Resources.VCPU, MemoryMiB: c.Resources.MemoryMB, Template: d.cfg.CPUTemplate, TrackDirty: d.cfg.TrackDirty,
	}
	steps := []func() error{
		func() error { return m.api.SetMachine(ctx, machine) },
		func() error { return m.api.SetBoot(ctx, boot) },
		func() error {
			return m.api.AddDrive(ctx, Drive{ID: imageName, Path: "/" + imageName, ReadOnly: true, Engine: d.cfg.Engine})
		},
		func() error {
			return m.api.AddDrive(ctx, Drive{ID: diskName, Path: "/" + diskName, Engine: d.cfg.Engine, Limit: d.cfg.DiskLimit})
		},
		func() error { return m.api.SetEntropy(ctx, nil) },
		func() error { return m.api.SetBalloon(ctx, Balloon{DeflateOnOOM: true, StatsSeconds: 1}) },
	}
	if i := c.Interface; i != nil {
		steps = append(steps, func() error {
			return m.api.AddNetwork(ctx, NetworkInterface{ID: interfaceID, Device: i.Device, MAC: i.MAC, RX: d.cfg.NetLimit, TX: d.cfg.NetLimit})
		})
	}
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}

// checkImage refuses what is no EROFS image: a guest would find out only after it has started.
func checkImage(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	const at, magic = 1024, "\xe2\xe1\xf5\xe0" // struct erofs_super_block in <linux/fs/erofs/erofs_fs.h>
	b := make([]byte, len(magic))
	if _, err := f.ReadAt(b, at); err != nil || string(b) != magic {
		return tartarus.Errorf(tartarus.Invalid, "root file system %s is not an EROFS image", filepath.Base(path))
	}
	return nil
}
