package bench

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
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/daemon"
	"github.com/tartarus-sandbox/tartarus/internal/image"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/firecracker"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/payload"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/users"
)

// benchMemoryMB is the memory of a machine here: the smallest that Linux guests are given in practice.
const benchMemoryMB = 128

// Bounds of one restore with all that belongs to it, and of all clones together: a run ends, on however busy a host.
const (
	turnTime  = time.Minute
	crowdTime = 5 * time.Minute
)

// VMM measures a driver of virtual machines alone: from nothing to a machine that goes on where a snapshot was taken, in a network slot made ahead,
// against the jailer and the same calls made by hand. Then it makes many clones of one snapshot at once. The guest is a bare one of a page:
// what is measured is the monitor's way, which is the same for every guest, and so it can be measured where KVM cannot run Linux.
func VMM(ctx context.Context, cfg Config) (rep *Report, err error) {
	if cfg.Driver != firecracker.Name {
		return nil, tartarus.Errorf(tartarus.Invalid, "driver %q cannot be measured alone: firecracker can", cfg.Driver)
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	r, err := openVMM(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close(ctx)) }()
	r.rep = &Report{
		What: "vmm", Runtime: firecracker.Name, N: cfg.N, Concurrency: 1,
		Stages: map[string]float64{}, Extra: map[string]float64{}, Host: thisHost(),
	}
	if err := r.source(ctx); err != nil {
		return nil, err
	}
	if err := r.oneByOne(ctx); err != nil {
		return nil, err
	}
	return r.rep, r.atOnce(ctx)
}

// vmmRig is a driver without a stack.
type vmmRig struct {
	cfg    Config
	rep    *Report
	dir    string
	driver *firecracker.Driver
	users  users.Range
	slots  *network.Pool
	rootfs string
	snap   string
	count  int
}

func openVMM(ctx context.Context, cfg Config) (r *vmmRig, err error) {
	r = &vmmRig{cfg: cfg, users: users.Default()}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close(ctx))
			r = nil
		}
	}()
	store, err := image.New(image.Config{Dir: filepath.Join(cfg.Daemon.DataDir, daemon.TemplatesDir)})
	if err != nil {
		return r, err
	}
	if _, err := store.EnsureTiny(ctx); err != nil {
		return r, err
	}
	template, err := store.Resolve(cfg.Template)
	if err != nil {
		return r, err
	}
	r.rootfs = template.RootFS
	// Beside the templates: images and snapshots are given to machines by a second name, which must be on the same file system.
	if r.dir, err = os.MkdirTemp(cfg.Daemon.DataDir, "bench-"); err != nil {
		return r, fmt.Errorf("make folder: %w", err)
	}
	kernel := filepath.Join(r.dir, "payload.elf")
	if err := os.WriteFile(kernel, payload.ELF(), 0o644); err != nil {
		return r, err
	}
	c := daemon.FirecrackerConfig(cfg.Daemon)
	c.Dir, c.Users, c.Guest, c.Console = filepath.Join(r.dir, "driver"), r.users, firecracker.Guest{Bare: kernel}, true
	r.driver, err = firecracker.New(c)
	if err != nil {
		return r, err
	}
	if s := r.driver.Probe(ctx); !s.Usable {
		return r, tartarus.Errorf(tartarus.Unsupported, "driver firecracker: %s", s.Reason)
	}
	r.slots, err = network.Open(ctx, network.Config{StateDir: filepath.Join(r.dir, "network"), Ephemeral: true, Base: cfg.Daemon.Network.Base})
	return r, err
}

func (r *vmmRig) close(ctx context.Context) error {
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var errs []error
	if r.slots != nil {
		errs = append(errs, r.slots.Close(last))
	}
	if r.dir != "" {
		errs = append(errs, os.RemoveAll(r.dir))
	}
	return errors.Join(errs...)
}

// machine is the configuration of another machine, with a slot made now, which is not measured.
func (r *vmmRig) machine(ctx context.Context) (vmm.Config, *network.Slot, error) {
	slot, err := r.slots.AcquireTAP(ctx)
	if err != nil {
		return vmm.Config{}, nil, err
	}
	r.count++
	return vmm.Config{
		ID: "bench" + strconv.Itoa(os.Getpid()) + "x" + strconv.Itoa(r.count), RootFS: r.rootfs, Interface: slot.Interface(),
		Resources: tartarus.Resources{VCPU: 1, MemoryMB: benchMemoryMB, DiskMB: 64},
	}, slot, nil
}

// source makes the snapshot that all others are made of.
func (r *vmmRig) source(ctx context.Context) error {
	c, slot, err := r.machine(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	m, err := r.driver.Boot(ctx, c)
	if err != nil {
		return err
	}
	r.rep.Stages["boot"] = ms(time.Since(began))
	last := context.WithoutCancel(ctx)
	defer func() { _ = errors.Join(m.Stop(last), r.slots.Release(last, slot)) }()
	if err := awake(ctx, m); err != nil {
		return err
	}
	con, err := m.(talker).Console()
	if err != nil {
		return err
	}
	if err := payload.Do(ctx, con, payload.Fill); err != nil {
		return err
	}
	r.snap = filepath.Join(r.dir, "snapshot")
	if err := os.Mkdir(r.snap, 0o700); err != nil {
		return err
	}
	began = time.Now()
	if err := m.Snapshot(ctx, r.snap); err != nil {
		return err
	}
	r.rep.Stages["snapshot"] = ms(time.Since(began))
	return nil
}

type talker interface {
	Console() (*firecracker.Console, error)
}

// awake makes sure that the guest of m goes on.
func awake(ctx context.Context, m vmm.Machine) error {
	con, err := m.(talker).Console()
	if err != nil {
		return err
	}
	for first := -1; ; {
		n, err := payload.Count(ctx, con)
		if err != nil {
			return err
		}
		if first >= 0 && n > first {
			return nil
		}
		first = n
	}
}

// oneByOne restores by the driver and by hand in turns.
func (r *vmmRig) oneByOne(ctx context.Context) error {
	var ours, floor, answers, stops []time.Duration
	const warm = 2 // not counted: files are checked and come into memory
	for i := range r.cfg.N + warm {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var hand, took, answer, stop time.Duration
		var failed, floorFailed error
		// Each goes first in every other turn: what the kernel still does for the machine that ended is borne by both.
		if i%2 == 1 {
			hand, floorFailed = r.byHand(ctx)
		}
		took, answer, stop, failed = r.byDriver(ctx)
		if i%2 == 0 {
			hand, floorFailed = r.byHand(ctx)
		}
		if failed != nil || floorFailed != nil {
			if floorFailed != nil {
				floorFailed = fmt.Errorf("floor: %w", floorFailed)
			}
			r.rep.fail(errors.Join(failed, floorFailed))
			continue
		}
		if i >= warm {
			ours, answers, stops, floor = append(ours, took), append(answers, answer), append(stops, stop), append(floor, hand)
		}
		if i%10 == 9 {
			fmt.Fprintf(r.cfg.Progress, "vmm: %d of %d\n", i+1, r.cfg.N+warm)
		}
	}
	r.rep.times(ours)
	r.rep.PerSecond = rate(len(ours), sum(ours))
	r.rep.Floor = &Floor{
		How: "files put in place, jailer with its own control groups in the same kind of slot, wait for the socket, load and resume",
		P50: quantile(floor, 50), P99: quantile(floor, 99), PerSecond: rate(len(floor), sum(floor)),
	}
	if r.rep.Floor.P50 > 0 {
		r.rep.Ratio = round(r.rep.P50 / r.rep.Floor.P50)
	}
	r.rep.Stages["guest_goes_on"], r.rep.Stages["stop"] = quantile(answers, 50), quantile(stops, 50)
	return nil
}

// byDriver restores, sees the guest go on, and ends the machine.
func (r *vmmRig) byDriver(ctx context.Context) (took, answer, stop time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, turnTime)
	defer cancel()
	c, slot, err := r.machine(ctx)
	if err != nil {
		return 0, 0, 0, err
	}
	last := context.WithoutCancel(ctx)
	defer func() { err = errors.Join(err, r.slots.Release(last, slot)) }()
	began := time.Now()
	m, err := r.driver.Restore(ctx, c, r.snap)
	if err != nil {
		return 0, 0, 0, err
	}
	took = time.Since(began)
	err = awake(ctx, m)
	answer, began = time.Since(began)-took, time.Now()
	err = errors.Join(err, m.Stop(last))
	return took, answer, time.Since(began), err
}

func (r *vmmRig) byHand(ctx context.Context) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, turnTime)
	defer cancel()
	c, slot, err := r.machine(ctx)
	if err != nil {
		return 0, err
	}
	last := context.WithoutCancel(ctx)
	defer func() { err = errors.Join(err, r.slots.Release(last, slot)) }()
	owner := filepath.Join(r.dir, "hand")
	if err := os.MkdirAll(owner, 0o700); err != nil {
		return 0, err
	}
	uid, err := r.users.Claim(owner)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.users.Release(uid, owner)) }()
	began := time.Now()
	m, err := firecracker.RawRestore(ctx, firecracker.RawConfig{Driver: r.driver, Dir: owner, UID: uid, Config: c, Snap: r.snap})
	took = time.Since(began)
	if m != nil {
		err = errors.Join(err, m.Stop(last))
	}
	return took, err
}

// atOnce makes many clones at the same time, each of which must go on, and looks at what each has to itself.
func (r *vmmRig) atOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, crowdTime)
	defer cancel()
	n := r.cfg.Clones
	configs := make([]vmm.Config, n)
	slots := make([]*network.Slot, n)
	last := context.WithoutCancel(ctx)
	defer func() {
		for _, s := range slots {
			if s != nil {
				_ = r.slots.Release(last, s)
			}
		}
	}()
	for i := range n {
		var err error
		if configs[i], slots[i], err = r.machine(ctx); err != nil {
			return err
		}
	}
	fmt.Fprintf(r.cfg.Progress, "vmm: %d clones at once\n", n)
	machines, failed := make([]vmm.Machine, n), make([]error, n)
	var all sync.WaitGroup
	began := time.Now()
	for i := range n {
		all.Go(func() {
			m, err := r.driver.Restore(ctx, configs[i], r.snap)
			if err != nil {
				failed[i] = err
				return
			}
			machines[i] = m
			if failed[i] = awake(ctx, m); failed[i] != nil {
				return
			}
			// It has shown that it goes on. A guest without interrupts cannot wait: it would take a processor from those that come.
			failed[i] = m.Pause(ctx)
		})
	}
	all.Wait()
	took := time.Since(began)
	bad := 0
	var private []float64
	for i, m := range machines {
		if m != nil {
			mb, err := privateMB(m)
			if failed[i] = errors.Join(failed[i], err); err == nil {
				private = append(private, mb)
			}
			failed[i] = errors.Join(failed[i], m.Stop(last))
		}
		if failed[i] != nil {
			bad++
			r.rep.fail(fmt.Errorf("clone: %w", failed[i]))
		}
	}
	r.rep.Extra["clones"], r.rep.Extra["clones_failed"] = float64(n), float64(bad)
	r.rep.Extra["clones_ms"], r.rep.Extra["clones_per_second"] = ms(took), rate(n-bad, took)
	r.rep.Extra["clone_memory_mb"] = benchMemoryMB
	if len(private) > 0 {
		slices.Sort(private)
		r.rep.Extra["private_mb_per_clone"] = round(private[len(private)/2])
		r.rep.Extra["private_mb_per_clone_most"] = round(private[len(private)-1])
	}
	return nil
}

// privateMB is the memory of a machine's monitor that it shares with nobody, as smaps_rollup has it.
func privateMB(m vmm.Machine) (float64, error) {
	var state struct {
		Process struct {
			PID int `json:"pid"`
		} `json:"process"`
	}
	if err := json.Unmarshal(m.Record().State, &state); err != nil {
		return 0, err
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(state.Process.PID) + "/smaps_rollup")
	if err != nil {
		return 0, err
	}
	kb := 0.0
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		if name != "Private_Clean" && name != "Private_Dirty" {
			continue
		}
		n, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
		if err != nil {
			return 0, fmt.Errorf("read smaps: %w", err)
		}
		kb += n
	}
	return kb / 1024, nil
}
