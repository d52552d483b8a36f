package sqlite

import (
	"context"

	"github.com/tartarus-sandbox/tartarus"
)

var errClosed = tartarus.Errorf(tartarus.Unavailable, "store is closed")

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
