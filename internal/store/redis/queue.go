package redis

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	goredis "github.com/redis/go-redis/v9"

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
	j = asked(j)
	body, err := encodeBody(j)
	if err != nil {
		return acheron.Job{}, err
	}
	q.db.bells.expect(j)
	v, err := q.run(ctx, enqueueScript, j.ID, j.Tenant, j.Node, j.Key, j.Digest, j.MaxAttempts, micros(j.Deadline), body, j.Payload, q.db.cfg.MaxOpenJobs)
	if err != nil || v.text(0) != "new" {
		q.db.bells.forget(j.ID)
	}
	if err != nil {
		return acheron.Job{}, fmt.Errorf("enqueue job %s: %w", j.ID, err)
	}
	switch v.text(0) {
	case "new":
		j.State, j.EnqueuedAt = acheron.Waiting, moment(v.text(1))
		if !j.Deadline.IsZero() {
			q.db.timer.within(j.Deadline.Sub(j.EnqueuedAt))
		}
		return j, nil
	case "again":
		return decodeJob(v.list(1).fields())
	case "mismatch":
		return acheron.Job{}, tartarus.Errorf(tartarus.Mismatch, "idempotency key %q was used for another request", j.Key)
	case "full":
		return acheron.Job{}, tartarus.Errorf(tartarus.Unavailable, "enqueue job %s: %d jobs are open already", j.ID, q.db.cfg.MaxOpenJobs)
	}
	return acheron.Job{}, tartarus.Errorf(tartarus.Conflict, "job %s exists already", j.ID)
}

func (q *Queue) run(ctx context.Context, s *script, args ...any) (answer, error) {
	return q.db.run(ctx, s, q.db.tag("q"), args...)
}

// asked is what a job was enqueued with, without what became of it.
func asked(j acheron.Job) acheron.Job {
	return acheron.Job{
		ID: j.ID, Tenant: j.Tenant, Node: j.Node, Kind: j.Kind, Payload: j.Payload, Key: j.Key, Digest: j.Digest,
		MaxAttempts: j.MaxAttempts, Deadline: j.Deadline.UTC().Round(0),
	}
}

// encodeBody writes what decodeJob finds in the body.
func encodeBody(j acheron.Job) ([]byte, error) {
	j = asked(j)
	j.Payload = nil // kept beside it: JSON would make it a third longer
	body, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("encode job %s: %w", j.ID, err)
	}
	return body, nil
}

// decodeJob reads a job's hash.
func decodeJob(f map[string]string) (acheron.Job, error) {
	var j acheron.Job
	if err := json.Unmarshal([]byte(f["body"]), &j); err != nil {
		return acheron.Job{}, tartarus.Errorf(tartarus.Corrupt, "decode job: %w", err)
	}
	j.State, j.Reason, j.EnqueuedAt, j.EndedAt = acheron.State(f["state"]), f["why"], moment(f["enqueued"]), moment(f["ended"])
	j.Attempt, _ = strconv.Atoi(f["attempt"])
	j.Token, _ = strconv.ParseInt(f["token"], 10, 64)
	j.Result, j.Payload = bytesOf(f["result"]), bytesOf(f["payload"])
	if f["deadline"] == "0" {
		j.Deadline = time.Time{} // it had its effect, and was requeued
	}
	return j, nil
}

func bytesOf(text string) []byte {
	if text == "" {
		return nil
	}
	return []byte(text)
}

// maxLeases bounds the answer to one Lease.
const maxLeases = 256

// lookAgain is when a waiting call looks although nobody rang: events can be lost when a reader falls far behind.
const lookAgain = 15 * time.Second

// Lease implements acheron.Queue.
func (q *Queue) Lease(ctx context.Context, node string, max int, ttl time.Duration) ([]acheron.Lease, error) {
	if node == "" || max < 1 || ttl <= 0 {
		return nil, tartarus.Errorf(tartarus.Invalid, "lease: needs a node, a number of jobs and a time, not %q, %d, %s", node, max, ttl)
	}
	b := q.db.bells
	w := b.add(b.nodes, node) // before looking, or what comes in between would be missed
	on := false               // what there still is, is for others who wait
	defer func() { b.leave(b.nodes, node, w, on) }()
	max = min(max, maxLeases)
	for {
		err := ctx.Err()
		var leases []acheron.Lease
		if err == nil {
			leases, err = q.take(ctx, node, max, ttl)
		}
		on = err != nil || len(leases) == max
		if err != nil || len(leases) > 0 {
			return leases, err
		}
		select {
		case <-w.ch:
		case <-time.After(lookAgain/2 + rand.N(lookAgain/2)):
		case <-q.db.closing:
			return nil, errClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// take asks once. It does not end with ctx: jobs handed out to an answer that nobody reads would lie idle until their leases end.
func (q *Queue) take(ctx context.Context, node string, max int, ttl time.Duration) ([]acheron.Lease, error) {
	asked := time.Now()
	v, err := q.run(context.WithoutCancel(ctx), leaseScript, node, max, ttl.Microseconds())
	if err != nil {
		return nil, fmt.Errorf("lease for node %s: %w", node, err)
	}
	leases := make([]acheron.Lease, 0, len(v))
	for i := range v {
		a := v.list(i)
		var j acheron.Job
		if err := json.Unmarshal([]byte(a.text(0)), &j); err != nil {
			return nil, tartarus.Errorf(tartarus.Corrupt, "decode job: %w", err)
		}
		j.State, j.Attempt, j.Token, j.EnqueuedAt, j.Reason = acheron.Leased, int(a.number(1)), a.number(2), moment(a.text(3)), a.text(4)
		j.Payload = bytesOf(a.text(5))
		leases = append(leases, acheron.Lease{Job: j, Token: j.Token, Until: asked.Add(acheron.Trust(ttl))})
	}
	if len(leases) > 0 {
		q.db.timer.within(ttl)
	}
	return leases, nil
}

func (q *Queue) report(ctx context.Context, s *script, what string, l acheron.Lease, args ...any) (answer, error) {
	v, err := q.run(ctx, s, append([]any{l.Job.ID, l.Token}, args...)...)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s job %s: %w", what, l.Job.ID, err)
	case v.text(0) != "ok":
		return nil, tartarus.Errorf(tartarus.Conflict, "job %s: lease %d no longer holds", l.Job.ID, l.Token)
	}
	return v, nil
}

// Renew implements acheron.Queue.
func (q *Queue) Renew(ctx context.Context, l acheron.Lease, ttl time.Duration) error {
	if ttl <= 0 {
		return tartarus.Errorf(tartarus.Invalid, "renew: needs a time, not %s", ttl)
	}
	_, err := q.report(ctx, renewScript, "renew", l, ttl.Microseconds())
	if err == nil {
		q.db.timer.within(ttl)
	}
	return err
}

// Complete implements acheron.Queue.
func (q *Queue) Complete(ctx context.Context, l acheron.Lease, result []byte) error {
	if err := acheron.CheckResult(l.Job.ID, result); err != nil {
		return err
	}
	q.db.bells.completing(l.Job.ID)
	v, err := q.report(ctx, reportScript, "complete", l, "complete", string(result))
	if err != nil {
		q.db.bells.completed(l.Job.ID, nil)
		return err
	}
	q.db.bells.completed(l.Job.ID, func(j *acheron.Job) {
		j.State, j.Reason, j.Result, j.Token = acheron.Done, "", bytesOf(string(result)), l.Token
		j.EndedAt, j.EnqueuedAt, j.Node = moment(v.text(1)), moment(v.text(2)), v.text(4)
		j.Attempt = int(v.number(3))
		if v.text(5) == "0" {
			j.Deadline = time.Time{} // it had its effect, and was requeued
		}
	})
	return nil
}

// Fail implements acheron.Queue.
func (q *Queue) Fail(ctx context.Context, l acheron.Lease, reason string, retry bool) error {
	if !retry {
		_, err := q.report(ctx, reportScript, "fail", l, "fail", reason)
		return err
	}
	args := []any{"retry", reason}
	for attempt := 1; attempt <= 10; attempt++ {
		args = append(args, acheron.Backoff(attempt).Microseconds())
	}
	_, err := q.report(ctx, reportScript, "fail", l, args...)
	if err == nil {
		q.db.timer.within(acheron.Backoff(l.Job.Attempt))
	}
	return err
}

// Cancel implements acheron.Queue.
func (q *Queue) Cancel(ctx context.Context, id string) error {
	v, err := q.run(ctx, cancelScript, id)
	return outcome("cancel", id, v, err)
}

// outcome reads the answer of what is done to a job by its id.
func outcome(what, id string, v answer, err error) error {
	switch {
	case err != nil:
		return fmt.Errorf("%s job %s: %w", what, id, err)
	case v.text(0) == "absent":
		return noJob(id)
	case v.text(0) != "ok":
		return tartarus.Errorf(tartarus.Conflict, "%s job %s: it is %s", what, id, v.text(1))
	}
	return nil
}

func noJob(id string) error { return tartarus.Errorf(tartarus.NotFound, "no job %s", id) }

// Job implements acheron.Queue.
func (q *Queue) Job(ctx context.Context, id string) (acheron.Job, error) {
	v, err := q.run(ctx, jobScript, id)
	if err = outcome("read", id, v, err); err != nil {
		return acheron.Job{}, err
	}
	j, err := decodeJob(v.list(1).fields())
	j.Position = int(v.number(2))
	return j, err
}

// ByKey implements acheron.Keyed.
func (q *Queue) ByKey(ctx context.Context, tenant, key string) (acheron.Job, error) {
	v, err := q.run(ctx, keyedScript, tenant, key)
	switch {
	case err != nil:
		return acheron.Job{}, fmt.Errorf("read job by its key: %w", err)
	case v.text(0) != "ok":
		return acheron.Job{}, tartarus.Errorf(tartarus.NotFound, "no job has the idempotency key %q", key)
	}
	return decodeJob(v.list(1).fields())
}

// Await implements acheron.Queue.
func (q *Queue) Await(ctx context.Context, id string) (acheron.Job, error) {
	b := q.db.bells
	w := b.add(b.jobs, id)
	defer b.leave(b.jobs, id, w, false)
	defer b.forget(id)
	known, ours := b.expected(id) // then its end is heard, if it was not yet
	if !ours {
		state, err := q.state(ctx, id)
		if err != nil {
			return acheron.Job{}, err
		}
		known.ended = state.Ended()
	}
	for rung := known.ended; ; rung = true {
		if rung { // it is rung for when it has ended, so that one question is mostly enough
			if known, _ = b.expected(id); known.final && ctx.Err() == nil {
				return known.job, nil
			}
			j, err := q.Job(ctx, id)
			if e := ctx.Err(); e != nil {
				err = e
			}
			if err != nil || j.State.Ended() {
				return j, err
			}
		}
		select {
		case <-w.ch:
		case <-time.After(lookAgain/2 + rand.N(lookAgain/2)):
		case <-q.db.closing:
			return acheron.Job{}, errClosed
		case <-ctx.Done():
			return acheron.Job{}, ctx.Err()
		}
	}
}

func (q *Queue) state(ctx context.Context, id string) (acheron.State, error) {
	state, err := q.db.field(ctx, q.db.tag("q"), "job:"+id, "state")
	switch {
	case err == goredis.Nil:
		return "", noJob(id)
	case err != nil && ctx.Err() == nil:
		err = fmt.Errorf("read job %s: %w", id, err)
	}
	return acheron.State(state), err
}
