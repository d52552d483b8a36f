package kvm

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDecide(t *testing.T) {
	for name, tc := range map[string]struct {
		in     Verdict
		usable bool
		reason string // a part of it
	}{
		"hardware":          {Verdict{Ran: true, OrdinaryNS: 0.4, PrivilegedNS: 210, Slowest: "mov to cr3"}, true, "210 ns"},
		"slow hardware":     {Verdict{Ran: true, OrdinaryNS: 10, PrivilegedNS: 900, Slowest: "cli"}, true, "hardware speed"},
		"emulated":          {Verdict{Ran: true, OrdinaryNS: 1050, PrivilegedNS: 1100, Slowest: "cli"}, false, "1050 ns a turn"},
		"trapped":           {Verdict{Ran: true, OrdinaryNS: 0.4, PrivilegedNS: 20_000, Slowest: "mov to cr3"}, false, "mov to cr3 takes 20000 ns"},
		"fast but broken":   {Verdict{Ran: true, OrdinaryNS: 0.4, PrivilegedNS: 200, Broken: []string{"int3 (not emulated)"}}, false, "crash on int3"},
		"nothing was tried": {Verdict{Reason: "open: permission denied"}, false, "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			v := tc.in
			v.decide()
			if v.Usable != tc.usable || !strings.Contains(v.Reason, tc.reason) {
				t.Fatalf("usable %v, reason %q; want %v and %q", v.Usable, v.Reason, tc.usable, tc.reason)
			}
		})
	}
}

func TestAbsentDevice(t *testing.T) {
	v := judgeDevice(t.Context(), filepath.Join(t.TempDir(), "kvm"))
	if v.Present || v.Openable || v.Usable || !strings.Contains(v.Reason, "does not exist") {
		t.Fatalf("%+v", v)
	}
}

func TestOtherDevice(t *testing.T) {
	v := judgeDevice(t.Context(), "/dev/null")
	if !v.Present || v.Usable || v.Reason == "" {
		t.Fatalf("%+v", v)
	}
}

// TestJudgeHere holds on any host: whatever the device is, the verdict is consistent, has its reason, and comes in time.
func TestJudgeHere(t *testing.T) {
	v := Judge(t.Context())
	t.Logf("%+v", v)
	if v.Reason == "" {
		t.Error("no reason")
	}
	if v.Took > 1500*time.Millisecond { // a loaded host may add something to the limit
		t.Errorf("took %s", v.Took)
	}
	if v.Usable && (!v.Openable || !v.Ran || v.OrdinaryNS <= 0 || v.PrivilegedNS <= 0 || len(v.Broken) > 0) {
		t.Error("usable without proof")
	}
	if v.Module == "kvm_pvm" && v.Usable {
		t.Error("a software stand-in was called usable")
	}
}

func TestEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if v := Judge(ctx); v.Usable || v.Reason == "" {
		t.Fatalf("%+v", v)
	}
}
