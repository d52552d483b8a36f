// Package gvisor runs machines on gVisor, a kernel in user space that is part of this program: no hardware
// virtualisation, no other binary and no mount on the host is needed. A machine is one sandbox process, its control
// group and one folder below Config.Dir; the record holds all that a later process needs to find them again.
//
// The sandbox process is this program started again under another name, see Main. It runs as nobody in namespaces of
// its own (user, pid, mount, net, ipc, uts), in an empty root, without capabilities over the host and behind a system
// call filter, in a session of its own, so that no signal to the server reaches it. The driver speaks gVisor's own
// control protocol with it instead of going through runsc's container package, because that one hands the
// server's stdio to the guest (and gives it away to nobody), cannot keep the writable layer in a file without a
// second process, moves the slot's address, and on cgroup v1 moves the whole server into the guest's group.
package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"

	gvlog "gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/version"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
)

// Name is the driver's name.
const Name = "gvisor"

// Config tells where the driver works.
type Config struct {
	Dir string       // state folder, the driver's alone; made when absent
	Log *slog.Logger // nil discards

	// Program is the file that sandboxes are started from; empty means this program's own. It must call Main first
	// thing, be linked statically (CGO_ENABLED=0) and be readable and executable by everyone. Tests built with
	// the race detector, which needs cgo, name another one.
	Program string
}

// Driver is the gVisor driver.
type Driver struct {
	dir  string
	exe  string
	log  *slog.Logger
	host *cgroup.Host
	held vmm.Held
}

var _ vmm.Driver = (*Driver)(nil)

// New makes a driver. It starts nothing.
func New(c Config) (*Driver, error) {
	if c.Dir == "" {
		return nil, errors.New("new gvisor driver: no state folder")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("new gvisor driver: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("new gvisor driver: %w", err)
	}
	// Sandbox processes are told apart by this path, so it must be the same from whichever way we came.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("new gvisor driver: %w", err)
	}
	host, err := cgroup.Detect()
	if err != nil {
		return nil, fmt.Errorf("new gvisor driver: %w", err)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	// gVisor's packages write to stderr through a logger of their own.
	gvlog.SetTarget(&gvlog.Writer{Next: io.Discard})
	if c.Program == "" {
		c.Program = selfExe
	}
	return &Driver{dir: dir, exe: c.Program, log: c.Log, host: host}, nil
}

// Name implements vmm.Driver.
func (d *Driver) Name() string { return Name }

// Version names the embedded gVisor and what else must match for a snapshot to be usable. The module version is
// taken from the build; runsc's own string, set by a linker flag, is a second guard inside the state file.
var Version = sync.OnceValue(func() string {
	const module = "gvisor.dev/gvisor"
	v := version.Version()
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == module {
				v = m.Version
			}
		}
	}
	return v + " " + runtime.GOARCH
})

// Probe implements vmm.Driver.
func (d *Driver) Probe(context.Context) vmm.Support {
	s := vmm.Support{Tier: tartarus.TierUserKernel, Version: Version()}
	switch missing := d.host.Missing(); {
	case os.Geteuid() != 0:
		s.Reason = "needs root to make namespaces and control groups; run as root"
	case len(missing) > 0:
		s.Reason = fmt.Sprintf("control group controllers %v are not available; turn them on in the kernel command line or in the container that runs this", missing)
	default:
		if err := usable(d.exe); err != nil {
			s.Reason = err.Error()
			return s
		}
		if err := canIsolate(d.exe); err != nil {
			s.Reason = "cannot make the namespaces of a sandbox (" + err.Error() + "); allow user namespaces (sysctl user.max_user_namespaces)"
			return s
		}
		s.Usable = true
	}
	return s
}

// folder is where a machine's files are.
func (d *Driver) folder(id string) string { return filepath.Join(d.dir, id) }
