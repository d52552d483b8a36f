// Package vmmtest is the conformance suite of vmm.Driver: each row is one promise of the interface, tried on real
// machines. A driver passes it whole, or says for each row it cannot do why not; after every row the host must look
// as it did before.
package vmmtest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// Factory is a driver to be tested.
type Factory struct {
	// New makes the driver on a state folder. It is called several times for the same folder, also in another
	// process: that of a test binary whose TestMain calls Manager.
	New func(dir string) (vmm.Driver, error)

	// RootFS makes the image that machines boot from. It must hold the program that BuildGuest builds, at GuestPath.
	RootFS func(t testing.TB) string

	// Exec runs argv inside the guest by other means than vmm.Execer; nil uses Execer.
	Exec func(ctx context.Context, m vmm.Machine, argv []string) (out string, code int, err error)

	// Lacks maps what the driver's guest cannot do to the reason; rows that need it are skipped, or do without what depends on it.
	Lacks map[Ability]string

	// TAP makes slots whose device is a TAP, which virtual machine monitors attach to, instead of one end of a veth pair.
	TAP bool

	// MemoryMB is what machines get; 0 is 256, which rows about memory count on.
	MemoryMB int64

	// ByNetwork says that verbs reach the guest over its network: every machine has a slot of its own then.
	ByNetwork bool

	// OwnKernel says that the guest has a kernel of its own, which kills one of its processes where memory runs out and goes on.
	OwnKernel bool

	// Patience multiplies the time that rows have, for machines that are emulated; 0 is 1.
	Patience int

	// Skips maps the names of rows that the driver cannot do to the reason.
	Skips map[string]string
}

// Ability is something that a guest can do.
type Ability string

// The abilities.
const (
	Linux   Ability = "run programs"  // a Linux guest with the program that BuildGuest builds
	Network Ability = "use a network" // an interface with the address of its slot, and what listens there
)

// Verbs that every guest understands through Factory.Exec, with or without Linux: "cat /count" tells how far it has counted, "write
// PATH TEXT" and "cat PATH" keep a text in memory or a file, "args X" repeats X, and "end" ends the machine.

// GuestPath is where an image for the suite has the guest program.
const GuestPath = "/bin/guest"

// rowTimeout bounds each row, with all the machines it makes.
const rowTimeout = time.Minute

type row struct {
	name  string
	run   func(*env)
	needs Ability // of the guest; empty for none but counting
}

// rows are the promises, simplest first.
var rows = []row{
	{"boot", boot, ""},
	{"args env hostname", argsEnvHostname, Linux},
	{"exec", execute, Linux},
	{"limit memory", limitMemory, Linux},
	{"limit disk", limitDisk, Linux},
	{"limit pids", limitPIDs, Linux},
	{"limit pids of a wild fork bomb", wildForkBomb, Linux},
	{"limit cpu", limitCPU, Linux},
	{"network", network, Network},
	{"no network", noNetwork, Network},
	{"pause and resume", pauseResume, ""},
	{"snapshot and restore", snapshotRestore, ""},
	{"restore three at once", restoreThree, ""},
	{"snapshot of a paused machine", snapshotPaused, ""},
	{"snapshot that fails", snapshotFails, ""},
	{"damaged snapshot", snapshotDamaged, ""},
	{"snapshot on another image", snapshotOtherImage, ""},
	{"disk alone", diskAlone, Linux},
	{"disk of a whole snapshot", diskOfWhole, Linux},
	{"damaged disk", diskDamaged, Linux},
	{"adopt", adopt, ""},
	{"adopt a paused machine", adoptPaused, ""},
	{"adopt refuses another process", adoptOther, ""},
	{"adopt a dead machine", adoptDead, ""},
	{"stop is idempotent", stopIdempotent, ""},
	{"ended by itself", endedByItself, ""},
	{"wait ends with its context", waitContext, ""},
	{"same id", sameID, ""},
	{"related ids", relatedIDs, ""},
	{"bad configuration", badConfiguration, ""},
	{"boot that fails", bootFails, ""},
	{"boot that is given up", bootGivenUp, ""},
	{"ten at once", tenAtOnce, ""},
	{"leftovers", leftovers, ""},
}

// Run tries every row.
func Run(t *testing.T, f Factory) {
	probe, err := f.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	name, support := probe.Name(), probe.Probe(t.Context())
	if !support.Usable {
		t.Skipf("driver %s: %s", name, support.Reason)
	}
	known := map[string]bool{}
	image := f.RootFS(t)
	warmUp(t, f, image)
	for _, r := range rows {
		known[r.name] = true
		did := "not reached"
		passed := t.Run(r.name, func(t *testing.T) {
			if why, skip := f.Skips[r.name]; skip {
				did = "skipped: " + why
				t.Skipf("%s: %s", name, why)
			}
			if why, lacks := f.Lacks[r.needs]; lacks {
				did = fmt.Sprintf("skipped: its guest cannot %s: %s", r.needs, why)
				t.Skipf("%s: %s", name, did)
			}
			did = "passed"
			ctx, cancel := context.WithTimeout(t.Context(), f.patience())
			defer cancel()
			e := &env{T: t, ctx: ctx, factory: f, dir: t.TempDir(), image: image}
			e.driver = e.open()
			before := lookAround(t, e.dir)
			t.Cleanup(e.cleanUp) // a row that fails stops at once
			r.run(e)
			e.cleanUp()
			before.compare(t, e.dir)
		})
		if !passed {
			did = "FAILED"
		}
		// One line for each promise: `make test-vm` shows them.
		t.Logf("row %-34s %s %s (%s): %s", r.name, name, support.Version, support.Tier, did)
	}
	for name := range f.Skips {
		if !known[name] {
			t.Errorf("skips a row %q that does not exist", name)
		}
	}
}

// can reports whether the driver's guest has an ability.
func (e *env) can(a Ability) bool {
	_, lacks := e.factory.Lacks[a]
	return !lacks
}

// warmUp boots a machine once: what a driver keeps for the life of the program is there before anybody looks.
func warmUp(t *testing.T, f Factory, image string) {
	t.Helper()
	e := &env{T: t, ctx: t.Context(), factory: f, dir: t.TempDir(), image: image}
	e.driver = e.open()
	e.start(e.config("warm"))
	e.cleanUp()
}

// env is what a row works with.
type env struct {
	*testing.T
	ctx     context.Context
	factory Factory
	dir     string
	image   string
	driver  vmm.Driver
	slots   map[string]*slot // by machine, where verbs go over the network
	number  int              // of the last slot that config made
	made    []vmm.Machine
	after   []func() // undoes what the row made on the host beside machines
}

// prefix keeps the machines of this test binary apart from those of any other on the same host.
var prefix = "t" + strings.ToLower(tartarus.NewTemplateID()[:6])

// open makes another driver on the row's folder, as a later process would.
func (e *env) open() vmm.Driver {
	e.Helper()
	d, err := e.factory.New(e.dir)
	if err != nil {
		e.Fatal(err)
	}
	return d
}

// patience is how long a row may take.
func (f Factory) patience() time.Duration { return time.Duration(max(f.Patience, 1)) * rowTimeout }

// config is a small machine that counts.
func (e *env) config(id string) vmm.Config {
	c := vmm.Config{
		ID: prefix + id, RootFS: e.image, Args: []string{GuestPath, "init", "one", "two"}, Hostname: "h-" + id,
		Env:       []string{"GREETING=hello"},
		Resources: tartarus.Resources{VCPU: 1, MemoryMB: cmp.Or(e.factory.MemoryMB, 256), DiskMB: 64, PIDs: 64},
	}
	if s := e.slots[c.ID]; s != nil { // a machine that was, or is
		c.Interface = s.guest
	} else if e.factory.ByNetwork {
		e.number++
		e.attach(&c, e.newSlot(ownSlots+e.number))
	}
	return c
}

// ownSlots is where the numbers of slots begin that config makes; rows that make some themselves take lower ones.
const ownSlots = 30

// attach gives a machine that is to be made a slot.
func (e *env) attach(c *vmm.Config, s *slot) {
	c.Interface = s.guest
	if e.slots == nil {
		e.slots = map[string]*slot{}
	}
	e.slots[c.ID] = s
}

// start boots a machine that the row's end stops.
func (e *env) start(c vmm.Config) vmm.Machine {
	e.Helper()
	m, err := e.driver.Boot(e.ctx, c)
	if err != nil {
		e.Fatal(err)
	}
	e.keep(m)
	return m
}

func (e *env) keep(m vmm.Machine) { e.made = append(e.made, m) }

// cleanUp ends a row. It has time of its own: the row's may be up.
func (e *env) cleanUp() {
	ctx, cancel := context.WithTimeout(context.Background(), e.factory.patience())
	defer cancel()
	for _, m := range e.made {
		if err := m.Stop(ctx); err != nil {
			e.Error(err)
		}
	}
	for _, f := range e.after {
		f()
	}
	e.made, e.after = nil, nil
}

// try runs a verb of the guest program.
func (e *env) try(m vmm.Machine, verb ...string) (string, int, error) {
	argv := append([]string{GuestPath}, verb...)
	if e.factory.Exec != nil {
		return e.factory.Exec(e.ctx, m, argv)
	}
	if e.factory.ByNetwork {
		s := e.slots[m.Record().ID]
		if s == nil {
			e.Fatal("machine has no slot")
		}
		return dialVerb(e.ctx, m, s.host, s.guest.Address.Addr(), argv)
	}
	x, ok := m.(vmm.Execer)
	if !ok {
		e.Fatal("machine cannot execute and the factory has no Exec: skip this row with a reason")
	}
	var out bytes.Buffer
	code, err := x.Exec(e.ctx, argv, &out)
	return strings.TrimSpace(out.String()), code, err
}

// do runs a verb that must succeed.
func (e *env) do(m vmm.Machine, verb ...string) string {
	e.Helper()
	out, code, err := e.try(m, verb...)
	if err != nil || code != 0 {
		e.Fatalf("%v: %s, code %d, error %v", verb, out, code, err)
	}
	return out
}

// count reads how far the guest has counted. It waits for the first number.
func (e *env) count(m vmm.Machine) int {
	e.Helper()
	for {
		out, _, err := e.try(m, "cat", "/count")
		if n, nerr := strconv.Atoi(out); err == nil && nerr == nil && n > 0 {
			return n
		}
		if err != nil && !tartarus.Is(err, tartarus.NotFound) {
			e.Fatal(err)
		}
		e.pause(2 * time.Millisecond)
	}
}

// counts makes sure that the guest counts beyond n.
func (e *env) counts(m vmm.Machine, n int) {
	e.Helper()
	for e.count(m) <= n {
		e.pause(2 * time.Millisecond)
	}
}

// alive makes sure that the machine has not ended, and that its guest counts where it can be asked.
func (e *env) alive(m vmm.Machine) {
	e.Helper()
	if _, ok := m.(vmm.Execer); ok || e.factory.Exec != nil || e.factory.ByNetwork {
		e.counts(m, e.count(m))
	}
	ctx, cancel := context.WithTimeout(e.ctx, time.Millisecond)
	defer cancel()
	if x, err := m.Wait(ctx); err == nil {
		e.Errorf("the machine has ended: %+v", x)
	}
}

// pause waits between two looks at something, until the row's time is up.
func (e *env) pause(d time.Duration) {
	e.Helper()
	select {
	case <-e.ctx.Done():
		e.Fatal("time is up")
	case <-time.After(d):
	}
}

// ends waits for the end of m.
func (e *env) ends(m vmm.Machine) vmm.Exit {
	e.Helper()
	x, err := m.Wait(e.ctx)
	if err != nil {
		e.Fatal(err)
	}
	return x
}

// folder makes an empty folder for a snapshot.
func (e *env) folder(name string) string {
	e.Helper()
	dir := filepath.Join(e.TempDir(), name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		e.Fatal(err)
	}
	return dir
}

// is checks an error's kind.
func (e *env) is(err error, kind tartarus.Kind) {
	e.Helper()
	if err == nil || kindOf(err) != kind {
		e.Errorf("error is %v (kind %s), want kind %s", err, kindOf(err), kind)
	}
}

func kindOf(err error) tartarus.Kind {
	if err == nil {
		return ""
	}
	return tartarus.KindOf(err)
}

func (e *env) equal(what string, got, want any) {
	e.Helper()
	if got != want {
		e.Errorf("%s is %v, want %v", what, got, want)
	}
}
