package tartarus

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestEveryEdgeAndNonEdge walks the whole square of phases: the edges as drawn in the comment of Phase work, and no
// other change does.
func TestEveryEdgeAndNonEdge(t *testing.T) {
	drawn := map[string]bool{}
	for _, edge := range strings.Fields(`
		queued>starting queued>rejected queued>stopping queued>failed
		starting>running starting>paused starting>stopping starting>failed
		running>pausing running>snapshotting running>quarantined running>stopping running>failed
		pausing>paused pausing>running pausing>stopping pausing>failed
		paused>starting paused>quarantined paused>stopping paused>failed
		snapshotting>running snapshotting>stopping snapshotting>failed
		quarantined>running quarantined>paused quarantined>stopping quarantined>failed
		stopping>stopped stopping>failed`) {
		drawn[edge] = true
	}
	for _, from := range Phases {
		for _, to := range Phases {
			sb := Sandbox{Phase: from, Reason: "before"}
			err := sb.Transition(to, ReasonUser, "after")
			if drawn[fmt.Sprintf("%s>%s", from, to)] {
				if err != nil || sb.Phase != to || sb.Reason != ReasonUser || sb.Message != "after" {
					t.Errorf("%s to %s: got %v, phase %s, reason %s", from, to, err, sb.Phase, sb.Reason)
				}
				continue
			}
			if !Is(err, Conflict) || sb.Phase != from || sb.Reason != "before" {
				t.Errorf("%s to %s must be refused and change nothing: got %v, phase %s", from, to, err, sb.Phase)
			}
		}
		if from.Ended() && len(edges[from]) > 0 {
			t.Errorf("%s has ended and still has edges", from)
		}
		if from.Ended() && from.Live() {
			t.Errorf("%s cannot be ended and live", from)
		}
	}
}

func TestIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := NewID()
		if !ValidID(id) || len(id) != 21 || seen[id] {
			t.Fatalf("bad or repeated id %q", id)
		}
		seen[id] = true
	}
	for _, bad := range []string{"", "A", "a-b", "../x", "a/b", "a.b", "ä", strings.Repeat("a", 33), "a\x00"} {
		if ValidID(bad) {
			t.Errorf("%q must not be an id", bad)
		}
	}
}

func TestTierOrder(t *testing.T) {
	order := []Tier{TierNone, TierUserKernel, TierEmulated, TierHardware}
	for i, have := range order {
		for j, want := range order {
			if got := have.AtLeast(want); got != (i >= j) {
				t.Errorf("%s at least %s: got %v", have, want, got)
			}
		}
	}
	if Tier("magic").AtLeast(TierNone) || TierHardware.AtLeast("magic") {
		t.Error("an unknown tier satisfies nothing and is satisfied by nothing")
	}
}

func TestErrorKinds(t *testing.T) {
	cause := errors.New("cause")
	err := fmt.Errorf("outer: %w", Errorf(NotFound, "sandbox %s: %w", "x", cause))
	if KindOf(err) != NotFound || !errors.Is(err, cause) || err.Error() != "outer: sandbox x: cause" {
		t.Errorf("kind %s, text %q, is cause %v", KindOf(err), err, errors.Is(err, cause))
	}
	if KindOf(cause) != Internal || Is(nil, Internal) || !Is(cause, Internal) {
		t.Error("errors without a kind are internal, and nil is no error")
	}
	if Kind("nonsense").Known() {
		t.Error("nonsense is no kind")
	}
}

func TestSecretsStayOut(t *testing.T) {
	s := Secrets{AgentToken: "canary", TrafficToken: "canary"}
	for _, text := range []string{fmt.Sprint(s), fmt.Sprintf("%v", Spec{Secrets: s}), fmt.Sprintf("%+v", s)} {
		if strings.Contains(text, "canary") {
			t.Errorf("a secret was printed: %s", text)
		}
	}
}
