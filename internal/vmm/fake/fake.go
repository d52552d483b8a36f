// Package fake keeps machines in memory and runs nothing: for tests of what is built upon drivers, and to measure
// schedulers without the cost of guests. It isolates nothing, so New refuses outside tests and benchmarks.
package fake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// Name is the driver's name.
const Name = "fake"

// Config says how the driver behaves.
type Config struct {
	// Benchmark allows the driver outside tests. Only the bench command sets it.
	Benchmark bool

	// Host is what outlives a driver; drivers on the same Host find each other's machines, as a restarted node does.
	// Nil makes a new one.
	Host *Host

	// Fault is asked before every operation ("boot", "restore", "adopt", "pause", "resume", "snapshot", "usage",
	// "stop"); its error is the operation's. It may block until ctx ends. Nil never fails.
	Fault func(ctx context.Context, op, id string) error

	// Inside is what monitors say of their machines, as vmm.Insider. Nil: there are none that could be asked.
	Inside func(id string) (vmm.Inside, error)
}

// Host holds machines.
type Host struct {
	mu       sync.Mutex
	machines map[string]*Machine
}

// NewHost makes a host without machines.
func NewHost() *Host { return &Host{machines: map[string]*Machine{}} }

// Machine finds a machine by id; nil when there is none.
func (h *Host) Machine(id string) *Machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.machines[id]
}

// Len counts the machines.
func (h *Host) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.machines)
}

// Driver is the fake driver.
type Driver struct {
	host      *Host
	fault     func(ctx context.Context, op, id string) error
	benchmark bool
	inside    func(id string) (vmm.Inside, error)

	mu   sync.Mutex
	held map[string]bool // ids that this driver made or adopted
}

var _ vmm.Driver = (*Driver)(nil)

// New makes a driver. It fails in any program that is neither a test nor a benchmark.
func New(c Config) (*Driver, error) {
	if !c.Benchmark && !testing.Testing() {
		return nil, errors.New("new fake driver: it isolates nothing and serves tests and benchmarks only")
	}
	if c.Host == nil {
		c.Host = NewHost()
	}
	if c.Fault == nil {
		c.Fault = func(context.Context, string, string) error { return nil }
	}
	return &Driver{host: c.Host, fault: c.Fault, inside: c.Inside, benchmark: c.Benchmark, held: map[string]bool{}}, nil
}

// Name implements vmm.Driver.
func (d *Driver) Name() string { return Name }

// Probe implements vmm.Driver.
func (d *Driver) Probe(context.Context) vmm.Support {
	return vmm.Support{Usable: true, Tier: tartarus.TierNone, Version: "fake"}
}

// before asks for a fault and looks at the context.
func (d *Driver) before(ctx context.Context, op, id string) error {
	err := d.fault(ctx, op, id)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s machine %s: %w", op, id, err)
	}
	return nil
}

// Boot implements vmm.Driver.
func (d *Driver) Boot(ctx context.Context, c vmm.Config) (vmm.Machine, error) {
	if err := d.before(ctx, "boot", c.ID); err != nil {
		return nil, err
	}
	return d.add(c)
}

// add checks a configuration and makes its machine.
func (d *Driver) add(c vmm.Config) (vmm.Machine, error) {
	switch r := c.Resources; {
	case !tartarus.ValidID(c.ID):
		return nil, tartarus.Errorf(tartarus.Invalid, "machine id %q is not lower-case letters and digits", c.ID)
	case c.RootFS == "":
		return nil, tartarus.Errorf(tartarus.Invalid, "no root file system")
	case r.VCPU < 0 || r.MemoryMB < 0 || r.DiskMB < 0 || r.PIDs < 0:
		return nil, tartarus.Errorf(tartarus.Invalid, "a limit is negative")
	case c.Interface != nil && (c.Interface.NetNS == "" || c.Interface.Device == "" || !c.Interface.Address.IsValid()):
		return nil, tartarus.Errorf(tartarus.Invalid, "network interface is incomplete")
	}
	if !d.benchmark {
		if _, err := os.Stat(c.RootFS); errors.Is(err, fs.ErrNotExist) {
			return nil, tartarus.Errorf(tartarus.NotFound, "root file system %s does not exist", filepath.Base(c.RootFS))
		}
	}
	m := &Machine{driver: d, config: c, ended: make(chan struct{})}
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	if _, taken := d.host.machines[c.ID]; taken {
		return nil, tartarus.Errorf(tartarus.Conflict, "machine %s exists", c.ID)
	}
	d.host.machines[c.ID] = m
	d.hold(c.ID, true)
	return m, nil
}

func (d *Driver) hold(id string, yes bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if yes {
		d.held[id] = true
	} else {
		delete(d.held, id)
	}
}

func (d *Driver) holds(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.held[id]
}

// Adopt implements vmm.Driver.
func (d *Driver) Adopt(ctx context.Context, r vmm.Record) (vmm.Machine, error) {
	if err := d.before(ctx, "adopt", r.ID); err != nil {
		return nil, err
	}
	if r.Driver != Name || !tartarus.ValidID(r.ID) {
		return nil, tartarus.Errorf(tartarus.Invalid, "record of %q is not ours", r.Driver)
	}
	if d.holds(r.ID) {
		return nil, tartarus.Errorf(tartarus.Conflict, "machine %s exists", r.ID)
	}
	m := d.host.Machine(r.ID)
	if m == nil {
		return nil, tartarus.Errorf(tartarus.NotFound, "machine %s does not run", r.ID)
	}
	select {
	case <-m.ended:
		d.host.remove(r.ID)
		return nil, tartarus.Errorf(tartarus.NotFound, "machine %s does not run", r.ID)
	default:
	}
	d.hold(r.ID, true)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.driver = d
	return m, nil
}

func (h *Host) remove(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.machines, id)
}

// Leftovers implements vmm.Driver.
func (d *Driver) Leftovers(ctx context.Context, owned func(id string) bool, remove bool) ([]vmm.Leftover, error) {
	d.host.mu.Lock()
	var stray []*Machine
	for id, m := range d.host.machines {
		if !owned(id) && !d.holds(id) {
			stray = append(stray, m)
		}
	}
	d.host.mu.Unlock()
	var found []vmm.Leftover
	for _, m := range stray {
		found = append(found, vmm.Leftover{Kind: "process", Name: m.config.ID})
		if remove {
			if err := m.Stop(ctx); err != nil {
				return found, err
			}
		}
	}
	slices.SortFunc(found, func(a, b vmm.Leftover) int { return compare(a.Name, b.Name) })
	return found, nil
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Machine is a machine that runs nothing. It ends by Stop or by End.
type Machine struct {
	config vmm.Config
	once   sync.Once
	ended  chan struct{}
	exit   vmm.Exit // once ended is closed

	mu     sync.Mutex
	driver *Driver // who holds it
	paused bool
}

var _ vmm.Machine = (*Machine)(nil)

// Config is what the machine was made from.
func (m *Machine) Config() vmm.Config { return m.config }

// Paused reports whether the machine is paused.
func (m *Machine) Paused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.paused
}

// End lets the machine end by itself, as a guest does that crashes or runs out of memory.
func (m *Machine) End(reason tartarus.Reason, message string) {
	m.once.Do(func() {
		m.exit = vmm.Exit{Reason: reason, Message: message}
		close(m.ended)
	})
}

func (m *Machine) holder() *Driver {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.driver
}

// Record implements vmm.Machine.
func (m *Machine) Record() vmm.Record { return vmm.Record{Driver: Name, ID: m.config.ID} }

// begin is what every operation on a live machine begins with.
func (m *Machine) begin(ctx context.Context, op string) error {
	if err := m.holder().before(ctx, op, m.config.ID); err != nil {
		return err
	}
	select {
	case <-m.ended:
		return tartarus.Errorf(tartarus.GuestGone, "machine %s has ended", m.config.ID)
	default:
		return nil
	}
}

// Pause implements vmm.Machine.
func (m *Machine) Pause(ctx context.Context) error { return m.set(ctx, "pause", true) }

// Resume implements vmm.Machine.
func (m *Machine) Resume(ctx context.Context) error { return m.set(ctx, "resume", false) }

func (m *Machine) set(ctx context.Context, op string, paused bool) error {
	if err := m.begin(ctx, op); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = paused
	return nil
}

// snapshotName is the one file of a snapshot.
const snapshotName = "fake.json"

// snapshot is its content.
type snapshot struct {
	CRC    uint32          `json:"crc"`
	Config json.RawMessage `json:"config"`
	Image  int64           `json:"image"` // size of the image, which tells images apart well enough here
}

func (s snapshot) sum() uint32 {
	return crc32.ChecksumIEEE(append(fmt.Appendf(nil, "%d", s.Image), s.Config...))
}

func imageSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// Snapshot implements vmm.Machine.
func (m *Machine) Snapshot(ctx context.Context, dir string) error {
	if err := m.begin(ctx, "snapshot"); err != nil {
		return err
	}
	b, err := json.Marshal(m.config)
	if err != nil {
		return fmt.Errorf("snapshot machine %s: %w", m.config.ID, err)
	}
	s := snapshot{Config: b, Image: imageSize(m.config.RootFS)}
	s.CRC = s.sum()
	if b, err = json.Marshal(s); err == nil {
		err = os.WriteFile(filepath.Join(dir, snapshotName), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("snapshot machine %s: %w", m.config.ID, err)
	}
	return nil
}

// Restore implements vmm.Driver.
func (d *Driver) Restore(ctx context.Context, c vmm.Config, dir string) (vmm.Machine, error) {
	if err := d.before(ctx, "restore", c.ID); err != nil {
		return nil, err
	}
	var s snapshot
	b, err := os.ReadFile(filepath.Join(dir, snapshotName))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil || s.sum() != s.CRC {
		return nil, tartarus.Errorf(tartarus.Corrupt, "restore machine %s: snapshot is damaged", c.ID)
	}
	if s.Image != imageSize(c.RootFS) {
		return nil, tartarus.Errorf(tartarus.Invalid, "restore machine %s: snapshot was made on another root file system", c.ID)
	}
	return d.add(c)
}

// Usage implements vmm.Machine. The numbers are those of an idle gVisor machine.
func (m *Machine) Usage(ctx context.Context) (vmm.Usage, error) {
	if err := m.begin(ctx, "usage"); err != nil {
		return vmm.Usage{}, err
	}
	return vmm.Usage{CPU: 80 * time.Millisecond, MemoryBytes: 20 << 20, PIDs: 20}, nil
}

// Inside implements vmm.Insider.
func (m *Machine) Inside(context.Context) (vmm.Inside, error) {
	if ask := m.holder().inside; ask != nil {
		return ask(m.config.ID)
	}
	return vmm.Inside{}, tartarus.Errorf(tartarus.Unsupported, "machine %s has no monitor", m.config.ID)
}

// Wait implements vmm.Machine.
func (m *Machine) Wait(ctx context.Context) (vmm.Exit, error) {
	select {
	case <-m.ended:
		return m.exit, nil
	default:
	}
	select {
	case <-m.ended:
		return m.exit, nil
	case <-ctx.Done():
		return vmm.Exit{}, ctx.Err()
	}
}

// Stop implements vmm.Machine.
func (m *Machine) Stop(ctx context.Context) error {
	d := m.holder()
	if err := d.before(ctx, "stop", m.config.ID); err != nil {
		return err
	}
	m.End(tartarus.ReasonUser, "stopped")
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	if d.host.machines[m.config.ID] == m {
		delete(d.host.machines, m.config.ID)
		d.hold(m.config.ID, false)
	}
	return nil
}
