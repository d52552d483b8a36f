package daemon

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	agents "github.com/tartarus-sandbox/tartarus/internal/image/embedded"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
	"github.com/tartarus-sandbox/tartarus/internal/kvm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/firecracker"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/gvisor"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/qemu"
)

// startTime bounds one start: a cold start takes 0.1 s alone and 5 s in a burst of fifty on two cores. The rest is for a template's
// start command to become ready, within the minute that a create waits.
const startTime = 50 * time.Second

// overcommit is how many times the host's memory may be promised: an idle sandbox with a limit of 1 GB uses about 20 MB of it, and the
// limit of each is held by its control group.
const overcommit = 16

// Drivers makes the runtimes that a stack with this configuration has, strongest first.
func Drivers(cfg Config) ([]vmm.Driver, error) {
	return openDrivers(cfg, cfg.DataDir, nil, slog.New(slog.DiscardHandler))
}

// openDrivers makes the runtimes of this build, strongest first. memory is where that of snapshots may be, beside their folders; nil for nowhere.
func openDrivers(
	cfg Config, state string, memory func(ctx context.Context, dir string) (*firecracker.Remote, error), log *slog.Logger,
) ([]vmm.Driver, error) {
	judge := func(ctx context.Context) kvm.Verdict { return kvm.Remembered(ctx, kvmMemory, time.Now()) }
	kernel := guestKernel(cfg)
	micro := FirecrackerConfig(cfg)
	micro.Dir, micro.Guest, micro.KVM, micro.Log = filepath.Join(state, "microvms"), firecracker.Guest{Linux: kernel}, judge, log
	micro.PageFaults.Remote = memory
	fc, err := firecracker.New(micro)
	if err != nil {
		return nil, err
	}
	qm, err := qemu.New(qemu.Config{Dir: filepath.Join(state, "qemu"), Cache: guestCache(cfg), Kernel: kernel, Log: log, KVM: judge,
		DiskBytes: cfg.Rates.DiskMB << 20, DiskOps: cfg.Rates.DiskOps})
	if err != nil {
		return nil, err
	}
	if cfg.Rates != (Rates{}) {
		log.Warn("rates of the network bound sandboxes on Firecracker alone, those of the disk also on QEMU: gVisor's are not held to any")
	}
	gv, err := gvisor.New(gvisor.Config{Dir: filepath.Join(state, "gvisor"), Log: log})
	if err != nil {
		return nil, err
	}
	return preferred([]vmm.Driver{fc, qm, gv}, cfg.Runtime)
}

// kvmMemory is where the verdict over the host's KVM is remembered until the next boot.
const kvmMemory = "/run/tartarus/kvm.json"

// FirecrackerConfig is what the configuration says of Firecracker, without a place, a guest and a judge of KVM.
func FirecrackerConfig(cfg Config) (c firecracker.Config) {
	c.Firecracker, c.Jailer = firecrackerPrograms(cfg)
	c.PageFaults.Handler = cfg.PageFaultHandler
	c.DiskLimit, c.NetLimit = cfg.Rates.disk(), cfg.Rates.network()
	c.TrackDirty = cfg.DiffSnapshots
	if cfg.IOUring {
		c.Engine = firecracker.EngineAsync
	}
	return c
}

// firecrackerPrograms finds Firecracker and its jailer: the configured ones, else the data folder's, else what ./dev-setup.sh got in the folder where
// the program was started or built, else those in PATH. One that is nowhere is empty.
func firecrackerPrograms(cfg Config) (monitor, jailer string) {
	places := []string{filepath.Join(cfg.DataDir, "firecracker"), devKernel}
	if self, err := os.Executable(); err == nil {
		places = append(places, filepath.Join(filepath.Dir(self), "..", devKernel))
	}
	find := func(configured, name string) string {
		if configured != "" {
			return configured
		}
		for _, p := range places {
			path := filepath.Join(p, name)
			if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
				return path
			}
		}
		path, err := exec.LookPath(name)
		if err != nil {
			return ""
		}
		return path
	}
	return find(cfg.Firecracker, "firecracker"), find(cfg.Jailer, "jailer")
}

// guestCache is where kernels for virtual machines are prepared: once for all stacks of a data folder.
func guestCache(cfg Config) string { return filepath.Join(cfg.DataDir, "kernel", "prepared") }

// guestKernel finds the kernel of virtual machines: the configured one, else the data folder's, else what ./dev-setup.sh made in the
// folder where the program was started or built, else this machine's own.
func guestKernel(cfg Config) *linux.Kernel {
	k := &linux.Kernel{Cache: guestCache(cfg), Agent: agents.Guest}
	if cfg.Kernel != "" {
		k.Places = []string{cfg.Kernel}
		return k
	}
	k.Places = []string{filepath.Join(cfg.DataDir, "kernel"), devKernel}
	if self, err := os.Executable(); err == nil {
		k.Places = append(k.Places, filepath.Join(filepath.Dir(self), "..", devKernel))
	}
	k.Places = append(k.Places, "/boot")
	return k
}

// devKernel is what ./dev-setup.sh fills.
const devKernel = "data/firecracker"

// preferred leaves the configured runtime alone, or all: a node that is told its runtime offers no other.
func preferred(drivers []vmm.Driver, name string) ([]vmm.Driver, error) {
	if name == "auto" {
		return drivers, nil
	}
	for _, d := range drivers {
		if d.Name() == name {
			return []vmm.Driver{d}, nil
		}
	}
	return nil, tartarus.Errorf(tartarus.Invalid, "runtime %q is not one of this build's: %s", name, names(drivers))
}

func names(drivers []vmm.Driver) (out string) {
	for _, d := range drivers {
		out += d.Name() + " "
	}
	return out + "or auto"
}

// startsAtOnce is how many sandboxes are brought up at the same time: a start waits for the kernel about half of its time.
func startsAtOnce() int { return max(4, 2*runtime.NumCPU()) }

// capacity is what the node promises in all.
func capacity(l Limits) tartarus.Resources {
	return tartarus.Resources{
		VCPU:     cmp.Or(l.NodeVCPU, l.MaxSandboxes*l.MaxVCPU), // shares, not cores
		MemoryMB: cmp.Or(l.NodeMemoryMB, hostMemoryMB()*overcommit),
		DiskMB:   int64(l.MaxSandboxes) * l.MaxDiskMB, // sparse
		PIDs:     int64(l.MaxSandboxes) * l.MaxPIDs,
	}
}

// limits are the configured bounds in the judges' words.
func (c Config) limits() judges.Limits {
	l := judges.DefaultLimits()
	l.Default = tartarus.Resources{VCPU: c.Limits.DefaultVCPU, MemoryMB: c.Limits.DefaultMemoryMB, DiskMB: c.Limits.DefaultDiskMB, PIDs: c.Limits.MaxPIDs}
	l.Max = tartarus.Resources{VCPU: c.Limits.MaxVCPU, MemoryMB: c.Limits.MaxMemoryMB, DiskMB: c.Limits.MaxDiskMB, PIDs: c.Limits.MaxPIDs}
	l.MaxTimeout = c.Limits.MaxTimeout
	return l
}
