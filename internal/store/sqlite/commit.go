package sqlite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// maxBatch bounds how many changes share a transaction, and so how long the first of them waits for the last:
// at 10 to 20 µs each about 10 ms.
const maxBatch = 512

var (
	errClosed = tartarus.Errorf(tartarus.Unavailable, "store is closed")
	errAgain  = errors.New("served in a transaction that did not happen")
)

// op is one change, or a question about the queue's memory, on its way through the committer.
type op struct {
	ctx context.Context
	// run does the change. It refuses by an error before it has changed anything; an error of the
	// database itself undoes the whole transaction, and then run may be called again.
	run  func(*txn) error
	err  error
	done chan error

	settle bool // it is not answered before readers see everything that came before it
}

// txn is the transaction that changes run in. It lives on the committer's goroutine.
type txn struct {
	*committer
	now    time.Time
	broken error     // the database's own error, which ends the transaction
	wrote  bool      // there is something to commit
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

// committer owns the connection that writes and the memory of the queue.
type committer struct {
	db    *DB
	conn  *conn
	redo  *redo
	ops   []*op
	begun time.Time // of the transaction that is open in the database; zero when none is
	lost  bool      // what follows ran ahead of the files and must be read again

	settleAfter time.Duration

	line    *line
	journal journalRows
	recent  recent
}

// settleAfter is how long the database may be behind the redo file: seldom enough that most pages are written once for many changes, and
// so often that a crash leaves little to do again.
const settleAfter = 100 * time.Millisecond

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

// write hands a change to the committer and waits until it is durable. When ctx ends first the change may or may not happen.
func (db *DB) write(ctx context.Context, run func(*txn) error) error {
	return db.submit(ctx, &op{ctx: ctx, run: run, done: make(chan error, 1)})
}

func (db *DB) submit(ctx context.Context, o *op) error {
	select {
	case <-db.closing:
		return errClosed
	default:
	}
	select {
	case db.ops <- o:
	case <-db.closing:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-db.done:
		select {
		case err := <-o.done:
			return err
		default: // sent while the committer took its last look
			return errClosed
		}
	}
}

// read lends a connection of its own to fn. What was acknowledged before, fn sees.
func (db *DB) read(ctx context.Context, fn func(*conn) error) error {
	select {
	case <-db.closing:
		return errClosed
	default:
	}
	if db.behind.Load() {
		if err := db.submit(ctx, &op{ctx: ctx, run: func(*txn) error { return nil }, done: make(chan error, 1), settle: true}); err != nil {
			return err
		}
	}
	select {
	case c := <-db.readers:
		defer func() { db.readers <- c }()
		if err := db.failpoint("read"); err != nil {
			return err
		}
		return fn(c)
	case <-db.closing:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (db *DB) failpoint(name string) error {
	if db.fail == nil {
		return nil
	}
	return db.fail(name)
}

// run is the committer's life: wait for changes or for a time in the queue, run what has gathered, answer.
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
		select {
		case o := <-w.db.ops:
			w.gather(o)
		case <-timer.C:
		case <-w.db.closing:
			w.shut()
			return
		}
		w.batch()
	}
}

// wait says how long nothing happens by itself.
func (w *committer) wait(now time.Time) (time.Duration, bool) {
	if w.lost {
		return 100 * time.Millisecond, true // a disk that fails is asked again, but not without pause
	}
	wait, ok := w.line.next(now)
	if left := w.begun.Add(w.settleAfter).Sub(now); !w.begun.IsZero() && (!ok || left < wait) {
		return max(0, left), true
	}
	return wait, ok
}

// gather takes what else waits already. It never waits itself: while one batch is being synced the next one grows.
func (w *committer) gather(first *op) {
	w.ops = append(w.ops[:0], first)
	for len(w.ops) < maxBatch {
		select {
		case o := <-w.db.ops:
			w.ops = append(w.ops, o)
		default:
			return
		}
	}
}

// batch runs the gathered changes in one transaction. Should the database refuse it, each is tried alone, so that
// one that cannot be stored does not fail its neighbours.
func (w *committer) batch() {
	err := w.attempt(w.ops)
	if err != nil && len(w.ops) > 1 {
		for i := range w.ops {
			if err := w.attempt(w.ops[i : i+1]); err != nil {
				w.ops[i].err = err
			}
		}
	} else if err != nil && len(w.ops) == 1 {
		w.ops[0].err = err
	}
	for i, o := range w.ops {
		o.done <- o.err
		w.ops[i] = nil
	}
	w.ops = w.ops[:0]
}

// attempt is one transaction. An error means that nothing of it happened.
func (w *committer) attempt(ops []*op) error {
	t := &txn{committer: w, now: time.Now()}
	err := w.apply(t, ops)
	if err == nil {
		err = w.keep(t, ops)
	}
	if err == nil {
		for _, f := range t.after {
			f()
		}
		for _, s := range t.served {
			s.done <- nil
		}
		return nil
	}
	if !w.begun.IsZero() {
		if _, e := w.conn.exec("ROLLBACK"); e != nil {
			// SQLite rolls back by itself on a full disk and the like; then there is nothing to undo.
			err = errors.Join(err, e)
		}
		w.begun = time.Time{}
	}
	w.lost = true // and with it what earlier groups did in that transaction; the redo file has it
	for _, s := range t.served {
		s.done <- errAgain
	}
	return err
}

// keep makes durable what a group of changes did: in the redo file; or in the database, when somebody waits to read it or it is time.
func (w *committer) keep(t *txn, ops []*op) error {
	if t.wrote {
		if err := w.db.failpoint("commit"); err != nil {
			return err
		}
	}
	if w.begun.IsZero() {
		return nil
	}
	if w.redo.full() || t.now.Sub(w.begun) >= w.settleAfter || slices.ContainsFunc(ops, func(o *op) bool { return o.settle }) {
		if err := w.redo.settle(w.conn, !w.redo.empty()); err != nil {
			return err
		}
		w.begun = time.Time{}
		w.redo.reset()
		w.db.behind.Store(false)
		return nil
	}
	if !t.wrote {
		return nil
	}
	if err := w.redo.write(); err != nil {
		return err
	}
	w.db.behind.Store(true)
	return nil
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
	return nil
}

func (w *committer) apply(t *txn, ops []*op) error {
	if w.lost {
		if err := w.load(); err != nil {
			return err
		}
		w.lost = false
	}
	if w.line.due(t); t.broken != nil {
		return t.broken
	}
	for _, o := range ops {
		if o.err = o.ctx.Err(); o.err != nil {
			continue // nobody waits for it any more
		}
		if o.err = o.run(t); t.broken != nil {
			return t.broken
		}
	}
	w.line.settle(t)
	return t.broken
}

// shut answers what is left and closes the files.
func (w *committer) shut() {
	for taken := true; taken; {
		select {
		case o := <-w.db.ops: // few and soon none: nobody sends once closing is closed
			w.gather(o)
			w.batch()
		default:
			taken = false
		}
	}
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
