package redis

import (
	"context"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tartarus-sandbox/tartarus"
)

// batcher gathers the calls of many goroutines to one server, or in a cluster to one hash tag, which one server has, and sends them together:
// while some batches are under way the next one grows, so that a busy store costs few system calls and an idle one waits for nothing.
type batcher struct {
	db     *DB
	prefix string

	mu      sync.Mutex
	pending []*call
	flying  int
}

const (
	maxBatch = 128 // what one batch holds up Redis for: some milliseconds
	// maxBytes keeps a batch within the 16 KiB (PROTO_IOBUF_LEN) that Redis reads of a connection in one round, at whose end it syncs what it did: the rest of
	// a larger one waits for a round and a sync of its own, where that of another connection does not. A call more than fits is sent all the same.
	maxBytes   = 14 << 10
	maxFlying  = 8     // what a round takes together
	maxPending = 20000 // more callers than that are refused at once
)

// call is a command on its way. Once done is closed cmd or err is set.
type call struct {
	send  func(goredis.Pipeliner, *call) goredis.Cmder
	size  int  // about how many bytes it sends
	write bool // it waits for replicas, where that is asked for
	full  bool // the script itself is sent, because the server does not know its name
	cmd   goredis.Cmder
	err   error
	done  chan struct{}
	gone  <-chan struct{} // its caller has given up: not sent if it has not been yet
}

func (db *DB) batcher(prefix string) *batcher {
	if !db.cfg.Cluster {
		prefix = "" // one server has them all
	}
	if b, ok := db.batchers.Load(prefix); ok {
		return b.(*batcher)
	}
	b, _ := db.batchers.LoadOrStore(prefix, &batcher{db: db, prefix: prefix})
	return b.(*batcher)
}

// ask sends one command where prefix is, together with what others send there. Commands of different callers keep no order.
func (db *DB) ask(ctx context.Context, prefix string, c *call) (goredis.Cmder, error) {
	bounded, cancel := context.WithTimeout(ctx, db.cfg.Timeout)
	defer cancel()
	c.done, c.gone = make(chan struct{}), bounded.Done()
	if err := db.batcher(prefix).submit(ctx, c); err != nil {
		return nil, err
	}
	select {
	case <-c.done:
	case <-bounded.Done():
		return nil, db.trouble(ctx, bounded.Err())
	}
	if c.err == nil {
		c.err = c.cmd.Err()
	}
	if c.err != nil && c.err != goredis.Nil {
		return nil, db.trouble(ctx, c.err)
	}
	return c.cmd, c.err
}

func (b *batcher) submit(ctx context.Context, c *call) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.pending) >= maxPending {
		return tartarus.Errorf(tartarus.Unavailable, "redis: %d calls wait already", maxPending)
	}
	b.pending = append(b.pending, c)
	if b.flying == maxFlying {
		return nil
	}
	ctx = context.WithoutCancel(ctx) // it carries the calls of others too
	if !b.db.background(func() { b.fly(ctx) }) {
		return errClosed
	}
	b.flying++
	return nil
}

// fly sends batches until nothing is pending.
func (b *batcher) fly(ctx context.Context) {
	for {
		b.mu.Lock()
		batch := b.take()
		if len(b.pending) == 0 && len(batch) == 0 {
			b.flying--
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		b.send(ctx, batch)
	}
}

// take removes the next batch from what is pending, without the calls that nobody waits for any more.
func (b *batcher) take() []*call {
	n, size := 0, 0
	for n < min(len(b.pending), maxBatch) && size < maxBytes {
		size += b.pending[n].size
		n++
	}
	batch := make([]*call, 0, n)
	for _, c := range b.pending[:n] {
		select {
		case <-c.gone:
		default:
			batch = append(batch, c)
		}
	}
	clear(b.pending[:n])
	if b.pending = b.pending[n:]; len(b.pending) == 0 {
		b.pending = nil
	}
	return batch
}

// send exchanges one batch. What the server refused without doing it is sent again, by the script's text or to another server.
func (b *batcher) send(ctx context.Context, batch []*call) {
	ctx, cancel := context.WithTimeout(ctx, b.db.cfg.Timeout)
	defer cancel()
	for pause := 10 * time.Millisecond; len(batch) > 0; {
		server, err := b.db.server(ctx, b.prefix)
		if err == nil {
			b.exchange(ctx, server, batch)
		}
		var again []*call
		moved := false
		for _, c := range batch {
			switch {
			case err != nil:
				c.err = err
			case goredis.HasErrorPrefix(c.cmd.Err(), "NOSCRIPT") && !c.full:
				c.full = true
				again = append(again, c)
				continue
			case b.db.cfg.Cluster && elsewhere(c.cmd.Err()) && ctx.Err() == nil:
				moved = true
				again = append(again, c)
				continue
			}
			close(c.done)
		}
		if batch = again; moved {
			b.db.lost(ctx)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause *= 2
		}
	}
}

// exchange sends the commands and reads their answers, which say themselves whether they worked. Where replicas are to have
// the changes, one WAIT behind them all is enough.
func (b *batcher) exchange(ctx context.Context, server *goredis.Client, batch []*call) {
	pipe := server.Pipeline()
	writes := false
	for _, c := range batch {
		c.cmd = c.send(pipe, c)
		writes = writes || c.write
	}
	want := b.db.cfg.WaitReplicas
	if !writes || want == 0 {
		run(ctx, pipe)
		return
	}
	wait := pipe.Do(ctx, "WAIT", want, (b.db.cfg.Timeout / 2).Milliseconds())
	run(ctx, pipe)
	have, err := wait.Int64()
	if err == nil && have >= int64(want) {
		return
	}
	if err == nil {
		err = tartarus.Errorf(tartarus.Unavailable, "redis: %d of %d replicas have the change so far", have, want)
	}
	for _, c := range batch {
		if c.write && c.cmd.Err() == nil {
			c.err = err
		}
	}
}

// run executes a pipeline so that every command has its own error: the library leaves them without one when it could not
// even log in.
func run(ctx context.Context, pipe goredis.Pipeliner) {
	cmds, err := pipe.Exec(ctx)
	if err == nil {
		return
	}
	for _, c := range cmds {
		if c.Err() != nil {
			return
		}
	}
	for _, c := range cmds {
		c.SetErr(err)
	}
}
