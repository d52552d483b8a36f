package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gvisor.dev/gvisor/runsc/boot"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/leftovers"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

// adoptTimeout bounds how long a sandbox may take to answer the process that adopts it. Measured: 2 ms.
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
	if err := d.held.Claim(r.ID); err != nil {
		return nil, err
	}
	m := d.newMachine(r.ID)
	m.who, m.version, m.rootfs, m.group = s.Process, s.Version, s.RootFS, d.host.Group(r.ID)
	handle, err := process.Find(s.Process)
	if err == nil {
		m.handle = handle
		if err = m.answer(ctx); err == nil {
			m.watch(context.WithoutCancel(ctx))
			return m, nil
		}
		if ctx.Err() != nil { // not the machine's fault: leave it for another try
			handle.Close()
			d.held.Release(r.ID)
			return nil, err
		}
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if cerr := m.discard(cctx); cerr != nil {
		err = errors.Join(err, cerr)
		d.held.Release(r.ID)
	}
	return nil, tartarus.Errorf(tartarus.NotFound, "machine does not run: %w", err)
}

// answer makes sure that the sandbox answers and that it is in its control group, and recalls whether it is paused.
func (m *machine) answer(ctx context.Context) error {
	if !slices.Contains(m.group.PIDs(), m.who.PID) {
		return errors.New("sandbox process is not in its control group")
	}
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	var now boot.ContainerRuntimeState
	id := guestID
	if err := call(ctx, m.dir, boot.ContMgrContainerRuntimeState, &id, &now); err != nil {
		return fmt.Errorf("ask sandbox process: %w", err)
	}
	return m.recallPause(ctx)
}

// Leftovers implements vmm.Driver.
func (d *Driver) Leftovers(ctx context.Context, owned func(id string) bool, remove bool) ([]vmm.Leftover, error) {
	return leftovers.Driver{Dir: d.dir, Groups: d.host, Held: &d.held, Serves: d.serves}.List(ctx, owned, remove)
}

// serves tells which machine's sandbox process was started with these arguments: with the machine's folder as its root.
func (d *Driver) serves(args []string) string {
	if args[0] != "runsc-sandbox" {
		return ""
	}
	for _, a := range args[1:] {
		if dir, ok := strings.CutPrefix(strings.TrimLeft(a, "-"), "root="); ok && filepath.Dir(dir) == d.dir {
			return filepath.Base(dir)
		}
	}
	return ""
}
