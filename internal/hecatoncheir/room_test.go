package hecatoncheir

import (
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

func sized(vcpu int, memory int64) func(*tartarus.Spec) {
	return func(s *tartarus.Spec) {
		s.Resources = tartarus.Resources{VCPU: vcpu, MemoryMB: memory, DiskMB: 64, PIDs: 64}
	}
}

// A node takes nothing over what it may hand out, says so at once and in a way that lets it go elsewhere, and has what went back.
func TestNodeRefusesOverItsCapacity(t *testing.T) {
	capacity := tartarus.Resources{VCPU: 4, MemoryMB: 1024}
	r := newRig(t, func(c *Config) { c.Capacity, c.MaxLive = capacity, 3 })
	refused := func(what string, change func(*tartarus.Spec)) {
		t.Helper()
		job := r.await(r.enqueue(acheron.Create, r.spec(change), 3))
		why := acheron.FromReason(job.Reason)
		if job.State != acheron.Dead || job.Attempt != 1 || why.Kind != tartarus.Unavailable || why.Code != hades.CodeNoRoom {
			t.Fatalf("%s: job is %s after %d attempts: %s", what, job.State, job.Attempt, job.Reason)
		}
		if n := r.agent.Node(); n.Allocated.VCPU > capacity.VCPU || n.Allocated.MemoryMB > capacity.MemoryMB {
			t.Fatalf("%s: the node hands out %+v", what, n.Allocated)
		}
	}
	first := r.create(sized(3, 256))
	refused("processors", sized(2, 128))
	refused("memory", sized(1, 800))
	second := r.create(sized(1, 700)) // what fits goes past those that do not
	if got := r.agent.Node(); got.Allocated.VCPU != 4 || got.Allocated.MemoryMB != 956 || got.Sandboxes != 2 {
		t.Fatalf("node says %+v", got.Allocated)
	}

	// What is paused keeps its part, so that it can come back; and so it is after a restart, even under less capacity.
	if _, err := r.agent.Pause(t.Context(), second.ID, tartarus.PauseHow{}); err != nil {
		t.Fatal(err)
	}
	refused("beside a paused one", sized(1, 64))
	r.stop()
	r.change = append(r.change, func(c *Config) { c.Capacity.VCPU = 2 })
	r.start()
	if got := r.agent.Node(); got.Allocated.VCPU != 4 || got.Sandboxes != 2 {
		t.Fatalf("adopted under less capacity: %+v", got.Allocated)
	}
	capacity.VCPU = 4 // it holds more than it may by now, and takes nothing until that is over
	refused("over", sized(1, 64))
	for _, id := range []string{first.ID, second.ID} {
		if err := r.agent.Stop(t.Context(), id, tartarus.ReasonUser); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.agent.Node(); got.Allocated != (tartarus.Resources{}) || got.Sandboxes != 0 {
		t.Fatalf("empty, and it says %+v", got.Allocated)
	}
	r.create(sized(2, 1024))
}

// A full node leaves its queue alone until a sandbox goes, and tries what waits there now and then.
func TestFullNodeLeavesItsQueue(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxLive = 1 })
	only := r.create()
	began := time.Now()
	for range 3 {
		if job := r.await(r.enqueue(acheron.Create, r.spec(), 3)); job.State != acheron.Dead {
			t.Fatalf("job is %s", job.State)
		}
	}
	// The first is refused at once, and the second where the node had asked for work already; the third after a pause.
	if took := time.Since(began); took < tryFull-tryFull/10 {
		t.Errorf("three jobs were tried within %s", took)
	}
	if err := r.agent.Stop(t.Context(), only.ID, tartarus.ReasonUser); err != nil {
		t.Fatal(err)
	}
	r.create()
}
