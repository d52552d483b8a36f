package sqlite

import (
	"cmp"
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// maxList bounds what one List holds in memory.
const maxList = 10_000

// List implements acheron.Operator.
func (q *Queue) List(ctx context.Context, state acheron.State, limit int) ([]acheron.Job, error) {
	// Each of these conditions names a partial index, word for word.
	index, order := "ended_at > 0", "ended_at, n"
	switch state {
	case acheron.Waiting, acheron.Leased:
		index, order = "ended_at = 0", "n"
	case acheron.Dead, acheron.Cancelled:
		index = "state IN ('dead', 'cancelled')"
	case acheron.Done:
	default:
		return nil, tartarus.Errorf(tartarus.Invalid, "list jobs: no state %q", state)
	}
	if limit < 1 || limit > maxList {
		return nil, tartarus.Errorf(tartarus.Invalid, "list jobs: limit must be 1 to %d, not %d", maxList, limit)
	}
	jobs := []acheron.Job{}
	err := q.db.read(ctx, func(c *conn) error {
		return c.queryContext(ctx, func(row []driver.Value) (bool, error) {
			jobs = append(jobs, scanJob(row).Job)
			return true, nil
		}, "SELECT "+jobColumns+" FROM jobs WHERE "+index+" AND state = ? ORDER BY "+order+" LIMIT ?", string(state), limit)
	})
	if err != nil {
		return nil, fmt.Errorf("list %s jobs: %w", state, err)
	}
	return jobs, nil
}

// Requeue implements acheron.Operator.
func (q *Queue) Requeue(ctx context.Context, id, node string) error {
	return q.db.write(ctx, func(t *txn) error {
		e, err := t.stored("id = ?", id)
		switch {
		case err != nil:
			return fmt.Errorf("requeue job %s: %w", id, err)
		case e == nil:
			return noJob(id)
		case e.State != acheron.Dead:
			return tartarus.Errorf(tartarus.Conflict, "job %s is %s, not dead", id, e.State)
		}
		e.State, e.Attempt, e.Reason, e.EndedAt, e.Node = acheron.Waiting, 0, "", time.Time{}, cmp.Or(node, e.Node)
		if !e.Deadline.IsZero() && !t.now.Before(e.Deadline) {
			e.Deadline = time.Time{} // it had its effect
		}
		e.reopened = true
		t.line.touch(e)
		t.line.admit(t, e)
		return nil
	})
}

// purgeStep keeps a purge from holding up everything else: a transaction of about 5 ms.
const purgeStep = 500

// Purge implements acheron.Operator.
func (q *Queue) Purge(ctx context.Context, before time.Time) (int, error) {
	total := 0
	for {
		var n int64
		err := q.db.write(ctx, func(t *txn) (err error) {
			n, err = t.exec("DELETE FROM jobs WHERE n IN (SELECT n FROM jobs WHERE ended_at > 0 AND ended_at < ? ORDER BY ended_at LIMIT ?)", before, purgeStep)
			return err
		})
		if err != nil {
			return total, fmt.Errorf("purge jobs: %w", err)
		}
		total += int(n)
		if n < purgeStep {
			return total, nil
		}
	}
}
