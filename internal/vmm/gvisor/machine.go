package gvisor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/runsc/config"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/life"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

// machine is one sandbox process with what belongs to it.
type machine struct {
	driver  *Driver
	id      string
	dir     string
	foreign bool // dir belongs to another process's machine
	conf    *config.Config
	version string // of the gVisor that the sandbox process runs
	rootfs  string // which image the guest stands on
	group   *cgroup.Group
	who     process.Identity
	handle  *process.Handle
	cmd     *exec.Cmd // nil when adopted: then it is not our child

	life   *life.Life
	paused bool // for whoever has the turn

	stopMu sync.Mutex
	gone   bool // under stopMu: everything is removed
}

var (
	_ vmm.Machine = (*machine)(nil)
	_ vmm.Execer  = (*machine)(nil)
)

func (d *Driver) newMachine(id string) *machine {
	return &machine{
		driver: d, id: id, dir: d.folder(id), version: Version(),
		life: life.New(id),
	}
}

// state is the driver's part of a record.
type state struct {
	Process process.Identity `json:"process"`
	Version string           `json:"version"`
	RootFS  string           `json:"rootfs"`
}

// Record implements vmm.Machine.
func (m *machine) Record() vmm.Record {
	b, err := json.Marshal(state{Process: m.who, Version: m.version, RootFS: m.rootfs})
	if err != nil {
		panic(err) // numbers and strings only
	}
	return vmm.Record{Driver: Name, ID: m.id, State: b}
}

// watch begins to wait for the end of the process.
func (m *machine) watch(ctx context.Context) {
	m.life.Watch(ctx, m.driver.log, m.handle, m.group, m.verdict)
}

// verdict says how the process, which has ended, did end.
func (m *machine) verdict(err error) vmm.Exit {
	status, forbidden := "the sandbox process ended", false
	if m.cmd != nil {
		werr := m.cmd.Wait() // returns at once and takes the zombie away
		status, forbidden = describe(m.cmd, werr), process.Forbidden(m.cmd.ProcessState)
	}
	why := bootFailure(filepath.Join(m.dir, panicName))
	switch {
	case forbidden:
		return vmm.Exit{Reason: tartarus.ReasonCrashed, Message: status, Forbidden: true}
	case m.life.Starved(m.group):
		return vmm.Exit{Reason: tartarus.ReasonOOM, Message: "the memory limit was reached"}
	case m.life.Stopped():
		return vmm.Exit{Reason: tartarus.ReasonUser, Message: "stopped"}
	case err != nil:
		return vmm.Exit{Reason: tartarus.ReasonCrashed, Message: err.Error()}
	case why != "":
		m.driver.log.Warn("sandbox process crashed", "sandbox", m.id, "status", status, "output", why)
		return vmm.Exit{Reason: tartarus.ReasonCrashed, Message: "the sandbox kernel crashed"}
	}
	return vmm.Exit{Reason: tartarus.ReasonCrashed, Message: status}
}

// lastWords is what a sandbox process that failed to start wrote, or how it ended where it wrote nothing. One that is about to crash breaks its connections
// before it says why, so it is given a moment.
func (m *machine) lastWords(ctx context.Context) string {
	const moment = 200 * time.Millisecond
	if m.handle != nil {
		ctx, cancel := context.WithTimeout(ctx, moment)
		defer cancel()
		_ = m.handle.Wait(ctx)
	}
	if why := bootFailure(filepath.Join(m.dir, panicName)); why != "" || m.life.Watched() || m.cmd == nil || m.handle == nil || !m.handle.Ended() {
		return why
	}
	return describe(m.cmd, m.cmd.Wait()) // it has ended, so this returns at once
}

// describe puts the end of a sandbox process, whose exit code is that of the guest's first process, into words.
func describe(cmd *exec.Cmd, err error) string {
	ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return fmt.Sprintf("the sandbox process ended: %v", err)
	case ws.Signaled():
		return fmt.Sprintf("the sandbox process was killed by signal %d", ws.Signal())
	case ws.ExitStatus() > 128:
		return fmt.Sprintf("the guest's first process ended by signal %d", ws.ExitStatus()-128)
	}
	return fmt.Sprintf("the guest's first process ended with status %d", ws.ExitStatus())
}

// Wait implements vmm.Machine.
func (m *machine) Wait(ctx context.Context) (vmm.Exit, error) { return m.life.Wait(ctx) }

// Stop implements vmm.Machine.
func (m *machine) Stop(ctx context.Context) error {
	if err := m.discard(ctx); err != nil {
		return fmt.Errorf("stop machine %s: %w", m.id, err)
	}
	return nil
}

// discard ends the process and removes all there is of the machine. It takes up where an earlier call failed.
func (m *machine) discard(ctx context.Context) error {
	m.stopMu.Lock()
	defer m.stopMu.Unlock()
	if m.gone {
		return nil
	}
	if m.foreign {
		m.driver.held.Release(m.id)
		m.gone = true
		return nil
	}
	if err := m.life.Kill(m.handle); err != nil {
		return err
	}
	if err := m.life.Reap(ctx, m.handle, m.cmd); err != nil {
		return err
	}
	if m.group != nil {
		if err := m.group.Remove(ctx); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(m.dir); err != nil {
		return fmt.Errorf("remove machine folder: %w", err)
	}
	if m.handle != nil {
		m.handle.Close()
	}
	m.driver.held.Release(m.id)
	m.gone = true
	return nil
}

// Usage implements vmm.Machine.
func (m *machine) Usage(ctx context.Context) (vmm.Usage, error) {
	return m.life.Usage(ctx, m.group, filepath.Join(m.dir, diskName))
}
