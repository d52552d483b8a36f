package acheron

import (
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
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

// A refusal keeps its kind and its code over the queue.
func TestReasonsComeBack(t *testing.T) {
	for _, e := range []*tartarus.Error{
		{Kind: tartarus.Unavailable, Message: "away"},
		{Kind: tartarus.Unavailable, Code: "no_room", Message: "full: of 4"},
		{Kind: tartarus.Invalid, Message: ""},
	} {
		if got := FromReason(Reason(e)); got.Kind != e.Kind || got.Code != e.Code || got.Message != e.Message {
			t.Errorf("%+v came back as %+v", e, got)
		}
	}
	for text, kind := range map[string]tartarus.Kind{"deadline": tartarus.Unavailable, "": tartarus.Internal, "odd/x: y": tartarus.Internal} {
		if got := FromReason(text); got.Kind != kind {
			t.Errorf("%q is %+v", text, got)
		}
	}
}
