package judges

import "github.com/tartarus-sandbox/tartarus/internal/themis"

// Ender says what policies want of ends; themis.Engine does.
type Ender interface {
	Ends(in *themis.Input) themis.Ends
}

// Ends writes into a sandbox how policies want it to end. Whoever ends it later cannot take that back.
type Ends struct{ policies Policies }

// Name is ends.
func (*Ends) Name() string { return "ends" }

// Amend implements Amender.
func (e *Ends) Amend(r *Request) {
	ender, ok := e.policies.(Ender)
	if !ok || r.Action != Create {
		return
	}
	said, life := ender.Ends(facts(*r)), &r.Spec.Lifecycle
	if life.Grace == nil && said.Grace != nil {
		grace := *said.Grace
		life.Grace = &grace
	}
	if said.MaxGrace != nil {
		longest := *said.MaxGrace
		life.MaxGrace = &longest
	}
	life.Checkpoint, life.ExportLogs = life.Checkpoint || said.Checkpoint, life.ExportLogs || said.Logs
}
