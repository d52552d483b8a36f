package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/leftovers"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/pagefault"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

// adoptTimeout bounds how long a monitor may take to answer the process that adopts it. Measured: 1 ms.
const adoptTimeout = 10 * time.Second

// Adopt implements vmm.Driver.
func (d *Driver) Adopt(ctx context.Context, r vmm.Record) (vmm.Machine, error) {
	m, err := d.adopt(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("adopt machine %s: %w", r.ID, err)
	}
	return m, nil
}

func (d *Driver) adopt(ctx context.Context, r vmm.Record) (*machine, error) {
	var s state
	if r.Driver != Name {
		return nil, tartarus.Errorf(tartarus.Invalid, "record is of driver %q", r.Driver)
	}
	if err := json.Unmarshal(r.State, &s); err != nil {
		return nil, tartarus.Errorf(tartarus.Invalid, "read record: %w", err)
	}
	v, err := parseVersion("Firecracker v" + s.Version)
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Invalid, "read record: %w", err)
	}
	if err := d.held.Claim(r.ID); err != nil {
		return nil, err
	}
	m := d.newMachine(r.ID)
	m.state, m.group = s, d.host.Group(r.ID)
	if m.handle, err = process.Find(s.Process); err == nil {
		if err = m.takeOver(ctx, v); err == nil {
			if m.pages != nil {
				go m.watchPages(context.WithoutCancel(ctx))
			}
			m.watch(context.WithoutCancel(ctx))
			return m, nil
		}
		if ctx.Err() != nil { // not the machine's fault: leave it for another try
			m.close()
			d.held.Release(r.ID)
			return nil, err
		}
	} else {
		m.handle = nil
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if cerr := m.discard(cctx); cerr != nil {
		err = errors.Join(err, cerr)
		d.held.Release(r.ID)
	}
	return nil, tartarus.Errorf(tartarus.NotFound, "machine does not run: %w", err)
}

// takeOver opens what belongs to a monitor that is held, and makes sure that it answers and is whole.
func (m *machine) takeOver(ctx context.Context, v version) error {
	if !inGroup(m.group, m.state.Process.PID) {
		return errors.New("the monitor is not in its control group")
	}
	if err := m.open(); err != nil {
		return err
	}
	m.api.version, m.api.pid = v, m.state.Process.PID
	if m.state.Pages != nil {
		var err error
		if m.pages, err = process.Find(*m.state.Pages); err != nil {
			return fmt.Errorf("page-fault handler: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	i, err := m.api.Describe(ctx)
	if err != nil {
		return err
	}
	if i.State != stateRunning && i.State != statePaused {
		return fmt.Errorf("the machine is %q", linux.Printable(i.State))
	}
	return nil
}

// Leftovers implements vmm.Driver.
func (d *Driver) Leftovers(ctx context.Context, owned func(id string) bool, remove bool) ([]vmm.Leftover, error) {
	return leftovers.Driver{Dir: d.jails, Groups: d.host, Held: &d.held, Serves: d.serves}.List(ctx, owned, remove)
}

// serves tells which machine a process with these arguments serves: the jailer and the monitor are started with the machine's id and with a
// socket whose name is this driver's alone, the page-fault handler with both as well.
func (d *Driver) serves(args []string) string {
	if name := filepath.Base(args[0]); name != exeName && name != pagefault.Program && name != filepath.Base(d.cfg.Jailer) {
		return ""
	}
	if !slices.Contains(args, "/"+d.socket()) {
		return ""
	}
	if i := slices.Index(args, "--id"); i > 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}
