package acheron

import (
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// MaxBytes is the most a job's Payload or Result may hold: what is larger belongs in a file that the job names.
const MaxBytes = 1 << 20

// Validate reports what keeps a queue from taking j.
func (j Job) Validate() error {
	switch {
	case j.ID == "" || j.Tenant == "" || j.Node == "":
		return tartarus.Errorf(tartarus.Invalid, "job %q needs an id, a tenant and a node", j.ID)
	case j.MaxAttempts < 1:
		return tartarus.Errorf(tartarus.Invalid, "job %s needs at least one attempt, not %d", j.ID, j.MaxAttempts)
	case len(j.Payload) > MaxBytes:
		return tartarus.Errorf(tartarus.TooLarge, "job %s has a payload of %d bytes, more than %d", j.ID, len(j.Payload), MaxBytes)
	}
	return nil
}

// CheckResult reports whether a job may end with result.
func CheckResult(id string, result []byte) error {
	if len(result) > MaxBytes {
		return tartarus.Errorf(tartarus.TooLarge, "job %s has a result of %d bytes, more than %d", id, len(result), MaxBytes)
	}
	return nil
}

// Trust is how long after asking for it a holder may act on a lease of ttl. The missing tenth covers the difference between
// two clocks' speeds and a holder that was paused just before it acted.
func Trust(ttl time.Duration) time.Duration { return ttl - ttl/10 }

// Backoff is how long a job waits after its attempt-th try failed: 100 ms, doubled each time, at most 30 s.
func Backoff(attempt int) time.Duration {
	const first, most = 100 * time.Millisecond, 30 * time.Second
	if attempt < 1 {
		return first
	}
	if attempt > 9 { // 100 ms * 2^9 is more than most
		return most
	}
	return min(most, first<<(attempt-1))
}
