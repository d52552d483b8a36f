package thanatos

import (
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Limits are a node's bounds of graces.
type Limits struct {
	Unattended time.Duration // where nobody said anything and nobody waits: a timeout, a drain
	Max        time.Duration // no grace is longer, whoever asks
}

// Grace decides how long a guest has. The first of those who say something counts: the request, the sandbox (where policies amend it), the template. When
// none does, an end that somebody waits for is at once, and any other takes the node's time for those.
func (l Limits) Grace(reason tartarus.Reason, said ...*time.Duration) time.Duration {
	var d time.Duration
	if reason == tartarus.ReasonTimeout || reason == tartarus.ReasonDrained {
		d = l.Unattended
	}
	for _, s := range said {
		if s != nil {
			d = *s
			break
		}
	}
	return min(max(0, d), l.Max)
}
