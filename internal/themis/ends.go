package themis

import (
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Ends is what a policy says of how sandboxes end.
type Ends struct {
	// Grace is how long one has to end in good order, where its create says nothing; it counts before what its template says.
	Grace *time.Duration `yaml:"grace,omitempty" json:"grace,omitempty"`
	// MaxGrace is the longest that it may have, whoever asks.
	MaxGrace *time.Duration `yaml:"maxGrace,omitempty" json:"maxGrace,omitempty"`
	// Checkpoint and Logs are kept before it is killed, whoever ends it.
	Checkpoint bool `yaml:"checkpoint,omitempty" json:"checkpoint,omitempty"`
	Logs       bool `yaml:"logs,omitempty" json:"logs,omitempty"`
}

// longestGrace is more than any node gives.
const longestGrace = 24 * time.Hour

func (e *Ends) validate() error {
	if e == nil {
		return nil
	}
	for name, d := range map[string]*time.Duration{"grace": e.Grace, "maxGrace": e.MaxGrace} {
		if d != nil && (*d < 0 || *d > longestGrace) {
			return tartarus.Errorf(tartarus.Invalid, "ends: %s %s must be between 0s and %s", name, *d, longestGrace)
		}
	}
	if e.Grace != nil && e.MaxGrace != nil && *e.Grace > *e.MaxGrace {
		return tartarus.Errorf(tartarus.Invalid, "ends: grace %s is over maxGrace %s", *e.Grace, *e.MaxGrace)
	}
	return nil
}

// Ends is what the policies about a request say together: the grace of the narrowest one that names any, the least of the bounds, and all that is to be kept.
func (e *Engine) Ends(in *Input) (out Ends) {
	s := e.now.Load()
	if s == nil {
		return out // nothing is let in while no policies are known
	}
	for _, c := range s.about(in) { // the widest first
		p := c.Policy.Ends
		if p == nil {
			continue
		}
		if p.Grace != nil {
			out.Grace = p.Grace
		}
		if p.MaxGrace != nil && (out.MaxGrace == nil || *p.MaxGrace < *out.MaxGrace) {
			out.MaxGrace = p.MaxGrace
		}
		out.Checkpoint, out.Logs = out.Checkpoint || p.Checkpoint, out.Logs || p.Logs
	}
	return out
}
