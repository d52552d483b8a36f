package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/life"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

// machine is one monitor with what belongs to it.
type machine struct {
	driver  *Driver
	id      string
	dir     string
	foreign bool // dir belongs to another process's machine
	state   state

	group   *cgroup.Group
	handle  *process.Handle
	pages   *process.Handle // of the page-fault handler; nil when there is none
	api     *Client
	root    *os.File // the jail, held
	snap    *os.File // its folder for snapshots, held
	console *tail
	log     *tail
	counts  *counters
	input   *os.File // nil without Config.Console
	extraMB int64    // of its control group, beside the guest's memory and the monitor's own

	blame atomic.Pointer[string] // why this process ended it, other than by Stop

	life *life.Life

	stopMu sync.Mutex
	gone   bool // under stopMu: everything is removed
}

var _ vmm.Machine = (*machine)(nil)

// state is the driver's part of a record.
type state struct {
	Process  process.Identity  `json:"process"`
	Version  string            `json:"version"`
	UID      int               `json:"uid"`
	RootFS   string            `json:"rootfs"`
	Needs    map[string]string `json:"needs"`
	Disk     bool              `json:"disk"`
	Rates    string            `json:"rates,omitempty"`    // what its devices are held to
	Pages    *process.Identity `json:"pages,omitempty"`    // the page-fault handler
	PagesUID int               `json:"pagesUID,omitempty"` // its user
}

func (d *Driver) newMachine(id string) *machine {
	return &machine{driver: d, id: id, dir: d.folder(id), life: life.New(id)}
}

// path is the host's path of a name in the jail.
func (m *machine) path(name string) string { return filepath.Join(m.dir, rootName, name) }

// Record implements vmm.Machine.
func (m *machine) Record() vmm.Record {
	b, err := json.Marshal(m.state)
	if err != nil {
		panic(err) // numbers and strings only
	}
	return vmm.Record{Driver: Name, ID: m.id, State: b}
}

// Console is the guest's serial port; an error without Config.Console.
func (m *machine) Console() (*Console, error) {
	if m.input == nil {
		return nil, tartarus.Errorf(tartarus.Unsupported, "the machine's console takes no input")
	}
	return &Console{tail: m.console, in: m.input}, nil
}

func inGroup(g *cgroup.Group, pid int) bool { return slices.Contains(g.PIDs(), pid) }

// watch begins to wait for the end of the monitor and of what serves it.
func (m *machine) watch(ctx context.Context) {
	m.life.Watch(ctx, m.driver.log, m.handle, m.group, m.verdict)
	go m.watchAnswers(ctx)
}

// fail ends the machine because of a fault that is not its guest's.
func (m *machine) fail(why string) {
	m.blame.CompareAndSwap(nil, &why)
	_ = m.handle.Signal(unix.SIGKILL)
}

// watchAnswers asks the monitor now and then whether it still answers. One that does not is killed: nobody could pause or
// snapshot it, and what it does nobody knows.
func (m *machine) watchAnswers(ctx context.Context) {
	w := m.driver.cfg.Watch
	tick := time.NewTicker(w.Every)
	defer tick.Stop()
	for strikes := 0; ; {
		select {
		case <-m.life.Ended():
			return
		case <-tick.C:
		}
		release, ok := m.life.TryTake()
		if !ok {
			continue // something is under way, which has a bound of its own
		}
		asking, cancel := context.WithTimeout(ctx, w.Patience)
		_, err := m.api.Describe(asking)
		cancel()
		release()
		if err == nil {
			strikes = 0
			continue
		}
		if strikes++; strikes >= w.Strikes && !m.handle.Ended() {
			m.driver.log.Warn("monitor does not answer: killed", "sandbox", m.id, "error", err)
			m.fail("the monitor did not answer")
			return
		}
	}
}

// verdict says how the monitor, which has ended, did end.
func (m *machine) verdict(err error) vmm.Exit {
	blame := m.blame.Load()
	switch {
	case m.life.Starved(m.group):
		return vmm.Exit{Reason: tartarus.ReasonOOM, Message: "the memory limit was reached"}
	case m.life.Stopped():
		return vmm.Exit{Reason: tartarus.ReasonUser, Message: "stopped"}
	case blame != nil:
		return vmm.Exit{Reason: tartarus.ReasonCrashed, Message: *blame}
	case err != nil:
		return vmm.Exit{Reason: tartarus.ReasonCrashed, Message: err.Error()}
	}
	log := m.log.text()
	if strings.Contains(log, "bad syscall") { // what its signal handler writes before it ends
		return vmm.Exit{Reason: tartarus.ReasonCrashed, Message: "the monitor made a system call that it may not make", Forbidden: true}
	}
	if what := linux.Epitaph([]byte(m.console.text())); what != "" {
		return vmm.Exit{Reason: tartarus.ReasonCrashed, Message: what}
	}
	if strings.Contains(log, "exit_code=0") {
		return vmm.Exit{Reason: tartarus.ReasonCrashed, Message: "the guest shut itself down"}
	}
	why := m.lastWords()
	m.driver.log.Warn("monitor ended", "sandbox", m.id, "log", why)
	if why == "" {
		why = "no last words"
	}
	return vmm.Exit{Reason: tartarus.ReasonCrashed, Message: "the monitor ended: " + why}
}

// lastWords are the last lines of the monitor's log, or what jailer and guest wrote where it has none.
func (m *machine) lastWords() string {
	const lines = 3
	for _, t := range []*tail{m.log, m.console} {
		if t == nil {
			continue
		}
		var said []string
		for l := range strings.Lines(t.text()) {
			if l = strings.TrimSpace(l); l != "" && !strings.Contains(l, "The API server received") && !strings.Contains(l, "executed successfully") {
				said = append(said, l)
			}
		}
		if len(said) > 0 {
			return linux.Printable(strings.Join(said[max(0, len(said)-lines):], " | "))
		}
	}
	return ""
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

// discard ends the monitor and removes all there is of the machine. It takes up where an earlier call failed.
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
	if err := m.life.Reap(ctx, m.handle, nil); err != nil { // it is no child of ours
		return err
	}
	m.letPagesEnd(ctx)
	if m.group != nil { // and with it the page-fault handler, and a jailer that was given up
		if err := m.group.Remove(ctx); err != nil {
			return err
		}
	}
	m.close()
	if err := os.RemoveAll(m.dir); err != nil {
		return fmt.Errorf("remove machine folder: %w", err)
	}
	var errs []error
	for _, uid := range []int{m.state.UID, m.state.PagesUID} {
		if uid != 0 {
			errs = append(errs, m.driver.cfg.Users.Release(uid, m.dir))
		}
	}
	m.driver.held.Release(m.id)
	m.gone = true
	return errors.Join(errs...)
}

// ended turns err into GuestGone where the cause is that the monitor has ended.
func (m *machine) ended(err error) error {
	if err != nil && m.handle.Ended() {
		return tartarus.Errorf(tartarus.GuestGone, "machine %s has ended: %w", m.id, err)
	}
	return err
}

// Usage implements vmm.Machine.
func (m *machine) Usage(ctx context.Context) (vmm.Usage, error) {
	return m.life.Usage(ctx, m.group, m.path(diskName))
}
