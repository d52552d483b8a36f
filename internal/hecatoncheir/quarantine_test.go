package hecatoncheir

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

func TestQuarantine(t *testing.T) {
	r := newRig(t)
	sb := r.create(func(s *tartarus.Spec) { s.Env = map[string]string{"KEY": "hunter2"}; s.Secrets.AgentToken = "hunter3" })
	q, err := r.agent.Quarantine(t.Context(), sb.ID, tartarus.Quarantine{By: "key1", Reason: "it scans ports"})
	if err != nil {
		t.Fatal(err)
	}
	if q.Phase != tartarus.Quarantined || q.Quarantine == nil || q.Quarantine.Snapshot == "" || !r.host.Machine(sb.ID).Paused() {
		t.Fatalf("it is %s, %+v", q.Phase, q.Quarantine)
	}
	r.expect(sb.ID, tartarus.Quarantined, tartarus.ReasonPolicy)
	e, err := r.agent.Evidence(t.Context(), sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	if e.Sandbox.ID != sb.ID || e.Sandbox.Env["KEY"] == "hunter2" || e.Sandbox.Secrets != (tartarus.Secrets{}) {
		t.Errorf("evidence %+v", e.Sandbox)
	}
	for what, err := range map[string]error{
		"again":          second(r.agent.Quarantine(t.Context(), sb.ID, tartarus.Quarantine{By: "key2"})),
		"pause":          second(r.agent.Pause(t.Context(), sb.ID, tartarus.PauseHow{})),
		"snapshot":       second(r.agent.Snapshot(t.Context(), sb.ID, tartarus.SnapshotHow{})),
		"network change": second(r.agent.SetNetwork(t.Context(), sb.ID, tartarus.Network{Internet: true})),
		"deadline":       second(r.agent.SetDeadline(t.Context(), sb.ID, time.Now().Add(time.Hour), false)),
	} {
		if !tartarus.Is(err, tartarus.Conflict) {
			t.Errorf("%s in quarantine: %v", what, err)
		}
	}

	// The next agent keeps it so.
	r.stop()
	r.start()
	h, err := r.agent.find(sb.ID)
	if err != nil || h.sandbox().Phase != tartarus.Quarantined || !r.host.Machine(sb.ID).Paused() {
		t.Fatalf("after a restart: %v", err)
	}
	back, err := r.agent.Release(t.Context(), sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	if back.Phase != tartarus.Running || back.Quarantine != nil || r.host.Machine(sb.ID).Paused() || !back.Deadline.After(sb.Deadline) {
		t.Errorf("released it is %s until %s, before %s", back.Phase, back.Deadline, sb.Deadline)
	}
	if _, err := r.agent.Release(t.Context(), sb.ID); !tartarus.Is(err, tartarus.Conflict) {
		t.Errorf("a second release: %v", err)
	}
	if _, err := r.agent.Evidence(t.Context(), sb.ID); err != nil {
		t.Errorf("evidence after the release: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestQuarantineDoesNotRunOutOfTime(t *testing.T) {
	r := newRig(t)
	sb := r.create()
	if _, err := r.agent.Quarantine(t.Context(), sb.ID, tartarus.Quarantine{By: "key1", Reason: "x"}); err != nil {
		t.Fatal(err)
	}
	h, err := r.agent.find(sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	r.agent.endDue(t.Context(), sb.Deadline.Add(time.Hour))
	time.Sleep(50 * time.Millisecond)
	if phase := h.sandbox().Phase; phase != tartarus.Quarantined {
		t.Errorf("it is %s", phase)
	}
	if err := r.agent.Stop(t.Context(), sb.ID, tartarus.ReasonPolicy); err != nil {
		t.Fatal(err)
	}
	r.empty(sb.ID)
	if _, err := r.agent.Evidence(t.Context(), sb.ID); err != nil {
		t.Errorf("evidence after the end: %v", err)
	}
}

// A sandbox whose snapshot fails is frozen all the same, and the evidence says what is missing.
func TestQuarantineWithoutSnapshot(t *testing.T) {
	r := newRig(t)
	sb := r.create()
	r.on("snapshot", func(context.Context) error { return errors.New("the disk is full") })
	q, err := r.agent.Quarantine(t.Context(), sb.ID, tartarus.Quarantine{By: "key1", Reason: "x"})
	if err != nil || q.Phase != tartarus.Quarantined || !r.host.Machine(sb.ID).Paused() || q.Quarantine.Snapshot != "" {
		t.Fatalf("%v, %+v", err, q)
	}
	if e, err := r.agent.Evidence(t.Context(), sb.ID); err != nil || len(e.Notes) == 0 {
		t.Errorf("notes %q, %v", e.Notes, err)
	}
}

// A paused sandbox is held as it is: nothing of it runs, whatever happens to the agent, until it is released, paused as before.
func TestQuarantineOfWhatSleeps(t *testing.T) {
	r := newRig(t)
	sb := r.create()
	if _, err := r.agent.Pause(t.Context(), sb.ID, tartarus.PauseHow{}); err != nil {
		t.Fatal(err)
	}
	var restored atomic.Int32
	r.on("restore", func(context.Context) error { restored.Add(1); return nil })
	q, err := r.agent.Quarantine(t.Context(), sb.ID, tartarus.Quarantine{By: "key1", Reason: "x"})
	if err != nil || q.Phase != tartarus.Quarantined || !q.Quarantine.Paused || q.Quarantine.Snapshot == "" || r.host.Machine(sb.ID) != nil {
		t.Fatalf("%v, it is %s, %+v", err, q.Phase, q.Quarantine)
	}
	r.expect(sb.ID, tartarus.Quarantined, tartarus.ReasonPolicy)
	refused := func() {
		t.Helper()
		for what, err := range map[string]error{
			"again":    second(r.agent.Quarantine(t.Context(), sb.ID, tartarus.Quarantine{By: "key2"})),
			"pause":    second(r.agent.Pause(t.Context(), sb.ID, tartarus.PauseHow{})),
			"snapshot": second(r.agent.Snapshot(t.Context(), sb.ID, tartarus.SnapshotHow{})),
			"resume":   r.resume(sb.Spec),
		} {
			if !tartarus.Is(err, tartarus.Conflict) {
				t.Errorf("%s in quarantine: %v", what, err)
			}
		}
	}
	refused()
	r.stop()
	r.start()
	refused()
	if e, err := r.agent.Evidence(t.Context(), sb.ID); err != nil || len(e.Notes) != 1 {
		t.Errorf("evidence %+v, %v", e, err)
	}
	back, err := r.agent.Release(t.Context(), sb.ID)
	if err != nil || back.Phase != tartarus.Paused || back.Quarantine != nil || back.Reason != "" {
		t.Fatalf("released it is %s, %+v, %v", back.Phase, back.Quarantine, err)
	}
	if n := restored.Load(); n != 0 {
		t.Errorf("it ran %d times", n)
	}
	if err := r.resume(sb.Spec); err != nil {
		t.Fatalf("it does not come back: %v", err)
	}
	r.expect(sb.ID, tartarus.Running, "")

	// Destroyed instead, nothing is left but the evidence.
	if _, err := r.agent.Pause(t.Context(), sb.ID, tartarus.PauseHow{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.agent.Quarantine(t.Context(), sb.ID, tartarus.Quarantine{By: "key1", Reason: "x"}); err != nil {
		t.Fatal(err)
	}
	if err := r.agent.Stop(t.Context(), sb.ID, tartarus.ReasonPolicy); err != nil {
		t.Fatal(err)
	}
	r.empty(sb.ID)
	if _, err := r.agent.Evidence(t.Context(), sb.ID); err != nil {
		t.Errorf("evidence after the end: %v", err)
	}
}

// resume has a sandbox brought back.
func (r *rig) resume(s tartarus.Spec) error {
	if job := r.await(r.enqueue(acheron.Resume, s, 1)); job.State != acheron.Done {
		return acheron.FromReason(job.Reason)
	}
	return nil
}

// Evidence has no credentials of the network's.
func TestEvidenceHasNoSecrets(t *testing.T) {
	shown := exhibit(tartarus.Sandbox{Spec: tartarus.Spec{
		Secrets: tartarus.Secrets{AgentToken: "hunter1"}, Env: map[string]string{"KEY": "hunter2"},
		Network: tartarus.Network{Proxy: &tartarus.EgressProxy{Address: "p:1", Password: "hunter3"}, Transforms: map[string]map[string]string{"a.example": {"X": "hunter4"}}},
	}})
	raw, err := json.Marshal(shown)
	if err != nil || strings.Contains(string(raw), "hunter") || !strings.Contains(string(raw), "a.example") {
		t.Errorf("evidence has %s, %v", raw, err)
	}
}
