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

// Grace decides how long a guest has. said is what the first said of those who may: the request, the sandbox (which policies amend), the
// template. When none did, an end that somebody waits for is at once, and any other takes the node's time for those.
func (l Limits) Grace(reason tartarus.Reason, said *time.Duration) time.Duration {
	var d time.Duration
	switch {
	case said != nil:
		d = *said
	case reason == tartarus.ReasonTimeout, reason == tartarus.ReasonDrained:
		d = l.Unattended
	}
	return min(max(0, d), l.Max)
}
