package hecatoncheir

import (
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// TestBlindSamples holds that the first reading of a machine, after its start or a resume, is nothing to call a sandbox idle by.
func TestBlindSamples(t *testing.T) {
	var s samples
	at := time.Unix(1000, 0)
	type machine struct{ vmm.Machine }
	one, two := &machine{}, &machine{}
	for i, r := range []struct {
		m   *machine
		cpu time.Duration
	}{{one, time.Second}, {one, 6 * time.Second}, {two, 7 * time.Second}, {two, 12 * time.Second}} {
		s.add(at.Add(time.Duration(i)*5*time.Second), r.m, vmm.Usage{CPU: r.cpu}, tartarus.Resources{VCPU: 1})
	}
	if got := s.between(time.Time{}, time.Time{}); len(got) != 4 || got[0].CPUPercent != 0 || got[1].CPUPercent != 100 || got[2].CPUPercent != 0 {
		t.Errorf("all: %+v", got)
	}
	got := s.telling(time.Time{}, time.Time{})
	if len(got) != 2 || got[0].CPUPercent != 100 || got[1].CPUPercent != 100 {
		t.Errorf("telling: %+v", got)
	}
}
