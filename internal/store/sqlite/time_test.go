package sqlite

import (
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// TestHours runs what takes hours on a clock of its own: nothing here waits for anything but that clock.
func TestHours(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	synctest.Test(t, func(t *testing.T) {
		db, err := Open(t.Context(), Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		ctx, q := t.Context(), db.Queue()
		j := testJob("a")
		j.MaxAttempts, j.Deadline = 12, time.Now().Add(24*time.Hour)
		if _, err := q.Enqueue(ctx, j); err != nil {
			t.Fatal(err)
		}
		next := func(want time.Duration) acheron.Lease {
			t.Helper()
			asked := time.Now()
			ls, err := q.Lease(ctx, "n1", 1, time.Hour)
			if err != nil || len(ls) != 1 {
				t.Fatal(ls, err)
			}
			if waited := time.Since(asked); waited != want {
				t.Fatalf("attempt %d came after %s, want %s", ls[0].Job.Attempt, waited, want)
			}
			if trust := time.Until(ls[0].Until); trust != 54*time.Minute {
				t.Fatalf("an hour's lease is trusted for %s", trust)
			}
			return ls[0]
		}
		next(0)
		l := next(time.Hour) // to the instant, and nobody polls meanwhile
		for attempt := 2; attempt <= 10; attempt++ {
			if err := q.Fail(ctx, l, "again", true); err != nil {
				t.Fatal(err)
			}
			l = next(acheron.Backoff(attempt))
		}
		for range 10 {
			time.Sleep(50 * time.Minute)
			if err := q.Renew(ctx, l, time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		b := testJob("b")
		b.Deadline = time.Now().Add(3 * time.Hour)
		if _, err := q.Enqueue(ctx, b); err != nil {
			t.Fatal(err)
		}
		if j, err := q.Await(ctx, "b"); err != nil || j.Reason != "deadline" || !j.EndedAt.Equal(b.Deadline) {
			t.Fatal(fmt.Sprintf("%+v", j), err)
		}
		if j, err := q.Job(ctx, "a"); err != nil || j.State != acheron.Waiting { // its lease ended two hours ago
			t.Fatal(fmt.Sprintf("%+v", j), err)
		}
	})
}
