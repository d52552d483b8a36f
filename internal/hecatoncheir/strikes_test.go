package hecatoncheir

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/typhon"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// bench counts what it is told, and answers what it is told to.
type bench struct {
	mu      sync.Mutex
	strikes []typhon.Strike
	why     string
	err     error
}

func (b *bench) strike(_ context.Context, s typhon.Strike) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return "", b.err
	}
	b.strikes = append(b.strikes, s)
	return b.why, nil
}

func (b *bench) say(why string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.why, b.err = why, err
}

func (b *bench) told() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.strikes)
}

// Strikes reach the control plane, also those from while it was away, and a sandbox goes into quarantine when it says so.
func TestStrikes(t *testing.T) {
	b := &bench{}
	r := newRig(t, func(c *Config) { c.Strikes = b.strike })
	sb := r.create()
	h, err := r.agent.find(sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	crowd := func() {
		at = at.Add(time.Minute)
		h.mu.Lock()
		h.sb.Tier = tartarus.TierUserKernel
		h.mu.Unlock()
		for range 3 {
			at = at.Add(5 * time.Second)
			r.agent.suspect(t.Context(), h, at, vmm.Usage{PIDs: h.spec.Resources.PIDs}, nil)
		}
	}
	b.say("", errors.New("away"))
	crowd()
	if b.told() != 0 {
		t.Errorf("told %d strikes to nobody", b.told())
	}
	b.say("", nil)
	crowd()
	if b.told() != 2 || h.sandbox().Phase != tartarus.Running {
		t.Errorf("%d strikes, sandbox %s", b.told(), h.sandbox().Phase)
	}
	b.say("three strikes", nil)
	crowd()
	now := h.sandbox()
	if now.Phase != tartarus.Quarantined || now.Quarantine == nil || now.Quarantine.By != byTyphon || now.Quarantine.Reason != "three strikes" {
		t.Errorf("after the last strike: %+v", now)
	}
	if s := b.strikes[0]; s.Sandbox != sb.ID || s.Tenant != sb.Tenant || s.TemplateID != sb.TemplateID || s.Kind != typhon.ProcessBomb {
		t.Errorf("strike %+v", s)
	}
}

// How a sandbox ended by itself may be a strike too.
func TestStrikesOfEnds(t *testing.T) {
	b := &bench{}
	r := newRig(t, func(c *Config) { c.Strikes = b.strike })
	h, err := r.agent.find(r.create().ID)
	if err != nil {
		t.Fatal(err)
	}
	r.agent.fell(t.Context(), h, vmm.Exit{Reason: tartarus.ReasonCrashed, Message: "a bug"})
	if b.told() != 0 {
		t.Errorf("a crash is a strike: %+v", b.strikes)
	}
	r.agent.fell(t.Context(), h, vmm.Exit{Reason: tartarus.ReasonOOM, Message: "the memory limit was reached"})
	r.agent.fell(t.Context(), h, vmm.Exit{Reason: tartarus.ReasonCrashed, Message: "killed by signal 31", Forbidden: true})
	if b.told() != 2 || b.strikes[0].Kind != typhon.MemoryBomb || b.strikes[1].Kind != typhon.Broken {
		t.Errorf("strikes %+v", b.strikes)
	}
}
