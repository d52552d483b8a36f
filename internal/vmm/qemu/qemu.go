// Package qemu runs machines as virtual machines on QEMU's microvm, by KVM where the host has one that runs guests, and otherwise by
// emulation, which is slow and as strong. A machine is one QEMU process, its control group and one folder below Config.Dir; the record
// holds all that a later process needs to find them again.
//
// QEMU runs as a user of its own, in namespaces of its own (pid, mount, net, ipc, uts), in a root that has QEMU's own files and
// nothing else of the host, without capabilities, with limits and behind its own system call filter. Everything it uses of the host it
// gets as an open file: the image, the disk, the memory, the TAP device, its monitor's socket. See Main and jail.go.
//
// Memory beyond the guest's, QEMU's own, is not counted against the guest: a guest of 256 MiB sees 256 MiB.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/kvm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/disk"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/users"
)

// Name is the driver's name.
const Name = "qemu"

// program is QEMU's for the machines that this driver makes.
const program = "qemu-system-x86_64"

// cacheName is a folder in the driver's that is no machine's: no id has a dot.
const cacheName = ".cache"

// Config tells where the driver works.
type Config struct {
	Dir   string       // state folder, the driver's alone; made when absent
	Cache string       // folder for what all machines share; empty is one below Dir. Several drivers may have the same
	Log   *slog.Logger // nil discards

	// Kernel is what guests boot.
	Kernel *linux.Kernel
	// Program is QEMU's file; empty means the one on the PATH.
	Program string
	// KVM judges the host's KVM; nil tries it.
	KVM func(context.Context) kvm.Verdict
	// DiskBytes and DiskOps bound the writable disk of each machine, per second; 0 bounds nothing.
	DiskBytes, DiskOps int64
	// Users is where the users that QEMU runs as are taken from; the zero Range is users.Default.
	Users users.Range
}

// Driver is the QEMU driver.
type Driver struct {
	cfg   Config
	dir   string
	log   *slog.Logger
	host  *cgroup.Host
	disks disk.Cache
	held  vmm.Held

	looking sync.Mutex
	looked  bool        // under looking, as what follows
	qemu    emulator    // what there is of QEMU
	absent  error       // why there is none
	kvm     kvm.Verdict // of the host

	mu     sync.Mutex
	saved  map[string]*memory // verified memory of snapshots, by the manifest's ID, while machines use it
	saving sync.Mutex         // one snapshot's memory is read at a time
}

var (
	_ vmm.Driver    = (*Driver)(nil)
	_ vmm.TAPDriver = (*Driver)(nil)
)

// New makes a driver. It starts nothing.
func New(c Config) (*Driver, error) {
	if c.Dir == "" || c.Kernel == nil {
		return nil, errors.New("new qemu driver: it needs a state folder and a kernel")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("new qemu driver: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("new qemu driver: %w", err)
	}
	// Processes are told apart by this path, so it must be the same from whichever way we came.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("new qemu driver: %w", err)
	}
	if c.DiskBytes < 0 || c.DiskOps < 0 {
		return nil, tartarus.Errorf(tartarus.Invalid, "new qemu driver: a rate is negative")
	}
	if c.Users == (users.Range{}) {
		c.Users = users.Default()
	}
	if err := c.Users.Validate(); err != nil {
		return nil, fmt.Errorf("new qemu driver: %w", err)
	}
	host, err := cgroup.Detect()
	if err != nil {
		return nil, fmt.Errorf("new qemu driver: %w", err)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Cache == "" {
		c.Cache = filepath.Join(dir, cacheName)
	}
	if c.KVM == nil {
		c.KVM = kvm.Judge
	}
	return &Driver{
		cfg: c, dir: dir, log: c.Log, host: host, disks: disk.Cache{Dir: filepath.Join(c.Cache, "disks")},
		saved: map[string]*memory{},
	}, nil
}

// Name implements vmm.Driver.
func (d *Driver) Name() string { return Name }

// NeedsTAP implements vmm.TAPDriver.
func (d *Driver) NeedsTAP() {}

// emulator is the QEMU that is installed here.
type emulator struct {
	path     string
	version  string
	hardware bool // by KVM
}

var versionLine = regexp.MustCompile(`QEMU emulator version ([0-9]+\.[0-9]+\.[0-9]+)`)

// lookTime bounds asking QEMU for its version, which takes 30 ms, and judging KVM, which bounds itself at less.
const lookTime = 20 * time.Second

// look finds out, once, which QEMU is installed and what the host's KVM is worth. It is not given up when the first who asks goes away: others
// wait for the same answer.
func (d *Driver) look(ctx context.Context) (emulator, error) {
	d.looking.Lock()
	defer d.looking.Unlock()
	if !d.looked {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTime)
		defer cancel()
		d.qemu, d.absent = findEmulator(ctx, d.cfg.Program)
		if d.absent == nil {
			d.kvm = d.cfg.KVM(ctx)
			d.qemu.hardware = d.kvm.Usable
		}
		d.looked = true
	}
	return d.qemu, d.absent
}

func findEmulator(ctx context.Context, path string) (emulator, error) {
	if path == "" {
		found, err := exec.LookPath(program)
		if err != nil {
			return emulator{}, fmt.Errorf("%s is not installed; install the package qemu-system-x86", program)
		}
		path = found
	}
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return emulator{}, fmt.Errorf("find QEMU: %w", err)
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return emulator{}, fmt.Errorf("ask QEMU for its version: %w", err)
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return emulator{}, fmt.Errorf("%s does not say which QEMU it is", path)
	}
	return emulator{path: path, version: string(m[1])}, nil
}

// Probe implements vmm.Driver.
func (d *Driver) Probe(ctx context.Context) vmm.Support {
	s := vmm.Support{Tier: tartarus.TierEmulated}
	if runtime.GOARCH != "amd64" {
		s.Reason = "this driver makes x86-64 machines only, and this host is " + runtime.GOARCH
		return s
	}
	qemu, err := d.look(ctx)
	if err != nil {
		s.Reason = err.Error()
		return s
	}
	s.Version = qemu.version
	if qemu.hardware {
		s.Tier = tartarus.TierHardware
	}
	switch missing := d.host.Missing(); {
	case os.Geteuid() != 0:
		s.Reason = "needs root to make namespaces and control groups; run as root"
		return s
	case len(missing) > 0:
		s.Reason = fmt.Sprintf("control group controllers %v are not available; turn them on in the kernel command line or in the container that runs this", missing)
		return s
	}
	if _, err := d.cfg.Kernel.Find(); err != nil {
		s.Reason = err.Error() + "; ./dev-setup.sh puts one into data/firecracker, and the setting kernel names another"
		return s
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		s.Reason = "mkfs.ext4 is not installed; install the package e2fsprogs"
		return s
	}
	s.Usable = true
	if s.Tier == tartarus.TierEmulated {
		s.Reason = "by emulation, some ten times slower than the processor, because KVM cannot be used; never chosen unless demanded"
	}
	return s
}

// folder is where a machine's files are.
func (d *Driver) folder(id string) string { return filepath.Join(d.dir, id) }
