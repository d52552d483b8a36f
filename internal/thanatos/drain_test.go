package thanatos

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestDrain(t *testing.T) {
	const each = time.Second
	ids := []string{"a", "b", "c", "d", "e"}
	tests := map[string]struct {
		within time.Duration
		fail   string
		late   bool // one comes up while the others are dealt with
		want   Progress
		took   time.Duration
	}{
		"all":               {within: time.Minute, want: Progress{Total: 5, Done: 5}, took: 3 * each},
		"one fails":         {within: time.Minute, fail: "b", want: Progress{Total: 5, Done: 4, Failed: 1}, took: 3 * each},
		"one comes up late": {within: time.Minute, late: true, want: Progress{Total: 6, Done: 6}, took: 4 * each},
		"the time runs out": {within: 1500 * time.Millisecond, want: Progress{Total: 5, Done: 2, Failed: 3}, took: 1500 * time.Millisecond},
		"no time at all":    {within: -time.Second, want: Progress{Total: 5, Failed: 5}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var asked, under, most atomic.Int32
				left := func() []string {
					if asked.Add(1) > 1 && tt.late {
						return append(ids, "late")
					}
					return ids
				}
				calls := 0
				d := Drain{AtOnce: 2, Until: began.Add(tt.within), Progress: func(Progress) { calls++ }}
				got := d.Run(t.Context(), left, func(ctx context.Context, id string) error {
					if n := under.Add(1); n > most.Load() {
						most.Store(n)
					}
					defer under.Add(-1)
					select {
					case <-time.After(each):
					case <-ctx.Done():
						return ctx.Err()
					}
					if id == tt.fail {
						return errors.New("broken")
					}
					return nil
				})
				got.ID, got.Err = "", nil
				if got != tt.want || most.Load() > 2 {
					t.Errorf("got %+v with %d at once, want %+v", got, most.Load(), tt.want)
				}
				if took := time.Since(began); took != tt.took {
					t.Errorf("took %s, want %s", took, tt.took)
				}
				if calls == 0 && tt.want.Done > 0 {
					t.Error("no progress was told")
				}
			})
		})
	}
}
