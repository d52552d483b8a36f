package judges

import (
	"testing"

	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

// heater is policies that rule out nothing and say this of heat.
type heater struct {
	Policies
	said themis.Heat
}

func (h heater) Heat(*themis.Input) themis.Heat { return h.said }

func TestPoliciesBoundHints(t *testing.T) {
	said := themis.Heat{Hottest: "warm"}
	for action, want := range map[Action]themis.Heat{Create: said, Network: {}, Resume: {}} {
		r := Request{Action: action}
		(&Heat{heater{said: said}}).Amend(&r)
		if r.Heat != want {
			t.Errorf("%s: %+v", action, r.Heat)
		}
	}
	r := Request{Action: Create}
	(&Heat{}).Amend(&r)
	if r.Heat != (themis.Heat{}) {
		t.Errorf("without policies: %+v", r.Heat)
	}
}
