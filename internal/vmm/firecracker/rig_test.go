package firecracker_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/firecracker"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/payload"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/vmmtest"
)

// rig is a driver in a test, whose machines end with it.
type rig struct {
	*testing.T
	ctx    context.Context
	dir    string
	image  string
	change func(*firecracker.Config)
	driver *firecracker.Driver
	made   []vmm.Machine
}

func newRig(t *testing.T, change func(*firecracker.Config)) *rig {
	t.Helper()
	need(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	r := &rig{T: t, ctx: ctx, dir: t.TempDir(), image: vmmtest.Image(t), change: change}
	r.driver = r.open()
	if s := r.driver.Probe(ctx); !s.Usable {
		t.Skipf("driver %s: %s", r.driver.Name(), s.Reason)
	}
	t.Cleanup(func() {
		for _, m := range r.made {
			if err := m.Stop(context.WithoutCancel(ctx)); err != nil {
				t.Error(err)
			}
		}
	})
	return r
}

// open makes another driver on the rig's folder, as a later process would.
func (r *rig) open() *firecracker.Driver {
	r.Helper()
	c, err := config(r.dir)
	if err != nil {
		r.Fatal(err)
	}
	if r.change != nil {
		r.change(&c)
	}
	d, err := firecracker.New(c)
	if err != nil {
		r.Fatal(err)
	}
	return d
}

var prefix = strconv.FormatInt(time.Now().UnixNano()%46656, 36)

func (r *rig) config(id string) vmm.Config {
	c := vmm.Config{ID: "r" + prefix + id, RootFS: r.image}
	c.Resources.MemoryMB, c.Resources.DiskMB, c.Resources.VCPU = payload.MinMemoryMB, 16, 1
	return c
}

func (r *rig) keep(m vmm.Machine) vmm.Machine {
	r.made = append(r.made, m)
	return m
}

func (r *rig) boot(id string) vmm.Machine {
	r.Helper()
	m, err := r.driver.Boot(r.ctx, r.config(id))
	if err != nil {
		r.Fatal(err)
	}
	r.keep(m)
	r.count(m)
	return m
}

func (r *rig) restore(id, snap string) vmm.Machine {
	r.Helper()
	m, err := r.driver.Restore(r.ctx, r.config(id), snap)
	if err != nil {
		r.Fatal(err)
	}
	return r.keep(m)
}

func (r *rig) snapshot(m vmm.Machine) string {
	r.Helper()
	dir := r.TempDir()
	if err := m.Snapshot(r.ctx, dir); err != nil {
		r.Fatal(err)
	}
	return dir
}

func (r *rig) stop(m vmm.Machine) {
	r.Helper()
	if err := m.Stop(r.ctx); err != nil {
		r.Fatal(err)
	}
}

// elsewhereEnv tells a process of this test binary what it shall restore.
const elsewhereEnv = "TARTARUS_TEST_RESTORE"

type elsewhere struct {
	Dir, Snap string
	Config    vmm.Config
}

// restoreElsewhere has another process restore a machine with a page-fault handler, and kills it.
func (r *rig) restoreElsewhere(id, snap string) (record vmm.Record) {
	r.Helper()
	what, err := json.Marshal(elsewhere{Dir: r.dir, Snap: snap, Config: r.config(id)})
	if err != nil {
		r.Fatal(err)
	}
	cmd := exec.CommandContext(r.ctx, "/proc/self/exe")
	cmd.Env, cmd.Stderr = append(os.Environ(), elsewhereEnv+"="+string(what)), os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		err = json.NewDecoder(out).Decode(&record)
	}
	if err != nil {
		r.Fatal(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return record
}

// beElsewhere is that other process, which does not return; it returns at once in any other.
func beElsewhere() {
	var e elsewhere
	if what := os.Getenv(elsewhereEnv); what == "" {
		return
	} else if err := json.Unmarshal([]byte(what), &e); err != nil {
		panic(err)
	}
	c, err := config(e.Dir)
	if err != nil {
		panic(err)
	}
	c.PageFaults.Handler = true
	d, err := firecracker.New(c)
	if err != nil {
		panic(err)
	}
	m, err := d.Restore(context.Background(), e.Config, e.Snap)
	if err != nil {
		panic(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(m.Record()); err != nil {
		panic(err)
	}
	select {} // until killed
}

func (r *rig) ask(m vmm.Machine, line string) string {
	r.Helper()
	c, err := console(m)
	if err != nil {
		r.Fatal(err)
	}
	s, err := payload.Ask(r.ctx, c, line)
	if err != nil {
		r.Fatal(err)
	}
	return s
}

func (r *rig) do(m vmm.Machine, line string) {
	r.Helper()
	r.equal(r.ask(m, line), "ok")
}

// count waits until the guest counts.
func (r *rig) count(m vmm.Machine) int {
	r.Helper()
	for {
		if n, err := strconv.Atoi(r.ask(m, "c")); err == nil && n > 0 {
			return n
		}
	}
}

// counts makes sure that the guest goes on.
func (r *rig) counts(m vmm.Machine) {
	r.Helper()
	for n := r.count(m); r.count(m) <= n; {
	}
}

func (r *rig) equal(got, want string) {
	r.Helper()
	if got != want {
		r.Errorf("got %q, want %q", got, want)
	}
}

func (r *rig) eventually(what string, f func() bool) {
	r.Helper()
	for !f() {
		select {
		case <-r.ctx.Done():
			r.Fatalf("%s: time is up", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// recorded is what tests look at in a machine's record.
type recorded struct {
	Process process.Identity  `json:"process"`
	UID     int               `json:"uid"`
	Pages   *process.Identity `json:"pages"`
}

func stateOf(t *testing.T, m vmm.Machine) (s recorded) {
	t.Helper()
	if err := json.Unmarshal(m.Record().State, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func monitorOf(t *testing.T, m vmm.Machine) string {
	return strconv.Itoa(stateOf(t, m).Process.PID)
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// field is a line of /proc/PID/status.
func field(status, name string) string {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(rest)
		}
	}
	return "absent"
}
