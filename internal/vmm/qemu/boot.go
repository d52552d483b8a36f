package qemu

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/kvm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/manifest"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/netns"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

const (
	// bootTimeout bounds a start for callers whose context does not. Measured by emulation: 2.5 s alone, 30 s when ten start at once on
	// two busy processors.
	bootTimeout = 2 * time.Minute

	// cleanupTimeout bounds what is done after a caller has gone.
	cleanupTimeout = 10 * time.Second

	// oomScore makes the kernel take a machine before the server when the host itself runs out of memory.
	oomScore = "500"

	diskName   = "disk"   // the writable layer
	socketName = "qmp"    // the monitor's socket
	rootName   = "root"   // empty; the process mounts its root over it, for itself alone
	wordsName  = "stderr" // what QEMU says to nobody
)

// Boot implements vmm.Driver.
func (d *Driver) Boot(ctx context.Context, c vmm.Config) (vmm.Machine, error) {
	m, err := d.make(ctx, c, plan{prepare: d.emptyDisk, begin: (*machine).awaitGuest})
	if err != nil {
		return nil, fmt.Errorf("boot machine %s: %w", c.ID, err)
	}
	return m, nil
}

// plan is what a boot and a restore do differently.
type plan struct {
	prepare func(ctx context.Context, m *machine, c vmm.Config) error // makes the machine's files
	begin   func(m *machine, ctx context.Context) error               // puts a guest into the process
}

// emptyDisk gives a machine that boots its memory and its writable layer.
func (d *Driver) emptyDisk(ctx context.Context, m *machine, c vmm.Config) (err error) {
	if m.files.memory, err = newMemory(memoryMB(c.Resources) << 20); err != nil {
		return err
	}
	if c.Resources.DiskMB <= 0 {
		return nil
	}
	return d.disks.Make(ctx, filepath.Join(m.dir, diskName), c.Resources.DiskMB)
}

// make starts a QEMU and has the plan put a guest into it. When it fails, nothing is left.
func (d *Driver) make(ctx context.Context, c vmm.Config, p plan) (_ *machine, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := check(c); err != nil {
		return nil, err
	}
	qemu, err := d.look(ctx)
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Unsupported, "%w", err)
	}
	if err := d.held.Claim(c.ID); err != nil {
		return nil, err
	}
	m := d.newMachine(c.ID)
	defer func() {
		m.files.close()
		if err == nil {
			return
		}
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		byItself := ctx.Err() == nil && m.handle != nil && m.handle.Ended()
		why := m.lastWords()
		if cerr := m.discard(cctx); cerr != nil {
			err = errors.Join(err, cerr)
		}
		if byItself {
			err = fmt.Errorf("%w (%s; it said: %s)", err, describe(m.cmd), cmp.Or(why, "nothing"))
		}
	}()
	if err := os.Mkdir(m.dir, 0o700); errors.Is(err, fs.ErrExist) {
		m.foreign = true // an earlier process made it: not ours to remove
		return nil, tartarus.Errorf(tartarus.Conflict, "machine %s exists", c.ID)
	} else if err != nil {
		return nil, err
	}
	if m.about.RootFS, err = manifest.ImageID(c.RootFS); err != nil {
		return nil, err
	}
	m.about.describe(c, qemu)
	if err := d.run(ctx, m, c, qemu, p); err != nil {
		return nil, err
	}
	// Only now: the start takes more than one processor.
	if err := m.group.SetCPUs(c.Resources.VCPU); err != nil {
		return nil, err
	}
	m.watch(context.WithoutCancel(ctx))
	return m, nil
}

// run starts QEMU and has the plan put a guest into it, within a time.
func (d *Driver) run(ctx context.Context, m *machine, c vmm.Config, qemu emulator, p plan) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if err := p.prepare(ctx, m, c); err != nil {
		return err
	}
	if err := d.spawn(ctx, m, c, qemu); err != nil {
		return err
	}
	if err := m.connect(ctx); err != nil {
		return err
	}
	return p.begin(m, ctx)
}

func check(c vmm.Config) error {
	switch r := c.Resources; {
	case c.RootFS == "":
		return tartarus.Errorf(tartarus.Invalid, "no root file system")
	case r.VCPU < 0 || r.MemoryMB < 0 || r.DiskMB < 0 || r.PIDs < 0:
		return tartarus.Errorf(tartarus.Invalid, "a limit is negative")
	}
	i := c.Interface
	if i == nil {
		return nil
	}
	if i.NetNS == "" || i.Device == "" || !i.Address.IsValid() {
		return tartarus.Errorf(tartarus.Invalid, "network interface is incomplete")
	}
	if _, err := net.ParseMAC(i.MAC); err != nil {
		return tartarus.Errorf(tartarus.Invalid, "network interface: %w", err)
	}
	return nil
}

// files are what a QEMU gets of the host. They are closed here once it runs.
type files struct {
	memory *os.File
	state  *os.File // of a snapshot; nil for a boot
	other  []*os.File
}

func (f *files) close() {
	for _, one := range append(f.other, f.memory, f.state) {
		if one != nil {
			_ = one.Close()
		}
	}
	*f = files{}
}

// spawn starts QEMU inside its control group.
func (d *Driver) spawn(ctx context.Context, m *machine, c vmm.Config, qemu emulator) (err error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{jailName + m.dir}
	cmd.Env = []string{}
	order, feed, err := os.Pipe()
	if err != nil {
		return err
	}
	m.files.other = append(m.files.other, order, feed)
	cmd.ExtraFiles = []*os.File{order}
	give := func(f *os.File) int {
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		return jailFile + len(cmd.ExtraFiles) - 1
	}
	g, err := d.open(m, c, give)
	if err != nil {
		return err
	}
	g.diskBytes, g.diskOps = d.cfg.DiskBytes, d.cfg.DiskOps
	if m.words, err = newWords(); err != nil {
		return err
	}
	cmd.Stderr = m.words
	if m.user, err = d.cfg.Users.Claim(m.dir); err != nil {
		return err
	}
	args, err := arguments(m.id, c, qemu, g, m.files.state != nil && m.about.Private)
	if err != nil {
		return err
	}
	// Its packets go through the open TAP device: it needs no network of its own.
	nowhere, err := netns.Empty()
	if err != nil {
		return err
	}
	j := jail{
		NetNS: give(nowhere),
		Root:  filepath.Join(m.dir, rootName), Binds: hostFiles, Nodes: hostNodes, User: m.user,
		Limits: limits(c), Path: qemu.path, Args: append([]string{jailName + m.dir}, args...),
	}
	if qemu.hardware {
		j.Nodes = append(slices.Clone(j.Nodes), kvm.Device)
	}
	if err := os.Mkdir(j.Root, 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(j)
	if err != nil {
		return err
	}
	if err := d.launch(m, c, cmd, qemu); err != nil {
		return err
	}
	_ = feed.SetWriteDeadline(time.Now().Add(cleanupTimeout))
	if _, err := feed.Write(b); err != nil {
		return fmt.Errorf("tell QEMU's process what to be: %w", err)
	}
	_ = feed.Close()
	_ = order.Close() // else nobody would see the process go
	return ctx.Err()
}

// open opens everything that the machine may use of the host.
func (d *Driver) open(m *machine, c vmm.Config, give func(*os.File) int) (g given, err error) {
	mine := func(f *os.File, err error) (int, error) {
		if err != nil {
			return 0, err
		}
		m.files.other = append(m.files.other, f)
		return give(f), nil
	}
	image, first, err := d.cfg.Kernel.Prepare()
	if err != nil {
		return g, err
	}
	if g.kernel, err = mine(os.Open(image)); err != nil {
		return g, fmt.Errorf("open kernel: %w", err)
	}
	if g.first, err = mine(os.Open(first)); err != nil {
		return g, fmt.Errorf("open initramfs: %w", err)
	}
	if g.image, err = mine(os.Open(c.RootFS)); err != nil {
		return g, fmt.Errorf("open root file system: %w", err)
	}
	if c.Resources.DiskMB > 0 {
		if g.disk, err = mine(os.OpenFile(filepath.Join(m.dir, diskName), os.O_RDWR, 0)); err != nil {
			return g, fmt.Errorf("open disk: %w", err)
		}
	}
	if g.socket, err = mine(listen(m.dir)); err != nil {
		return g, err
	}
	if c.Interface != nil {
		if g.tap, err = mine(openTAP(c.Interface)); err != nil {
			return g, err
		}
	}
	g.memory = give(m.files.memory)
	m.about.MemoryFD = g.memory
	if m.files.state != nil {
		g.state = give(m.files.state)
		m.stateFD = g.state
	}
	return g, nil
}

// listen makes the monitor's socket. Its path goes through a descriptor, see dialMonitor.
func listen(dir string) (*os.File, error) {
	folder, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	path := filepath.Join("/proc/self/fd", strconv.Itoa(int(folder.Fd())), socketName)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the monitor: %w", err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

// openTAP attaches to the slot's TAP device, which must be there: the kernel would make one of any name.
func openTAP(i *vmm.Interface) (f *os.File, err error) {
	ns, err := os.Open(i.NetNS)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	err = netns.In(ns, func() error {
		if _, err := net.InterfaceByName(i.Device); err != nil {
			return err
		}
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		f = os.NewFile(uintptr(fd), "tap")
		req, err := unix.NewIfreq(i.Device)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	})
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, fmt.Errorf("attach to device %s: %w", i.Device, err)
	}
	return f, nil
}

// limits are those of the process, beside its control group's.
func limits(c vmm.Config) []limit {
	// Files may become as large as the largest that it legitimately writes: the disk, or a snapshot of all memory with its devices.
	const slack = 256 << 20
	largest := max(memoryMB(c.Resources), c.Resources.DiskMB)<<20 + slack
	return []limit{{unix.RLIMIT_CORE, 0}, {unix.RLIMIT_NOFILE, 1024}, {unix.RLIMIT_FSIZE, uint64(largest)}, {unix.RLIMIT_NPROC, hostThreads}}
}

// hostThreads is what QEMU may have: a thread for each processor, some that do input and output (64 at most), its own.
const hostThreads = 512

// launch starts the process: in its control group and network namespace from its first instruction on.
func (d *Driver) launch(m *machine, c vmm.Config, cmd *exec.Cmd, qemu emulator) error {
	group, err := d.host.Make(c.ID, cgroup.Limits{MemoryBytes: (memoryMB(c.Resources) + overheadMB(qemu)) << 20, PIDs: hostThreads})
	if err != nil {
		return err
	}
	m.group = group
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true, // no terminal's signal reaches it
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	if err := group.Start(cmd); err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	m.cmd = cmd
	pid := cmd.Process.Pid
	if m.handle, err = process.Open(pid); err != nil {
		return err
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(oomScore), 0); err != nil {
		return fmt.Errorf("set score of QEMU's process: %w", err)
	}
	return nil
}

// connect waits until QEMU answers, and notes who it is: the process is QEMU only from here on.
func (m *machine) connect(ctx context.Context) (err error) {
	if m.monitor, err = m.dial(ctx); err != nil {
		return err
	}
	if err := m.monitor.prepareMigration(ctx); err != nil {
		return err
	}
	m.who, err = process.Identify(m.cmd.Process.Pid)
	return err
}

// dial is dialMonitor for a process that may end before it answers.
func (m *machine) dial(ctx context.Context) (*monitor, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if m.handle.Wait(ctx) == nil {
			cancel(errors.New("QEMU ended while it started"))
		}
	}()
	mon, err := dialMonitor(ctx, m.dir)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return nil, cause
	}
	return mon, err
}

// awaitGuest waits until the guest says that its first process runs.
func (m *machine) awaitGuest(ctx context.Context) error {
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		if err := m.hear(ctx); err != nil {
			return m.ended(err)
		}
		if up, err := linux.Up(m.console); up || err != nil {
			return err
		}
		s, err := m.monitor.status(ctx)
		if err != nil {
			return m.ended(err)
		}
		if s != stateRunning {
			return fmt.Errorf("the guest ended while it booted: it is %s; its last words: %s", s, m.lastLines())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
