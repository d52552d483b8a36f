package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/life"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

// machine is one QEMU process with what belongs to it.
type machine struct {
	driver  *Driver
	id      string
	dir     string
	foreign bool // dir belongs to another process's machine
	about   about
	group   *cgroup.Group
	user    int // 0 until one was claimed
	who     process.Identity
	handle  *process.Handle
	cmd     *exec.Cmd // nil when adopted: then it is not our child
	monitor *monitor
	words   *os.File // QEMU's standard error, in memory; nil when adopted
	files   files    // only while it is started
	stateFD int      // QEMU's number of the snapshot's state
	base    *memory  // the snapshot's memory that it maps, which others may share

	mu      sync.Mutex
	console []byte // the end of what the guest wrote to its serial port

	life *life.Life

	stopMu sync.Mutex
	gone   bool // under stopMu: everything is removed
}

var _ vmm.Machine = (*machine)(nil)

func (d *Driver) newMachine(id string) *machine {
	return &machine{driver: d, id: id, dir: d.folder(id), life: life.New(id)}
}

// about is what a machine is, as far as a snapshot of it depends on that.
type about struct {
	Version  string `json:"version"` // of QEMU
	RootFS   string `json:"rootfs"`
	Memory   int64  `json:"memoryMB"`
	VCPU     int    `json:"vcpu"`
	Disk     bool   `json:"disk"`
	Network  bool   `json:"network"`
	Engine   string `json:"engine"`    // accelerator and processor
	Private  bool   `json:"private"`   // its memory is a private mapping of a snapshot's
	MemoryFD int    `json:"memory_fd"` // QEMU's descriptor of its memory
}

func (a *about) describe(c vmm.Config, qemu emulator) {
	a.Version, a.Memory, a.VCPU = qemu.version, memoryMB(c.Resources), cpus(c.Resources)
	a.Disk, a.Network = c.Resources.DiskMB > 0, c.Interface != nil
	a.Engine = engine(qemu)
}

// state is the driver's part of a record.
type state struct {
	Process process.Identity `json:"process"`
	User    int              `json:"user"`
	About   about            `json:"about"`
}

// Record implements vmm.Machine.
func (m *machine) Record() vmm.Record {
	b, err := json.Marshal(state{Process: m.who, User: m.user, About: m.about})
	if err != nil {
		panic(err) // numbers and strings only
	}
	return vmm.Record{Driver: Name, ID: m.id, State: b}
}

// watch begins to wait for the end of the guest and of the process.
func (m *machine) watch(ctx context.Context) {
	events, done := context.WithCancel(ctx)
	followed := make(chan struct{})
	m.life.Watch(ctx, m.driver.log, m.handle, m.group, func(err error) vmm.Exit {
		done()
		<-followed
		return m.verdict(err)
	})
	go func() {
		defer close(followed)
		m.follow(events)
	}()
}

// follow waits for the guest to end, hears its last words and ends QEMU, which stays for that.
func (m *machine) follow(ctx context.Context) {
	for {
		e, err := m.monitor.next(ctx)
		if err != nil {
			return
		}
		if e.Name == "SHUTDOWN" {
			break
		}
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	_ = m.hear(ctx) // what it did not say is not needed
	_ = m.handle.Signal(unix.SIGKILL)
}

// hear takes what the guest has written to its console since.
func (m *machine) hear(ctx context.Context) error {
	b, err := m.monitor.console(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.console = append(m.console, b...)
	if over := len(m.console) - consoleSize; over > 0 {
		m.console = m.console[over:]
	}
	return nil
}

// verdict says how the process, which has ended, did end.
func (m *machine) verdict(err error) vmm.Exit {
	status, forbidden := "QEMU ended", false
	if m.cmd != nil {
		_ = m.cmd.Wait() // returns at once and takes the zombie away
		status, forbidden = describe(m.cmd), process.Forbidden(m.cmd.ProcessState)
	}
	guest := m.epitaph()
	switch {
	case forbidden:
		return vmm.Exit{Reason: tartarus.ReasonCrashed, Message: status, Forbidden: true}
	case m.life.Starved(m.group):
		return vmm.Exit{Reason: tartarus.ReasonOOM, Message: "the memory limit was reached"}
	case m.life.Stopped():
		return vmm.Exit{Reason: tartarus.ReasonUser, Message: "stopped"}
	case err != nil:
		return vmm.Exit{Reason: tartarus.ReasonCrashed, Message: err.Error()}
	case guest != "":
		return vmm.Exit{Reason: tartarus.ReasonCrashed, Message: guest}
	}
	why := m.lastWords()
	m.driver.log.Warn("virtual machine crashed", "sandbox", m.id, "status", status, "output", why)
	return vmm.Exit{Reason: tartarus.ReasonCrashed, Message: status}
}

// epitaph is what the guest said of its own end.
func (m *machine) epitaph() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return linux.Epitaph(m.console)
}

// lastLines are the guest's, for messages.
func (m *machine) lastLines() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return linux.Printable(string(m.console[max(0, len(m.console)-500):]))
}

// lastWords is what QEMU wrote to its standard error.
func (m *machine) lastWords() string {
	if m.words == nil {
		return ""
	}
	const most = 800
	b, err := io.ReadAll(io.NewSectionReader(m.words, 0, most))
	if err != nil {
		return ""
	}
	return linux.Printable(string(b))
}

// describe puts the end of a QEMU process into words.
func describe(cmd *exec.Cmd) string {
	ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case ok && ws.Signaled():
		return fmt.Sprintf("QEMU was killed by signal %d", ws.Signal())
	case ok:
		return fmt.Sprintf("QEMU ended with status %d", ws.ExitStatus())
	}
	return "QEMU ended"
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
	if !m.foreign {
		if err := m.remove(ctx); err != nil {
			return err
		}
	}
	m.driver.forget(m.base)
	m.driver.held.Release(m.id)
	m.gone = true
	return nil
}

func (m *machine) remove(ctx context.Context) error {
	if err := m.life.Kill(m.handle); err != nil {
		return err
	}
	if err := m.life.Reap(ctx, m.handle, m.cmd); err != nil {
		return err
	}
	if m.monitor != nil {
		m.monitor.close()
		<-m.monitor.closed // its listener ends with the connection
	}
	if m.group != nil {
		if err := m.group.Remove(ctx); err != nil {
			return err
		}
	}
	if m.user != 0 {
		if err := m.driver.cfg.Users.Release(m.user, m.dir); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(m.dir); err != nil {
		return fmt.Errorf("remove machine folder: %w", err)
	}
	if m.handle != nil {
		m.handle.Close()
	}
	if m.words != nil {
		_ = m.words.Close()
	}
	return nil
}

// ended words an error of a machine that may have ended meanwhile.
func (m *machine) ended(err error) error {
	if err == nil || m.handle == nil || !m.handle.Ended() && !errors.Is(err, errClosed) {
		return err
	}
	return tartarus.Errorf(tartarus.GuestGone, "machine %s has ended: %w", m.id, err)
}

// Usage implements vmm.Machine.
func (m *machine) Usage(ctx context.Context) (vmm.Usage, error) {
	return m.life.Usage(ctx, m.group, filepath.Join(m.dir, diskName))
}

// pauseTimeout bounds a pause or resume once it has begun. It is not given up when the caller goes: whether it took place must be known.
const pauseTimeout = 20 * time.Second

// Pause implements vmm.Machine. QEMU itself knows whether it is paused, and does nothing when it is already so.
func (m *machine) Pause(ctx context.Context) error {
	if err := m.command(ctx, (*monitor).stop); err != nil {
		return fmt.Errorf("pause machine %s: %w", m.id, err)
	}
	return nil
}

// Resume implements vmm.Machine.
func (m *machine) Resume(ctx context.Context) error {
	if err := m.command(ctx, (*monitor).cont); err != nil {
		return fmt.Errorf("resume machine %s: %w", m.id, err)
	}
	return nil
}

func (m *machine) command(ctx context.Context, do func(*monitor, context.Context) error) error {
	release, err := m.life.Take(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseTimeout)
	defer cancel()
	return m.ended(do(m.monitor, ctx))
}

// ownFile opens a file of QEMU's by its number there. The handle is held, so that it is this process's.
func (m *machine) ownFile(fd int) (*os.File, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(m.who.PID) + "/fd/" + strconv.Itoa(fd))
	if err == nil && m.handle.Ended() {
		f.Close()
		err = process.ErrGone
	}
	return f, err
}
