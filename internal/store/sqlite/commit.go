package sqlite

import (
	"context"
	"errors"
	"fmt"
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
		t.broken = t.db.failpoint("begin")
		if t.broken == nil {
			_, t.broken = t.conn.exec("BEGIN IMMEDIATE")
		}
		if t.broken != nil {
			return 0, t.broken
		}
		t.wrote = true
	}
	if t.broken = t.db.failpoint("write"); t.broken != nil {
		return 0, t.broken
	}
	n, err := t.conn.exec(q, args...)
	t.broken = err
	return n, err
}

// committer owns the connection that writes and the memory of the queue.
type committer struct {
	db   *DB
	conn *conn
	ops  []*op
	lost bool // what follows ran ahead of the file and must be read again

	line    *line
	journal journalRows
	recent  recent
}

// write hands a change to the committer and waits until it is durable. When ctx ends first the change may or may not happen.
func (db *DB) write(ctx context.Context, run func(*txn) error) error {
	o := &op{ctx: ctx, run: run, done: make(chan error, 1)}
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

// read lends a connection of its own to fn.
func (db *DB) read(ctx context.Context, fn func(*conn) error) error {
	select {
	case <-db.closing:
		return errClosed
	default:
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
		if w.lost {
			timer.Reset(100 * time.Millisecond) // a disk that fails is asked again, but not without pause
		} else if wait, ok := w.line.next(time.Now()); ok {
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
	if err == nil && t.wrote {
		if err = w.db.failpoint("commit"); err == nil {
			_, err = w.conn.exec("COMMIT")
		}
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
	if t.wrote {
		if _, e := w.conn.exec("ROLLBACK"); e != nil {
			// SQLite rolls back by itself on a full disk and the like; then there is nothing to undo.
			err = errors.Join(err, e)
		}
	}
	w.lost = true
	for _, s := range t.served {
		s.done <- errAgain
	}
	return err
}

// load fills the memory from the file.
func (w *committer) load() error {
	w.recent = recent{}
	if err := w.line.load(w.conn); err != nil {
		return fmt.Errorf("load queue: %w", err)
	}
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
	w.db.err = w.conn.close()
	if err := w.db.lock.Close(); w.db.err == nil {
		w.db.err = err
	}
}
