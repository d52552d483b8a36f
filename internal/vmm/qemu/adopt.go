package qemu

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

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

// adoptTimeout bounds how long a QEMU may take to answer the process that adopts it. Measured: 2 ms.
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
	m.who, m.user, m.about, m.group = s.Process, s.User, s.About, d.host.Group(r.ID)
	handle, err := process.Find(s.Process)
	if err == nil {
		m.handle = handle
		if err = m.answer(ctx); err == nil {
			m.watch(context.WithoutCancel(ctx))
			d.keep(m)
			return m, nil
		}
		if ctx.Err() != nil { // not the machine's fault: leave it for another try
			m.letGo()
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

// letGo closes what this process holds of a machine that lives on.
func (m *machine) letGo() {
	if m.monitor != nil {
		m.monitor.close()
	}
	m.handle.Close()
}

// answer makes sure that QEMU answers, that its guest has not ended, and that it is in its control group.
func (m *machine) answer(ctx context.Context) error {
	if !slices.Contains(m.group.PIDs(), m.who.PID) {
		return errors.New("QEMU is not in its control group")
	}
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	var err error
	if m.monitor, err = m.dial(ctx); err != nil {
		return err
	}
	s, err := m.monitor.status(ctx)
	if err != nil {
		return err
	}
	if s == stateShutdown {
		_ = m.hear(ctx)
		return fmt.Errorf("the guest ended meanwhile: %s", m.epitaph())
	}
	return nil
}

// Leftovers implements vmm.Driver.
func (d *Driver) Leftovers(ctx context.Context, owned func(id string) bool, remove bool) ([]vmm.Leftover, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, fmt.Errorf("list leftovers: %w", err)
	}
	stray, err := d.processes()
	if err != nil {
		return nil, fmt.Errorf("list leftovers: %w", err)
	}
	ids := make([]string, 0, len(entries))
	for _, e := range entries {
		if tartarus.ValidID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	folders := slices.Clone(ids)
	for id := range stray {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	var found []vmm.Leftover
	var failed error
	for _, id := range ids {
		if owned(id) || d.known(id) {
			continue
		}
		for _, pid := range stray[id] {
			found = append(found, vmm.Leftover{Kind: "process", Name: strconv.Itoa(pid) + " (" + id + ")"})
		}
		if d.host.Group(id).Exists() {
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

// sweep removes what is there of a machine that nobody owns. Its user is free as soon as its folder is gone.
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

// processes finds the QEMU processes of this driver's folder, by machine.
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

// machineOf tells which machine's process pid is: its name has the machine's folder.
func (d *Driver) machineOf(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return ""
	}
	name, _, _ := strings.Cut(string(b), "\x00")
	dir, ok := strings.CutPrefix(name, jailName)
	if !ok || filepath.Dir(dir) != d.dir || !tartarus.ValidID(filepath.Base(dir)) {
		return ""
	}
	return filepath.Base(dir)
}
