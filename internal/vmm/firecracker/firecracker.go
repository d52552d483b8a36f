// Package firecracker is the driver for Firecracker microVMs: hardware virtual machines, each with a monitor process of its own.
// No monitor ever runs outside the jailer: each has a user that nobody else has, a root folder with nothing in it but what its
// guest needs, the network namespace of its slot, a pid namespace, a control group, bounded files and the
// monitor's own system call filter.
//
// A machine is a folder, which the jailer calls a jail:
//
//	<dir>/firecracker/<id>/root      what the monitor sees as /: its program, devices, images, API socket, log
//	<dir>/firecracker/<id>/root/snap where it writes snapshots; root's, so that it cannot be exchanged for something else
//	<dir>/firecracker/<id>/console   named pipe with what the guest writes on its serial port
//	<dir>/bin/<digest>/firecracker   the monitor's program as it was when this driver first saw it
package firecracker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
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

// disksName is the folder, in the driver's, with an empty disk of each size.
const disksName = "disks"

// Name is the driver's name.
const Name = "firecracker"

// Config tells where the driver works and with what.
type Config struct {
	Dir         string      // state folder, the driver's alone; made when absent
	Firecracker string      // the monitor's program
	Jailer      string      // the jailer's program, of the same release
	Users       users.Range // of the monitors; the zero Range is users.Default
	Guest       Guest       // what boots

	CPUTemplate string       // masks processor features so that snapshots fit other processors; empty for none
	Engine      string       // of drives: EngineSync, or EngineAsync for io_uring; empty is EngineSync
	DiskLimit   *RateLimiter // of the writable disk; nil for none
	NetLimit    *RateLimiter // of each direction of the network; nil for none
	TrackDirty  bool         // note which pages change, so that a snapshot can hold only these; slows writes down
	Console     bool         // let this process write to the guest's serial port, for tests

	// KVM judges the host's KVM; nil judges anew each time.
	KVM func(ctx context.Context) kvm.Verdict

	PageFaults PageFaults // where a restored machine's memory comes from
	Watch      Watch      // of monitors that do not answer
	Log        *slog.Logger
}

// Guest is what a machine boots: one of both.
type Guest struct {
	// Linux is the kernel of sandboxes.
	Linux *linux.Kernel

	// Bare is the ELF file of a guest that is no Linux. It runs on a KVM that cannot run one: tests and benchmarks measure the driver with it.
	Bare string
}

// Watch says when a monitor counts as hung.
type Watch struct {
	Every    time.Duration // between two questions; 0 is 10 s
	Patience time.Duration // for an answer; 0 is 10 s. A monitor answers in 0.3 ms, between two of its guest's requests to devices.
	Strikes  int           // unanswered questions in a row that end the machine; 0 is 3
}

func (w Watch) orDefault() Watch {
	if w.Every <= 0 {
		w.Every = 10 * time.Second
	}
	if w.Patience <= 0 {
		w.Patience = 10 * time.Second
	}
	if w.Strikes <= 0 {
		w.Strikes = 3
	}
	return w
}

// Driver is the Firecracker driver.
type Driver struct {
	cfg   Config
	dir   string
	jails string // where the jailer makes jails
	mark  string // tells this driver's monitors from others' by their arguments
	log   *slog.Logger
	host  *cgroup.Host
	sums  verified
	disks disk.Cache
	held  vmm.Held

	mu      sync.Mutex
	program *program // nil until first used
}

var (
	_ vmm.Driver    = (*Driver)(nil)
	_ vmm.TAPDriver = (*Driver)(nil)
)

// New makes a driver. It starts nothing, and does not ask for the programs to be there: Probe tells.
func New(c Config) (*Driver, error) {
	if c.Dir == "" {
		return nil, errors.New("new firecracker driver: no state folder")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("new firecracker driver: %w", err)
	}
	for _, sub := range []string{Name, "bin", disksName, sharedName, workingName} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("new firecracker driver: %w", err)
		}
	}
	// Monitors are told apart by this path, so it must be the same from whichever way we came.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("new firecracker driver: %w", err)
	}
	host, err := cgroup.Detect()
	if err != nil {
		return nil, fmt.Errorf("new firecracker driver: %w", err)
	}
	if c.Users == (users.Range{}) {
		c.Users = users.Default()
	}
	if err := c.Users.Validate(); err != nil {
		return nil, fmt.Errorf("new firecracker driver: %w", err)
	}
	if c.Engine == "" {
		c.Engine = EngineSync
	}
	if c.Engine != EngineSync && c.Engine != EngineAsync {
		return nil, tartarus.Errorf(tartarus.Invalid, "new firecracker driver: drive engine %q is not %s or %s", c.Engine, EngineSync, EngineAsync)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.KVM == nil {
		c.KVM = kvm.Judge
	}
	if (c.Guest.Linux == nil) == (c.Guest.Bare == "") {
		return nil, errors.New("new firecracker driver: one guest is needed, Linux or a bare one")
	}
	if err := errors.Join(c.DiskLimit.valid(), c.NetLimit.valid()); err != nil {
		return nil, fmt.Errorf("new firecracker driver: %w", err)
	}
	c.Watch = c.Watch.orDefault()
	sum := sha256.Sum256([]byte(dir))
	return &Driver{
		cfg: c, dir: dir, jails: filepath.Join(dir, Name), mark: hex.EncodeToString(sum[:6]), log: c.Log, host: host,
		disks: disk.Cache{Dir: filepath.Join(dir, disksName)},
	}, nil
}

// NeedsTAP implements vmm.TAPDriver.
func (d *Driver) NeedsTAP() {}

// Name implements vmm.Driver.
func (d *Driver) Name() string { return Name }

// folder is where a machine's files are.
func (d *Driver) folder(id string) string { return filepath.Join(d.jails, id) }

// socket is the name of the API socket in a jail.
func (d *Driver) socket() string { return "api-" + d.mark + ".sock" }
