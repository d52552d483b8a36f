package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/manifest"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/netns"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
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
	if err := d.claim(c.ID); err != nil {
		return nil, err
	}
	m := d.newMachine(c.ID)
	m.state.Version, m.state.Needs, m.state.Disk = p.version.String(), d.needs(c), c.Resources.DiskMB > 0
	defer func() {
		if err == nil {
			d.keep(m)
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

// boot has a monitor boot the guest.
func (d *Driver) boot(ctx context.Context, m *machine, c vmm.Config) error {
	if err := checkImage(c.RootFS); err != nil {
		return err
	}
	g, command := d.cfg.Guest, ""
	if g.CommandLine != nil {
		var err error
		if command, err = g.CommandLine(c); err != nil {
			return err
		}
	}
	for name, from := range map[string]string{imageName: c.RootFS, kernelName: g.Kernel, initrdName: g.Initrd} {
		if from == "" {
			continue
		}
		if err := d.placePath(ctx, from, m.path(name)); err != nil {
			return err
		}
	}
	if err := m.makeDisk(c.Resources.DiskMB); err != nil {
		return err
	}
	if err := d.spawn(ctx, m, c); err != nil {
		return err
	}
	if err := d.configure(ctx, m, c, command); err != nil {
		return fmt.Errorf("configure guest: %w", err)
	}
	if err := m.api.Start(ctx); err != nil {
		return fmt.Errorf("start guest: %w", err)
	}
	return nil
}

// configure describes the machine to its monitor.
func (d *Driver) configure(ctx context.Context, m *machine, c vmm.Config, command string) error {
	boot := BootSource{Kernel: "/" + kernelName, Command: command}
	if d.cfg.Guest.Initrd != "" {
		boot.Initrd = "/" + initrdName
	}
	steps := []func() error{
		func() error {
			return m.api.SetMachine(ctx, MachineConfig{
				VCPUs: c.Resources.VCPU, MemoryMiB: c.Resources.MemoryMB, Template: d.cfg.CPUTemplate, TrackDirty: d.cfg.TrackDirty,
			})
		},
		func() error { return m.api.SetBoot(ctx, boot) },
		func() error {
			return m.api.AddDrive(ctx, Drive{ID: imageName, Path: "/" + imageName, ReadOnly: true, Engine: d.cfg.Engine})
		},
		func() error {
			return m.api.AddDrive(ctx, Drive{ID: diskName, Path: "/" + diskName, Engine: d.cfg.Engine, Limit: d.cfg.DiskLimit})
		},
		func() error { return m.api.SetEntropy(ctx, nil) },
		func() error {
			return m.api.SetBalloon(ctx, Balloon{DeflateOnOOM: true, StatsSeconds: 1})
		},
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

// interfaceID is the monitor's name of the guest's network interface.
const interfaceID = "eth0"

// spawn has the jailer start the monitor of m and waits until it listens.
func (d *Driver) spawn(ctx context.Context, m *machine, c vmm.Config) (err error) {
	p, err := d.monitor(ctx)
	if err != nil {
		return err
	}
	if m.group, err = d.host.Make(m.id, cgroup.Limits{
		MemoryBytes: (c.Resources.MemoryMB + overheadMB) << 20, PIDs: int64(c.Resources.VCPU + hostThreads),
	}); err != nil {
		return err
	}
	ns, err := d.enterable(c, m.state.UID)
	if err != nil {
		return err
	}
	if c.Interface != nil {
		defer ns.Close()
	}
	cmd := d.jailer(m, c, p, inSelf(ns))
	if err := d.runJailer(ctx, m, cmd); err != nil {
		return err
	}
	if err := m.hold(); err != nil {
		return err
	}
	return m.connect(ctx)
}

// enterable opens the network namespace of the machine, with its TAP device given to the monitor's user.
func (d *Driver) enterable(c vmm.Config, uid int) (*os.File, error) {
	if c.Interface == nil {
		return netns.Empty()
	}
	ns, err := os.Open(c.Interface.NetNS)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if err := netns.OwnTAP(ns, c.Interface.Device, uid, uid); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// jailer is the command that starts the monitor. The group is ours and not the jailer's: it would move itself there, and be
// charged elsewhere before.
func (d *Driver) jailer(m *machine, c vmm.Config, p *program, ns string) *exec.Cmd {
	uid := strconv.Itoa(m.state.UID)
	// What the monitor may write at most into one file: the guest's memory in a snapshot, or the disk.
	most := max(c.Resources.MemoryMB, c.Resources.DiskMB)<<20 + 64<<20
	ns = strings.Replace(ns, "/self/", "/"+strconv.Itoa(os.Getpid())+"/", 1) // as the jailer sees it
	cmd := exec.Command(d.cfg.Jailer,
		"--id", m.id, "--exec-file", p.path, "--uid", uid, "--gid", uid, "--chroot-base-dir", d.dir,
		"--netns", ns, "--new-pid-ns",
		"--resource-limit", "fsize="+strconv.FormatInt(most, 10), "--resource-limit", "no-file="+strconv.Itoa(mostFiles),
		"--", "--api-sock", "/"+m.driver.socket(), "--log-path", "/"+logName, "--level", "Info", "--metrics-path", "/"+metricsName)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no signal to the server's terminal reaches it
	return cmd
}

// runJailer starts the jailer in the machine's group and waits until it has made the monitor and gone.
func (d *Driver) runJailer(ctx context.Context, m *machine, cmd *exec.Cmd) error {
	out, err := openPipe(filepath.Join(m.dir, consoleName))
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if d.cfg.Console {
		in, err := openPipe(filepath.Join(m.dir, inputName))
		if err != nil {
			return err
		}
		defer in.Close()
		cmd.Stdin = in
	}
	if err := m.group.Start(cmd); err != nil {
		return fmt.Errorf("start jailer: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("jailer: %w", err)
	}
	return nil
}

// hold takes hold of the monitor that the jailer made.
func (m *machine) hold() error {
	b, err := os.ReadFile(m.path(pidName))
	if err != nil {
		return fmt.Errorf("find monitor: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return fmt.Errorf("find monitor: process id %q", printable(string(b)))
	}
	if m.handle, err = process.Open(pid); err != nil {
		return err
	}
	// It is in the machine's group by birth. Nobody else is, so this number is the monitor's, however often numbers are used anew.
	if !inGroup(m.group, pid) {
		m.handle.Close()
		m.handle = nil
		return errors.New("the monitor ended while it started")
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(oomScore), 0); err != nil {
		return fmt.Errorf("set score of monitor: %w", err)
	}
	m.state.Process.PID = pid
	return nil
}

// connect waits until the monitor answers on its socket.
func (m *machine) connect(ctx context.Context) error {
	const look = 200 * time.Microsecond
	for {
		conn, pid, err := m.api.dial(ctx)
		if err == nil {
			conn.Close()
			if pid != m.state.Process.PID {
				return fmt.Errorf("process %d listens in place of the monitor", pid)
			}
			// It listens, so what runs is the monitor's program and no longer the jailer's.
			m.state.Process, err = process.Identify(pid)
			m.api.pid = pid
			return err
		}
		if m.handle.Ended() {
			return errors.New("the monitor ended while it started")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(look):
		}
	}
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
