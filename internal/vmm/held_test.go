package vmm

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
)

func TestHeld(t *testing.T) {
	var h Held
	for _, bad := range []string{"", "../a", "A", "a b"} {
		if err := h.Claim(bad); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("claim %q: %v", bad, err)
		}
	}
	if h.Release("a1"); h.Has("a1") {
		t.Error("has what nobody claimed")
	}
	for range 3 {
		var won atomic.Int32
		var all sync.WaitGroup
		for range 16 {
			all.Go(func() {
				switch err := h.Claim("a1"); {
				case err == nil:
					won.Add(1)
				case !tartarus.Is(err, tartarus.Conflict):
					t.Errorf("claim again: %v", err)
				}
			})
		}
		all.Wait()
		if won.Load() != 1 || !h.Has("a1") {
			t.Errorf("%d claims of one id succeeded; it is held: %v", won.Load(), h.Has("a1"))
		}
		if h.Release("a1"); h.Has("a1") {
			t.Error("has what was released")
		}
	}
}
