package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
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
	if err := d.claim(r.ID); err != nil {
		return nil, err
	}
	m := d.newMachine(r.ID)
	m.who, m.version, m.rootfs, m.group = s.Process, s.Version, s.RootFS, d.host.Group(r.ID)
	handle, err := process.Find(s.Process)
	if err == nil {
		m.handle = handle
		if err = m.answer(ctx); err == nil {
			m.watch(context.WithoutCancel(ctx))
			d.keep(m)
			return m, nil
		}
		if ctx.Err() != nil { // not the machine's fault: leave it for another try
			handle.Close()
			d.release(r.ID)
			return nil, err
		}
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if cerr := m.discard(cctx); cerr != nil {
		err = errors.Join(err, cerr)
		d.release(r.ID)
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
	names, err := d.host.Names()
	if err != nil {
		return nil, fmt.Errorf("list leftovers: %w", err)
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, fmt.Errorf("list leftovers: %w", err)
	}
	folders := make([]string, 0, len(entries))
	for _, e := range entries {
		folders = append(folders, e.Name())
	}
	stray, err := d.processes()
	if err != nil {
		return nil, fmt.Errorf("list leftovers: %w", err)
	}
	var found []vmm.Leftover
	var failed error
	for _, id := range union(names, folders, stray) {
		if owned(id) || d.known(id) {
			continue
		}
		// Other drivers of this host may keep groups below the same parent: only ids with a folder or a
		// process of this driver are ours.
		if !slices.Contains(folders, id) && len(stray[id]) == 0 {
			continue
		}
		for _, pid := range stray[id] {
			found = append(found, vmm.Leftover{Kind: "process", Name: strconv.Itoa(pid) + " (" + id + ")"})
		}
		group := d.host.Group(id)
		if group.Exists() {
			found = append(found, vmm.Leftover{Kind: "cgroup", Name: id})
		}
		if slices.Contains(folders, id) {
			found = append(found, vmm.Leftover{Kind: "folder", Name: d.folder(id)})
		}
		if remove {
			failed = errors.Join(failed, d.sweep(ctx, id, stray[id]))
		}
	}
	return found, failed
}

// sweep removes what is there of a machine that nobody owns.
func (d *Driver) sweep(ctx context.Context, id string, pids []int) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	for _, pid := range pids {
		h, err := process.Open(pid)
		if err != nil {
			continue // gone by itself
		}
		if d.machineOf(pid) == id { // the handle is held: this is the process that was found
			_ = h.Signal(unix.SIGKILL)
			_ = h.Wait(ctx)
		}
		h.Close()
	}
	if err := d.host.Group(id).Remove(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(d.folder(id)); err != nil {
		return fmt.Errorf("remove machine folder: %w", err)
	}
	return nil
}

// known reports whether this process itself holds the machine.
func (d *Driver) known(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.live[id]
	return ok
}

// processes finds the sandbox processes of this driver's folder, by machine.
func (d *Driver) processes() (map[string][]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	found := map[string][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if id := d.machineOf(pid); id != "" {
			found[id] = append(found[id], pid)
		}
	}
	return found, nil
}

// machineOf tells which machine's sandbox process pid is: it was started with the machine's folder as its root.
func (d *Driver) machineOf(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return ""
	}
	args := strings.Split(string(b), "\x00")
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

func union(a, b []string, c map[string][]int) []string {
	all := append(slices.Clone(a), b...)
	for id := range c {
		all = append(all, id)
	}
	slices.Sort(all)
	return slices.Compact(all)
}
