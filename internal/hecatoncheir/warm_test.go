package hecatoncheir

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// builds is a template that can be built again.
type builds struct {
	mu  sync.Mutex
	now string
}

func (b *builds) Template(_ context.Context, id, build string) (Template, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if build != "" && build != b.now {
		return Template{}, tartarus.Errorf(tartarus.NotFound, "build %s is gone", build)
	}
	return Template{ID: id, Build: b.now, RootFS: "/dev/null"}, nil
}

func warmed(c *Config) {
	c.Prepare, c.Warm = true, Warm{Memory: 1 << 30, Keep: 2, Most: 8}
}

// born is the sandbox that a create made.
func (r *rig) born(s tartarus.Spec) tartarus.Sandbox {
	r.t.Helper()
	job := r.await(r.enqueue(acheron.Create, s, 1))
	var sb tartarus.Sandbox
	if err := json.Unmarshal(job.Result, &sb); err != nil || job.State != acheron.Done {
		r.t.Fatalf("create ended %s: %s, %v", job.State, job.Reason, err)
	}
	return sb
}

func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("not %s in 20 s", what)
		}
	}
}

func TestSandboxesAreClaimed(t *testing.T) {
	r := newRig(t, warmed)
	r.born(r.spec())
	r.until("two warm", func() bool { return r.agent.WarmReady() == 2 })
	sb := r.born(r.spec())
	// One write ends the claim, and with it the wait of whoever asked; it is counted right after.
	r.until("claimed", func() bool { claimed, _, _ := r.agent.Origins(); return claimed == 1 })
	if claimed, restored, booted := r.agent.Origins(); claimed != 1 || restored != 0 || booted != 1 {
		t.Fatalf("%d claimed, %d restored, %d booted", claimed, restored, booted)
	}
	h, err := r.agent.find(sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	machine := r.host.Machine(h.machineID)
	if h.machineID == sb.ID || machine == nil {
		t.Fatalf("it runs on machine %q", h.machineID)
	}
	if left, err := r.agent.Leftovers(t.Context(), false); err != nil || len(left) > 0 {
		t.Fatalf("warm machines count as leftovers: %v, %v", left, err)
	}

	// The next agent adopts it under the machine's own name and sweeps the warm ones.
	r.stop()
	r.start()
	h, err = r.agent.find(sb.ID)
	if err != nil || h.sandbox().Phase != tartarus.Running {
		t.Fatalf("not adopted: %v", err)
	}
	if left, err := r.agent.Leftovers(t.Context(), false); err != nil || len(left) > 0 {
		t.Fatalf("leftovers %v, %v", left, err)
	}
	if err := r.agent.Stop(t.Context(), sb.ID, tartarus.ReasonUser); err != nil {
		t.Fatal(err)
	}
	r.empty(sb.ID)
	if r.host.Machine(h.machineID) != nil {
		t.Error("its machine is still there")
	}
}

func TestWarmMachinesEndWithTheAgent(t *testing.T) {
	r := newRig(t, warmed)
	sb := r.born(r.spec())
	r.until("two warm", func() bool { return r.agent.WarmReady() == 2 })
	r.stop()
	if n := r.host.Len(); n != 1 || r.host.Machine(sb.ID) == nil {
		t.Fatalf("%d machines are left", n)
	}
	r.start()
	r.until("two warm again, of the kind that was in use", func() bool { return r.agent.WarmReady() == 2 })
}

func TestDeadWarmMachineIsPassedOver(t *testing.T) {
	r := newRig(t, warmed)
	r.born(r.spec())
	r.until("two warm", func() bool { return r.agent.WarmReady() == 2 })
	p := r.agent.warm.All()[0]
	r.host.Machine(p.id).End(tartarus.ReasonCrashed, "of itself")
	r.until("replaced", func() bool {
		all := r.agent.warm.All()
		return len(all) == 2 && all[0] != p && all[1] != p
	})
	if r.host.Machine(p.id) != nil {
		t.Error("the dead one is still on the host")
	}
}

func TestRestoredWithoutPool(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Prepare = true })
	s := r.spec()
	r.born(s)
	h, err := r.agent.find(s.ID)
	if err != nil {
		t.Fatal(err)
	}
	kind := kindOf(h.spec, Template{ID: "tmpl"}, "fake")
	r.until("prepared", func() bool { _, ok := r.agent.prepared(kind); return ok })
	r.born(r.spec())
	if _, restored, booted := r.agent.Origins(); restored != 1 || booted != 1 {
		t.Fatalf("%d restored, %d booted", restored, booted)
	}

	// One that is damaged is thrown away, and the sandbox is booted instead.
	dir, _ := r.agent.prepared(kind)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		t.Fatalf("nothing is prepared: %v", err)
	}
	for _, e := range entries {
		if err := os.WriteFile(filepath.Join(dir, e.Name()), []byte("rubbish"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.born(r.spec())
	if _, restored, booted := r.agent.Origins(); restored != 1 || booted != 2 {
		t.Fatalf("after damage: %d restored, %d booted", restored, booted)
	}
	r.until("prepared again", func() bool { _, ok := r.agent.prepared(kind); return ok })
	if r.host.Len() != 3 {
		t.Errorf("%d machines, 3 sandboxes", r.host.Len())
	}
}

func TestWarmMachinesOfAReplacedTemplateGo(t *testing.T) {
	b := &builds{now: "one"}
	r := newRig(t, warmed, func(c *Config) { c.Templates = b })
	r.born(r.spec(func(s *tartarus.Spec) { s.BuildID = "one" }))
	r.until("two warm", func() bool { return r.agent.WarmReady() == 2 })
	b.mu.Lock()
	b.now = "two"
	b.mu.Unlock()
	r.until("drained", func() bool { return r.agent.WarmReady() == 0 && r.host.Len() == 1 })
	r.born(r.spec(func(s *tartarus.Spec) { s.BuildID = "two" }))
	if claimed, _, booted := r.agent.Origins(); claimed != 0 || booted != 2 {
		t.Fatalf("%d claimed, %d booted", claimed, booted)
	}
}

// An agent that stops while a template is being prepared leaves nothing of the machine that it was prepared on.
func TestStopWhilePreparing(t *testing.T) {
	r := newRig(t, warmed)
	under := make(chan struct{})
	var once sync.Once
	r.on("snapshot", func(ctx context.Context) error {
		once.Do(func() { close(under) })
		<-ctx.Done()
		return ctx.Err()
	})
	r.born(r.spec())
	select {
	case <-under:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing is prepared")
	}
	r.stop()
	if n := r.host.Len(); n != 1 {
		t.Errorf("%d machines are left, of one sandbox", n)
	}
}
