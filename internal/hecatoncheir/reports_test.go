package hecatoncheir

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// slowControl takes its time for every report, and knows the newest message it was told of each sandbox.
type slowControl struct {
	Control
	reports atomic.Int32

	mu     sync.Mutex
	newest map[string]string
}

func (c *slowControl) Report(_ context.Context, sandboxes ...tartarus.Sandbox) error {
	c.reports.Add(1)
	time.Sleep(20 * time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sb := range sandboxes {
		c.newest[sb.ID] = sb.Message
	}
	return nil
}

// TestReportsShare has many sandboxes change while a report is on its way: all of them go with the next, nobody waits for more than the two, and whoever
// waited finds its change delivered.
func TestReportsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		control := &slowControl{newest: map[string]string{}}
		a := &Agent{cfg: Config{Control: control}, log: slog.New(slog.DiscardHandler), next: newNews(), sent: newNews(), wakeup: make(chan struct{}, 1), flushing: make(chan struct{}, 1)}
		began := time.Now()
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				h := newHeld(tartarus.Sandbox{Spec: tartarus.Spec{ID: fmt.Sprint("s", i)}})
				for _, text := range []string{"first", "second"} {
					if _, err := h.change(func(sb *tartarus.Sandbox) error { sb.Message = text; return nil }); err != nil {
						t.Error(err)
					}
					a.told(t.Context(), h)
					a.heard(t.Context(), h) // which is nothing any more
					control.mu.Lock()
					if got := control.newest[h.spec.ID]; got != text {
						t.Errorf("sandbox %d: the control plane knows %q, not %q", i, got, text)
					}
					control.mu.Unlock()
				}
			})
		}
		wg.Wait()
		if n, took := control.reports.Load(), time.Since(began); n > 4 || took > 100*time.Millisecond {
			t.Errorf("%d reports in %s", n, took)
		}
	})
}
