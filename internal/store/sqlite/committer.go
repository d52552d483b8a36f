package sqlite

import (
	"errors"
	"fmt"
	"time"
)

// maxGroup bounds how many changes become durable together, and so how long the first of them waits for the last: at 10 to 20 µs each about 10 ms.
const maxGroup = 512

// settleAfter is how long the database may be behind the redo file: seldom enough that most pages are written once for many changes, and
// so often that a crash leaves little to do again.
const settleAfter = 100 * time.Millisecond

// errAgain is for Lease alone, which asks again.
var errAgain = errors.New("served in a group that was lost")

// committer owns the connection that writes and the memory of the queue. Changes run as they come, in a group that grows until the group before
// it is durable; then it is sent after that, and another one begins. So there are at most two groups of which nobody has been told: the
// later one has seen what the earlier one did, and is lost with it.
//
//	open ──send──► sent ──land──► answered
//	  └──────────────┴──lose──► told that nothing happened
type committer struct {
	db     *DB
	conn   *conn
	redo   *redo
	open   *txn       // grows; never nil
	sent   *txn       // its record is being synced; nil when none is
	landed chan error // how that went
	begun  time.Time  // of the transaction that is open in the database; zero when none is
	lost   bool       // what follows ran ahead of the files and must be read again

	settleAfter time.Duration

	line    *line
	journal journalRows
	recent  recent
}

// txn is a group of changes. It lives on the committer's goroutine.
type txn struct {
	*committer
	ops    []*op
	now    time.Time // of the change that runs
	broken error     // the database's own error, which ends the group
	wrote  bool      // there is something to make durable
	settle bool      // somebody waits to read it
	served []*waiter // Lease calls that get their answer once it is durable
	after  []func()  // likewise
}

func (t *txn) exec(q string, args ...any) (int64, error) {
	if t.broken != nil {
		return 0, t.broken
	}
	if !t.wrote {
		if t.broken = t.begin(); t.broken != nil {
			return 0, t.broken
		}
		t.wrote = true
	}
	if t.broken = t.db.failpoint("write"); t.broken != nil {
		return 0, t.broken
	}
	n, err := t.conn.exec(q, args...)
	if err == nil {
		err = t.redo.add(q, t.conn.args)
	}
	t.broken = err
	return n, err
}

// begin opens a transaction of the database's, unless one is open that earlier groups shared.
func (w *committer) begin() error {
	if err := w.db.failpoint("begin"); err != nil || !w.begun.IsZero() {
		return err
	}
	_, err := w.conn.exec("BEGIN IMMEDIATE")
	if err == nil {
		w.begun = time.Now()
	}
	return err
}

// run is the committer's life: wait for changes, for a record to be durable, or for a time in the queue.
func (w *committer) run() {
	defer close(w.db.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if wait, ok := w.wait(time.Now()); ok {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
		ops := w.db.ops
		if len(w.open.ops) >= maxGroup {
			ops = nil
		}
		select {
		case o := <-ops:
			w.take(o)
		case err := <-w.landed:
			w.land(err)
		case <-timer.C:
			w.apply(nil)
		case <-w.db.closing:
			w.shut()
			return
		}
		w.send()
	}
}

// wait says how long nothing happens by itself.
func (w *committer) wait(now time.Time) (time.Duration, bool) {
	if w.lost {
		return 100 * time.Millisecond, true // a disk that fails is asked again, but not without pause
	}
	wait, ok := w.line.next(now)
	if left := w.begun.Add(w.settleAfter).Sub(now); !w.begun.IsZero() && w.sent == nil && (!ok || left < wait) {
		return max(0, left), true
	}
	return wait, ok
}

// take runs a change and what else waits already.
func (w *committer) take(first *op) {
	ops := append(make([]*op, 0, 16), first)
gather:
	for len(w.open.ops)+len(ops) < maxGroup {
		select {
		case o := <-w.db.ops:
			ops = append(ops, o)
		default:
			break gather
		}
	}
	w.apply(ops)
}

// apply runs changes in the open group. Should the database refuse one, each of the group is tried alone, so that one that cannot be stored does
// not fail its neighbours.
func (w *committer) apply(ops []*op) {
	t := w.open
	t.ops = append(t.ops, ops...)
	if w.lost {
		if err := w.load(); err != nil {
			w.lose(err)
			return
		}
	}
	t.now = time.Now()
	w.line.due(t)
	for _, o := range ops {
		if o.err = o.ctx.Err(); o.err != nil || t.broken != nil {
			continue // nobody waits for it any more, or it will be tried again
		}
		o.err = o.run(t)
		t.settle = t.settle || o.settle
	}
	if t.broken != nil {
		w.alone()
	}
}

// alone undoes the open group, which the database refused, and tries each of its changes by itself.
func (w *committer) alone() {
	if w.arrive(); w.open.broken == nil {
		return // lost together with the group before it
	}
	t := w.open
	if len(t.ops) <= 1 {
		w.lose(t.broken)
		return
	}
	w.undo()
	for _, o := range t.ops {
		w.apply([]*op{o})
		w.send()
		w.arrive()
	}
}

// send has the open group made durable, unless another one is on its way: in the redo file; or in the database, when somebody waits to read it or
// it is time.
func (w *committer) send() {
	t := w.open
	if w.sent != nil || w.lost {
		return
	}
	if w.line.settle(t); t.broken != nil {
		w.alone()
		return
	}
	if t.wrote {
		if err := w.db.failpoint("commit"); err != nil {
			w.lose(err)
			return
		}
	}
	switch {
	case !w.begun.IsZero() && (t.settle || w.redo.full() || time.Since(w.begun) >= w.settleAfter):
		if err := w.redo.settle(w.conn, !w.redo.empty()); err != nil {
			w.lose(err)
			return
		}
		w.begun = time.Time{}
		w.redo.reset()
		w.db.behind.Store(false)
	case t.wrote:
		r, err := w.redo.seal()
		if err != nil {
			w.lose(err)
			return
		}
		w.db.behind.Store(true)
		w.sent, w.open = t, &txn{committer: w}
		go func() { w.landed <- w.redo.write(r) }()
		return
	}
	w.open = &txn{committer: w}
	t.answer()
}

// land answers the group that was sent, once its record is durable.
func (w *committer) land(err error) {
	if err != nil {
		w.lose(err)
		return
	}
	t := w.sent
	w.sent = nil
	t.answer()
}

// arrive waits until nothing is on its way any more.
func (w *committer) arrive() {
	if w.sent != nil {
		w.land(<-w.landed)
	}
}

// answer tells everybody that the group is durable.
func (t *txn) answer() {
	for _, f := range t.after {
		f()
	}
	for _, s := range t.served {
		s.done <- nil
	}
	for _, o := range t.ops {
		o.done <- o.err
	}
}

// lose undoes the groups that nobody has been told of, and tells everybody why: also those who were refused, perhaps because of what is undone.
func (w *committer) lose(err error) {
	ops := w.open.ops
	if w.sent != nil {
		ops = append(w.sent.ops, ops...)
	}
	w.undo()
	for _, o := range ops {
		o.done <- err
	}
}

// undo has the files say what is: everything that was told, and nothing else. No record is on its way any more.
func (w *committer) undo() {
	if !w.begun.IsZero() {
		_, _ = w.conn.exec("ROLLBACK") // SQLite rolls back by itself on a full disk and the like; then there is nothing to undo
		w.begun = time.Time{}
	}
	for _, t := range []*txn{w.sent, w.open} {
		if t != nil {
			for _, s := range t.served {
				s.done <- errAgain
			}
		}
	}
	w.sent, w.open, w.lost = nil, &txn{committer: w}, true // and with it what earlier groups did in that transaction; the redo file has it
}

// load fills the memory from the files.
func (w *committer) load() error {
	w.recent = recent{}
	if w.lost {
		if err := w.redo.again(w.conn, w.redo.at); err != nil {
			return fmt.Errorf("do changes again: %w", err)
		}
		w.db.behind.Store(false)
	}
	if err := w.line.load(w.conn); err != nil {
		return fmt.Errorf("load queue: %w", err)
	}
	w.db.watch.are(w.line.jobs)
	if err := w.journal.load(w.conn); err != nil {
		return fmt.Errorf("load journal: %w", err)
	}
	if err := w.db.policy.load(w.conn); err != nil {
		return fmt.Errorf("load policy revision: %w", err)
	}
	w.lost = false
	return nil
}

// shut answers what is left and closes the files.
func (w *committer) shut() {
	for taken := true; taken; {
		select {
		case o := <-w.db.ops: // few and soon none: nobody sends once closing is closed
			w.take(o)
		default:
			taken = false
		}
		w.arrive()
		w.send()
	}
	w.arrive()
	w.line.close()
	w.db.watch.close()
	for range cap(w.db.readers) {
		(<-w.db.readers).close() // each is back soon: reads are short
	}
	w.db.err = w.leave()
	if err := w.db.lock.Close(); w.db.err == nil {
		w.db.err = err
	}
}

// leave has the database hold everything, and closes the files. Where it cannot, the redo file says the rest when the store is opened again.
func (w *committer) leave() error {
	var err error
	if !w.begun.IsZero() {
		err = w.redo.settle(w.conn, !w.redo.empty())
	}
	return errors.Join(err, w.redo.f.Close(), w.conn.close())
}
