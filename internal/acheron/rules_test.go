package acheron

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	for attempt, want := range map[int]time.Duration{
		-1: 100 * time.Millisecond, 0: 100 * time.Millisecond, 1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 3: 400 * time.Millisecond,
		9: 25600 * time.Millisecond, 10: 30 * time.Second, 11: 30 * time.Second, 1 << 40: 30 * time.Second,
	} {
		if got := Backoff(attempt); got != want {
			t.Errorf("after attempt %d: %s, want %s", attempt, got, want)
		}
	}
}

func TestTrust(t *testing.T) {
	for ttl, want := range map[time.Duration]time.Duration{time.Minute: 54 * time.Second, 10: 9, 1: 1} {
		if got := Trust(ttl); got != want {
			t.Errorf("of %s: %s, want %s", ttl, got, want)
		}
	}
}
