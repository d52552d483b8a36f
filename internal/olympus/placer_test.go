package olympus

import (
	"context"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/phlegethon"
)

// silent is a registry whose one node never speaks of what it was given.
type silent struct {
	hades.Registry
	now time.Time
}

func (s silent) Nodes(context.Context) ([]hades.Node, error) {
	return []hades.Node{{
		Name: "one", LeaseEnds: s.now.Add(time.Hour), Capacity: tartarus.Resources{VCPU: 4},
		Runtimes: map[string]hades.Runtime{"fake": {Tier: tartarus.TierNone}},
	}}, nil
}

// What was placed counts until its node can have spoken of it, however often the list of nodes is read in between.
func TestPlacementsAreRememberedUntilHeard(t *testing.T) {
	start := time.Now()
	p := newPlacer(hades.NewRoster(silent{now: start}))
	want := phlegethon.Want{Resources: tartarus.Resources{VCPU: 1}}
	full := func(at time.Duration) bool {
		t.Helper()
		got, err := p.place(t.Context(), want, start.Add(at))
		if err != nil {
			t.Fatal(err)
		}
		return got.Full
	}
	for i := range 4 {
		if full(time.Duration(i) * 1100 * time.Millisecond) {
			t.Fatalf("no room for sandbox %d of 4", i+1)
		}
	}
	if !full(4400 * time.Millisecond) {
		t.Error("a fifth has room beside four")
	}
	if full(4400*time.Millisecond + unheard + time.Second) {
		t.Error("what the node has not confirmed for so long still counts")
	}
}
