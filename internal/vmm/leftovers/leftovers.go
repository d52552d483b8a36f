// Package leftovers finds and removes what machines left on the host whose driver died: processes, control groups, folders. What
// it takes for a machine's has the machine's folder, or is a process that its driver recognises by its arguments.
package leftovers

import (
	"context"
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
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

// sweepTime bounds how long what is left of one machine may take to go.
const sweepTime = 10 * time.Second

// Driver says what a driver's machines look like on the host.
type Driver struct {
	Dir    string       // has a folder for each machine, by its id
	Groups *cgroup.Host // has a group for each, likewise; other drivers may have theirs there too
	Held   *vmm.Held    // those that this process itself makes or holds, which have an owner
	// Serves tells by its arguments which machine a process serves, or returns nothing.
	Serves func(args []string) string
}

// List returns what is there of machines that nobody owns, and removes it where asked to.
func (d Driver) List(ctx context.Context, owned func(id string) bool, remove bool) ([]vmm.Leftover, error) {
	entries, err := os.ReadDir(d.Dir)
	if err != nil {
		return nil, fmt.Errorf("list leftovers: %w", err)
	}
	stray, err := d.processes()
	if err != nil {
		return nil, fmt.Errorf("list leftovers: %w", err)
	}
	var folders []string
	for _, e := range entries {
		if tartarus.ValidID(e.Name()) {
			folders = append(folders, e.Name())
		}
	}
	ids := slices.Clone(folders)
	for id := range stray {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var found []vmm.Leftover
	var failed error
	for _, id := range slices.Compact(ids) {
		if owned(id) || d.Held.Has(id) {
			continue
		}
		for _, pid := range stray[id] {
			found = append(found, vmm.Leftover{Kind: "process", Name: strconv.Itoa(pid) + " (" + id + ")"})
		}
		if d.Groups.Group(id).Exists() {
			found = append(found, vmm.Leftover{Kind: "cgroup", Name: id})
		}
		if slices.Contains(folders, id) {
			found = append(found, vmm.Leftover{Kind: "folder", Name: filepath.Join(d.Dir, id)})
		}
		if remove {
			failed = errors.Join(failed, d.sweep(ctx, id, stray[id]))
		}
	}
	return found, failed
}

// sweep removes what is there of a machine. Its folder goes last: what else is lent under the machine's name is free once that is gone.
func (d Driver) sweep(ctx context.Context, id string, pids []int) error {
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
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
	if err := d.Groups.Group(id).Remove(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(d.Dir, id)); err != nil {
		return fmt.Errorf("remove machine folder: %w", err)
	}
	return nil
}

// processes finds those of the driver's machines, by machine.
func (d Driver) processes() (map[string][]int, error) {
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

// machineOf tells which machine's process pid is.
func (d Driver) machineOf(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil || len(b) == 0 {
		return ""
	}
	if id := d.Serves(strings.Split(string(b), "\x00")); tartarus.ValidID(id) {
		return id
	}
	return ""
}
