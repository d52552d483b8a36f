package judges

import "github.com/tartarus-sandbox/tartarus/internal/themis"

// Heater says what policies let callers say of heat; themis.Engine does.
type Heater interface {
	Heat(in *themis.Input) themis.Heat
}

// Heat notes how far a caller's hint may move the heat of a sandbox.
type Heat struct{ policies Policies }

// Name is heat.
func (*Heat) Name() string { return "heat" }

// Amend implements Amender.
func (h *Heat) Amend(r *Request) {
	if heater, ok := h.policies.(Heater); ok && r.Action == Create {
		r.Heat = heater.Heat(facts(*r))
	}
}
