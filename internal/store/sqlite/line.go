package sqlite

import (
	"bytes"
	"container/heap"
	"database/sql/driver"
	"sync/atomic"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// line is the queue's memory: every job that has not ended, who waits for work, and what happens when. Only the
// committer touches it. Changes are made here first and stored before the transaction commits; when that fails, line is read
// again from the file.
//
//	waiting ──lease──► leased ──complete──► done
//	   ▲  │              │ │
//	   │  └─deadline─────│─┴─fail, expired for the last time──► dead
//	   └──fail, expired──┘             cancel, from either ──► cancelled
type line struct {
	max      int
	jobs     map[string]*entry
	lanes    map[string]*lane
	busy     map[*lane]struct{} // lanes that may now be able to serve somebody
	dirty    []*entry
	timers   timers
	n        int64 // the newest job's row
	token    int64 // the newest fencing token
	reserved int64 // tokens up to here are ours by the file
}

// tokenBlock is how many tokens are reserved at once: one write per million leases, and a restart skips at most as many.
const tokenBlock = 1_000_000

// entry is an open job.
type entry struct {
	acheron.Job
	n       int64     // its row, which is its place in the order
	ready   time.Time // while waiting: not before
	until   time.Time // while leased
	when    time.Time // its place in timers
	index   int       // likewise; -1 when not there
	inLane  bool
	isDirty bool

	reopened bool // it had ended in the file
}

// waiter is a Lease that found nothing yet.
type waiter struct {
	state  atomic.Int32
	max    int
	ttl    time.Duration
	leases []acheron.Lease // written by the committer before it sends
	done   chan error
}

// The states of a waiter: whoever leaves idle first decides, the committer by serving it or its caller by going.
const (
	idle int32 = iota
	served
	gone
)

func newLine(most int) *line { return &line{max: most, lanes: map[string]*lane{}} }

const jobColumns = `n, id, tenant, key, digest, node, kind, max_attempts, deadline, enqueued_at,
	state, attempt, token, ready_at, lease_ends, ended_at, reason, result, payload`

func scanJob(row []driver.Value) *entry {
	return &entry{
		n: num(row[0]), index: -1, ready: moment(row[13]), until: moment(row[14]),
		Job: acheron.Job{
			ID: str(row[1]), Tenant: str(row[2]), Key: str(row[3]), Digest: str(row[4]), Node: str(row[5]), Kind: str(row[6]),
			MaxAttempts: int(num(row[7])), Deadline: moment(row[8]), EnqueuedAt: moment(row[9]), State: acheron.State(str(row[10])),
			Attempt: int(num(row[11])), Token: num(row[12]), EndedAt: moment(row[15]), Reason: str(row[16]),
			Result: blob(row[17]), Payload: blob(row[18]),
		},
	}
}

// load reads the open jobs from the file. Those who wait for work stay.
func (l *line) load(c *conn) error {
	l.jobs, l.timers, l.dirty, l.busy = map[string]*entry{}, nil, nil, map[*lane]struct{}{}
	for _, ln := range l.lanes {
		ln.clear()
		l.busy[ln] = struct{}{}
	}
	n, err := c.number("SELECT max(n) FROM jobs")
	if err != nil {
		return err
	}
	l.n = max(l.n, n)
	reserved, err := c.number("SELECT value FROM counters WHERE name = 'token'")
	if err != nil {
		return err
	}
	if l.reserved = reserved; l.token == 0 {
		l.token = reserved // those of the block in use may have been handed out by a process that crashed
	}
	return c.query(func(row []driver.Value) (bool, error) {
		e := scanJob(row)
		l.jobs[e.ID] = e
		l.schedule(e, e.ready)
		return true, nil
	}, "SELECT "+jobColumns+" FROM jobs WHERE ended_at = 0 ORDER BY n")
}

// next says how long nothing happens by itself.
func (l *line) next(now time.Time) (time.Duration, bool) {
	if len(l.timers) == 0 {
		return 0, false
	}
	return max(0, l.timers[0].when.Sub(now)), true
}

// due makes everything happen whose time has come.
func (l *line) due(t *txn) {
	for len(l.timers) > 0 && !t.now.Before(l.timers[0].when) && t.broken == nil {
		e := l.timers[0]
		switch {
		case e.State == acheron.Leased:
			l.release(t, e, acheron.Reason(tartarus.Errorf(tartarus.Unavailable, "node %s did not report in time", e.Node)), t.now)
		case !e.Deadline.IsZero() && !t.now.Before(e.Deadline):
			l.end(t, e, acheron.Dead, "deadline", nil)
		default: // its backoff is over
			l.schedule(e, time.Time{})
		}
	}
}

// schedule puts e where its state says: under a timer, and in its node's lane if it can be handed out. ready is
// when it can, at the earliest.
func (l *line) schedule(e *entry, ready time.Time) {
	e.when = e.Deadline
	switch {
	case e.State == acheron.Leased:
		e.when = e.until
	case !ready.IsZero():
		if e.when.IsZero() || ready.Before(e.when) {
			e.when = ready
		}
	default:
		ln := l.lane(e.Node)
		ln.add(e)
		l.busy[ln] = struct{}{}
	}
	switch {
	case e.when.IsZero() && e.index >= 0:
		heap.Remove(&l.timers, e.index)
	case e.when.IsZero():
	case e.index >= 0:
		heap.Fix(&l.timers, e.index)
	default:
		heap.Push(&l.timers, e)
	}
}

func (l *line) lane(node string) *lane {
	ln := l.lanes[node]
	if ln == nil {
		ln = &lane{node: node, tenants: map[string]*share{}}
		l.lanes[node] = ln
	}
	return ln
}

func (l *line) touch(e *entry) {
	if !e.isDirty {
		e.isDirty = true
		l.dirty = append(l.dirty, e)
	}
}

// admit takes in a job that is stored already.
func (l *line) admit(t *txn, e *entry) {
	l.jobs[e.ID] = e
	t.after = append(t.after, func() { t.db.watch.opened(e.ID) })
	l.schedule(e, e.ready)
	if !e.Deadline.IsZero() && !t.now.Before(e.Deadline) {
		l.end(t, e, acheron.Dead, "deadline", nil)
	}
}

// lease hands e out, which its lane has just given away.
func (l *line) lease(t *txn, e *entry, ttl time.Duration) (acheron.Lease, error) {
	if l.token >= l.reserved {
		most := l.token + tokenBlock
		if _, err := t.exec("INSERT INTO counters (name, value) VALUES ('token', ?1) ON CONFLICT (name) DO UPDATE SET value = ?1", most); err != nil {
			return acheron.Lease{}, err
		}
		l.reserved = most
	}
	l.token++
	e.State, e.Attempt, e.Token, e.until = acheron.Leased, e.Attempt+1, l.token, t.now.Add(ttl)
	l.schedule(e, time.Time{})
	l.touch(e)
	j := e.Job
	j.Payload = bytes.Clone(j.Payload) // the holder's own: it may be handed out again
	return acheron.Lease{Job: j, Token: e.Token, Until: t.now.Add(acheron.Trust(ttl))}, nil
}

// held finds the job that ls holds, if it still does.
func (l *line) held(t *txn, ls acheron.Lease) (*entry, error) {
	e := l.jobs[ls.Job.ID]
	if e == nil || e.State != acheron.Leased || e.Token != ls.Token || !t.now.Before(e.until) {
		return nil, tartarus.Errorf(tartarus.Conflict, "job %s: lease %d no longer holds", ls.Job.ID, ls.Token)
	}
	return e, nil
}

// release gives a leased job back: to wait until ready, or dead when it had its last attempt.
func (l *line) release(t *txn, e *entry, reason string, ready time.Time) {
	if e.Attempt >= e.MaxAttempts {
		l.end(t, e, acheron.Dead, reason, nil)
		return
	}
	e.State, e.Reason, e.until, e.ready = acheron.Waiting, reason, time.Time{}, ready
	if !t.now.Before(ready) {
		e.ready = time.Time{}
	}
	l.schedule(e, e.ready)
	l.touch(e)
}

// end ends e in a final state and forgets it. Whoever awaits it hears of it once that is durable.
func (l *line) end(t *txn, e *entry, state acheron.State, reason string, result []byte) {
	if e.inLane {
		ln := l.lanes[e.Node]
		ln.remove(e)
		l.busy[ln] = struct{}{}
	}
	if e.index >= 0 {
		heap.Remove(&l.timers, e.index)
	}
	delete(l.jobs, e.ID)
	e.State, e.Reason, e.Result, e.EndedAt, e.until = state, reason, result, t.now.UTC(), time.Time{}
	l.touch(e)
	t.after = append(t.after, func() { t.db.watch.tell(e.Job) })
}

// settle hands work to those who wait for it and stores what changed.
func (l *line) settle(t *txn) {
	for ln := range l.busy {
		if err := ln.serve(t, l); err != nil {
			return
		}
		delete(l.busy, ln)
		if ln.empty() {
			delete(l.lanes, ln.node)
		}
	}
	for _, e := range l.dirty {
		if err := t.storeEntry(e); err != nil {
			return
		}
		e.isDirty = false
	}
	l.dirty = l.dirty[:0]
}

// storeEntry writes what may change of a job. While it stays open the columns that indices hold are left out.
func (t *txn) storeEntry(e *entry) (err error) {
	if e.State.Ended() || e.reopened {
		_, err = t.exec(`UPDATE jobs SET node = ?, state = ?, attempt = ?, token = ?, deadline = ?, ready_at = ?, lease_ends = ?, ended_at = ?, reason = ?, result = ?
			WHERE n = ?`, e.Node, string(e.State), e.Attempt, e.Token, e.Deadline, e.ready, e.until, e.EndedAt, e.Reason, e.Result, e.n)
	} else {
		_, err = t.exec("UPDATE jobs SET state = ?, attempt = ?, token = ?, ready_at = ?, lease_ends = ?, reason = ? WHERE n = ?",
			string(e.State), e.Attempt, e.Token, e.ready, e.until, e.Reason, e.n)
	}
	e.reopened = false
	return err
}

// close answers those who still wait for work.
func (l *line) close() {
	for _, ln := range l.lanes {
		for _, w := range ln.waiters {
			if w.state.CompareAndSwap(idle, served) {
				w.done <- errClosed
			}
		}
	}
}

// timers is a heap of jobs by the time when something happens to them.
type timers []*entry

func (h timers) Len() int           { return len(h) }
func (h timers) Less(i, j int) bool { return h[i].when.Before(h[j].when) }
func (h timers) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *timers) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}
func (h *timers) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.index = -1
	return e
}
