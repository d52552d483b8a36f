package sqlite

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// Queue implements acheron.Queue and acheron.Operator.
type Queue struct{ db *DB }

// Queue returns the store's queue.
func (db *DB) Queue() *Queue { return &Queue{db} }

// Enqueue implements acheron.Queue.
func (q *Queue) Enqueue(ctx context.Context, j acheron.Job) (acheron.Job, error) {
	if err := j.Validate(); err != nil {
		return acheron.Job{}, err
	}
	var stored acheron.Job
	err := q.db.write(ctx, func(t *txn) (err error) {
		stored, _, err = t.enqueue(j)
		return err
	})
	if err != nil {
		return acheron.Job{}, err // ctx may have ended while the committer still writes stored
	}
	return stored, nil
}

// enqueue takes in a job, unless an earlier one with its key stands for it.
func (t *txn) enqueue(j acheron.Job) (stored acheron.Job, fresh bool, err error) {
	if len(t.line.jobs) >= t.line.max {
		return stored, false, tartarus.Errorf(tartarus.Unavailable, "enqueue job %s: %d jobs are open already", j.ID, t.line.max)
	}
	e := newEntry(t, j)
	n, err := t.exec("INSERT INTO jobs ("+jobColumns+") VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
		e.n, e.ID, e.Tenant, e.Key, e.Digest, e.Node, e.Kind, e.MaxAttempts, e.Deadline, e.EnqueuedAt,
		string(e.State), 0, 0, 0, 0, 0, "", nil, e.Payload)
	if err != nil {
		return stored, false, fmt.Errorf("enqueue job %s: %w", j.ID, err)
	}
	if n == 0 {
		stored, err = t.again(j)
		return stored, false, err
	}
	t.line.n = e.n
	t.line.admit(t, e)
	return e.Job, true, nil
}

func newEntry(t *txn, j acheron.Job) *entry {
	e := &entry{n: t.line.n + 1, index: -1, Job: acheron.Job{
		ID: j.ID, Tenant: j.Tenant, Node: j.Node, Kind: j.Kind, Payload: bytes.Clone(j.Payload), Key: j.Key, Digest: j.Digest,
		MaxAttempts: j.MaxAttempts, State: acheron.Waiting, EnqueuedAt: t.now.UTC().Round(0),
	}}
	if !j.Deadline.IsZero() {
		e.Deadline = j.Deadline.UTC().Round(0)
	}
	return e
}

// again answers an Enqueue whose id or key is taken.
func (t *txn) again(j acheron.Job) (acheron.Job, error) {
	if j.Key != "" {
		e, err := t.stored("tenant = ? AND key = ? AND key <> ''", j.Tenant, j.Key)
		switch {
		case err != nil:
			return acheron.Job{}, err
		case e != nil && e.Digest != j.Digest:
			return acheron.Job{}, tartarus.Errorf(tartarus.Mismatch, "idempotency key %q was used for another request", j.Key)
		case e != nil:
			return e.Job, nil
		}
	}
	return acheron.Job{}, tartarus.Errorf(tartarus.Conflict, "job %s exists already", j.ID)
}

// stored finds a job as it stands, nil when there is none: open ones in memory, where they may be newer than their row.
func (t *txn) stored(where string, args ...any) (*entry, error) {
	row, found, err := t.conn.one("SELECT "+jobColumns+" FROM jobs WHERE "+where, args...)
	if err != nil {
		t.broken = err
		return nil, err
	}
	if !found {
		return nil, nil
	}
	e := scanJob(row)
	if open := t.line.jobs[e.ID]; open != nil {
		return open, nil
	}
	return e, nil
}

// ByKey implements acheron.Keyed.
func (q *Queue) ByKey(ctx context.Context, tenant, key string) (acheron.Job, error) {
	var found *acheron.Job
	err := q.db.write(ctx, func(t *txn) error { // open jobs are known to the committer alone
		e, err := t.stored("tenant = ? AND key = ? AND key <> ''", tenant, key)
		if err == nil && e != nil {
			j := e.Job
			found = &j
		}
		return err
	})
	switch {
	case err != nil:
		return acheron.Job{}, fmt.Errorf("read job by its key: %w", err) // ctx may have ended while the committer still writes found
	case found == nil:
		return acheron.Job{}, tartarus.Errorf(tartarus.NotFound, "no job has the idempotency key %q", key)
	}
	return *found, nil
}

// Lease implements acheron.Queue.
func (q *Queue) Lease(ctx context.Context, node string, max int, ttl time.Duration) ([]acheron.Lease, error) {
	if node == "" || max < 1 || ttl <= 0 {
		return nil, tartarus.Errorf(tartarus.Invalid, "lease: needs a node, a number of jobs and a time, not %q, %d, %s", node, max, ttl)
	}
	for {
		leases, err := q.lease(ctx, node, max, ttl)
		if err != errAgain {
			return leases, err
		}
	}
}

func (q *Queue) lease(ctx context.Context, node string, max int, ttl time.Duration) ([]acheron.Lease, error) {
	w := &waiter{max: max, ttl: ttl, done: make(chan error, 1)}
	err := q.db.write(ctx, func(t *txn) error {
		ln := t.line.lane(node)
		ln.waiters = append(ln.waiters, w)
		t.line.busy[ln] = struct{}{}
		return nil
	})
	if err == nil {
		select {
		case err = <-w.done:
			return w.result(err)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if w.state.CompareAndSwap(idle, gone) {
		return nil, err
	}
	// The committer was quicker: what it hands out is taken, or it would lie idle until its lease ends.
	return w.result(<-w.done)
}

func (w *waiter) result(err error) ([]acheron.Lease, error) {
	if err != nil {
		return nil, err
	}
	return w.leases, nil
}

// Renew implements acheron.Queue.
func (q *Queue) Renew(ctx context.Context, ls acheron.Lease, ttl time.Duration) error {
	if ttl <= 0 {
		return tartarus.Errorf(tartarus.Invalid, "renew: needs a time, not %s", ttl)
	}
	return q.db.write(ctx, func(t *txn) error {
		e, err := t.line.held(t, ls)
		if err != nil {
			return err
		}
		e.until = t.now.Add(ttl)
		t.line.schedule(e, time.Time{})
		t.line.touch(e)
		return nil
	})
}

// Complete implements acheron.Queue.
func (q *Queue) Complete(ctx context.Context, ls acheron.Lease, result []byte) error {
	if err := acheron.CheckResult(ls.Job.ID, result); err != nil {
		return err
	}
	return q.db.write(ctx, func(t *txn) error {
		e, err := t.line.held(t, ls)
		if err != nil {
			return err
		}
		t.line.end(t, e, acheron.Done, "", result)
		return nil
	})
}

// Fail implements acheron.Queue.
func (q *Queue) Fail(ctx context.Context, ls acheron.Lease, reason string, retry bool) error {
	return q.db.write(ctx, func(t *txn) error {
		e, err := t.line.held(t, ls)
		switch {
		case err != nil:
			return err
		case retry:
			t.line.release(t, e, reason, t.now.Add(acheron.Backoff(e.Attempt)))
		default:
			t.line.end(t, e, acheron.Dead, reason, nil)
		}
		return nil
	})
}

// Cancel implements acheron.Queue.
func (q *Queue) Cancel(ctx context.Context, id string) error {
	return q.db.write(ctx, func(t *txn) error {
		if e := t.line.jobs[id]; e != nil {
			t.line.end(t, e, acheron.Cancelled, "", nil)
			return nil
		}
		e, err := t.stored("id = ?", id)
		switch {
		case err != nil:
			return fmt.Errorf("cancel job %s: %w", id, err)
		case e == nil:
			return noJob(id)
		}
		return tartarus.Errorf(tartarus.Conflict, "job %s is %s already", id, e.State)
	})
}

func noJob(id string) error { return tartarus.Errorf(tartarus.NotFound, "no job %s", id) }

// Job implements acheron.Queue.
func (q *Queue) Job(ctx context.Context, id string) (acheron.Job, error) {
	j, err := q.row(ctx, id)
	if err != nil || j.State != acheron.Waiting {
		return j, err
	}
	// Its place in the line is known to the committer alone.
	open := false
	err = q.db.write(ctx, func(t *txn) error {
		if e := t.line.jobs[id]; e != nil {
			j, open = e.Job, true
			if e.State == acheron.Waiting {
				j.Position = t.line.lane(e.Node).position(e)
			}
		}
		return nil
	})
	if err != nil {
		return acheron.Job{}, err // ctx may have ended while the committer still writes j
	}
	if open {
		return j, nil
	}
	return q.row(ctx, id) // it ended in between
}

func (q *Queue) row(ctx context.Context, id string) (acheron.Job, error) {
	var e *entry
	err := q.db.read(ctx, func(c *conn) error {
		row, found, err := c.one("SELECT "+jobColumns+" FROM jobs WHERE id = ?", id)
		if err == nil && found {
			e = scanJob(row)
		}
		return err
	})
	switch {
	case err != nil:
		return acheron.Job{}, fmt.Errorf("read job %s: %w", id, err)
	case e == nil:
		return acheron.Job{}, noJob(id)
	}
	return e.Job, nil
}

// Await implements acheron.Queue.
func (q *Queue) Await(ctx context.Context, id string) (acheron.Job, error) {
	end, open := q.db.watch.add(id)
	defer q.db.watch.remove(id, end)
	if open {
		return end.wait(ctx)
	}
	var e *entry
	err := q.db.write(ctx, func(t *txn) (err error) {
		if e = t.line.jobs[id]; e == nil {
			e, err = t.stored("id = ?", id)
		} else {
			e = &entry{} // open; the committer goes on changing the real one
		}
		return err
	})
	switch {
	case err != nil:
		return acheron.Job{}, err
	case e == nil:
		return acheron.Job{}, noJob(id)
	case e.State.Ended():
		return e.Job, nil
	}
	return end.wait(ctx)
}
