package redis

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// bells wake those in this process who wait for something that happens in Redis. A ring may come for nothing: whoever
// is woken looks for itself.
type bells struct {
	mu    sync.Mutex
	nodes map[string][]*bell // Lease calls, in the order they came
	jobs  map[string][]*bell // Await calls
	ours  map[string]*expectation
}

// expectation is a job that was enqueued in this process and not awaited to its end yet. Its end is heard, so that nobody need ask for it, and
// where it is this process that completes it, nobody need ask for its result either.
type expectation struct {
	job   acheron.Job
	ended bool
	ours  int  // calls of this process that are completing it and will tell what became of it, which mostly is heard before their answer
	final bool // job is as it ended
}

// mostOurs bounds the jobs that are remembered: those that nobody awaits stay. Who finds nothing asks Redis.
const mostOurs = 20_000

type bell struct{ ch chan struct{} }

func newBells() *bells {
	return &bells{nodes: map[string][]*bell{}, jobs: map[string][]*bell{}, ours: map[string]*expectation{}}
}

// expect remembers a job that is about to be enqueued.
func (b *bells) expect(j acheron.Job) {
	j.Payload = bytes.Clone(j.Payload)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.ours) >= mostOurs {
		clear(b.ours)
	}
	b.ours[j.ID] = &expectation{job: j}
}

// expected says what is known of a job that was enqueued here.
func (b *bells) expected(job string) (known expectation, ours bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.ours[job]; e != nil {
		return *e, true
	}
	return expectation{}, false
}

func (b *bells) forget(job string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.ours, job)
}

// completing is heard before this process completes a job, and completed afterwards: as says what became of the job, nil that it did not work.
func (b *bells) completing(job string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.ours[job]; e != nil {
		e.ours++
	}
}

func (b *bells) completed(job string, as func(*acheron.Job)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.ours[job]
	if e != nil {
		e.ours = max(0, e.ours-1)
	}
	if e != nil && as != nil {
		as(&e.job)
		e.ended, e.final = true, true
	}
	wakeAll(b.jobs[job]) // also where it did not work: what was heard meanwhile was not passed on
}

func (b *bells) add(m map[string][]*bell, name string) *bell {
	w := &bell{ch: make(chan struct{}, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	m[name] = append(m[name], w)
	return w
}

// leave takes w away. A ring that it has not answered goes to the next, and so does one that it has, where on says so.
func (b *bells) leave(m map[string][]*bell, name string, w *bell, on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	left := m[name][:0]
	for _, o := range m[name] {
		if o != w {
			left = append(left, o)
		}
	}
	clear(m[name][len(left):])
	if m[name] = left; len(left) == 0 {
		delete(m, name)
	}
	select {
	case <-w.ch:
		on = true
	default:
	}
	if on {
		wake(left)
	}
}

// wake rings the first that is not rung yet.
func wake(waiting []*bell) {
	for _, w := range waiting {
		select {
		case w.ch <- struct{}{}:
			return
		default:
		}
	}
}

func wakeAll(waiting []*bell) {
	for _, w := range waiting {
		select {
		case w.ch <- struct{}{}:
		default:
		}
	}
}

// work is heard when there are jobs of a tenant that had none: one waiter goes and looks.
func (b *bells) work(node string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	wake(b.nodes[node])
}

func (b *bells) ended(job string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.ours[job]; e != nil {
		e.ended = true
		if e.ours > 0 {
			return
		}
	}
	wakeAll(b.jobs[job])
}

// all is heard when something may have been missed.
func (b *bells) all() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.ours)
	for _, m := range []map[string][]*bell{b.nodes, b.jobs} {
		for _, waiting := range m {
			wakeAll(waiting)
		}
	}
}

// listen reads the queue's events from the stream and rings the bells. After a lost connection it goes on where it was, and
// everybody looks once, should that be trimmed already.
func (db *DB) listen(ctx context.Context) {
	last, away := "", false
	for ctx.Err() == nil {
		err := db.hear(ctx, &last)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			if away {
				db.cfg.Log.InfoContext(ctx, "redis answers again")
			}
			away = false
			continue
		}
		if !away {
			db.cfg.Log.WarnContext(ctx, "redis does not answer", "addrs", db.cfg.Addrs, "error", err)
		}
		away = true
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
		db.bells.all()
	}
}

func (db *DB) hear(ctx context.Context, last *string) error {
	prefix := db.tag("q")
	c, err := db.server(ctx, prefix)
	if err != nil {
		return err
	}
	stream := prefix + "events"
	if *last == "" {
		newest, err := c.XRevRangeN(ctx, stream, "+", "-", 1).Result()
		if err != nil {
			db.lost(ctx)
			return err
		}
		*last = "0-0"
		if len(newest) > 0 {
			*last = newest[0].ID
		}
		db.bells.all() // what came before is not told
	}
	// The answer comes within half of Timeout, news or not: a server that is gone is noticed as soon as by any other call.
	bounded, cancel := context.WithTimeout(ctx, db.cfg.Timeout)
	defer cancel()
	found, err := c.XRead(bounded, &goredis.XReadArgs{Streams: []string{stream, *last}, Count: 1000, Block: db.cfg.Timeout / 2}).Result()
	if err != nil && err != goredis.Nil {
		db.lost(ctx)
		return err
	}
	for _, s := range found {
		for _, m := range s.Messages {
			*last = m.ID
			if node, ok := m.Values["w"].(string); ok {
				db.bells.work(node)
			}
			if job, ok := m.Values["e"].(string); ok {
				db.bells.ended(job)
			}
		}
	}
	return nil
}

// lost has a cluster look again who is who.
func (db *DB) lost(ctx context.Context) {
	if c, ok := db.rdb.(*goredis.ClusterClient); ok {
		c.ReloadState(ctx)
	}
}

// timer knows when the queue's scripts must be run without anybody calling: a lease, a backoff or a deadline ends.
type timer struct {
	mu    sync.Mutex
	next  time.Time
	nudge chan struct{}
}

func newTimer() *timer { return &timer{nudge: make(chan struct{}, 1)} }

// within makes the timer go off in d at the latest.
func (t *timer) within(d time.Duration) {
	at := time.Now().Add(d)
	t.mu.Lock()
	sooner := at.Before(t.next)
	if sooner {
		t.next = at
	}
	t.mu.Unlock()
	if sooner {
		select {
		case t.nudge <- struct{}{}:
		default:
		}
	}
}

func (t *timer) set(d time.Duration) {
	t.mu.Lock()
	t.next = time.Now().Add(d)
	t.mu.Unlock()
}

func (t *timer) wait() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Until(t.next)
}

// maxSleep bounds how late a time is kept whose own process has died; others keep theirs to the millisecond.
const maxSleep = time.Second

// keepTime has Redis do what is due.
func (db *DB) keepTime(ctx context.Context) {
	const most = 200
	for ctx.Err() == nil {
		sleep := maxSleep/2 + rand.N(maxSleep/2) // replicas need not come all at once
		db.timer.set(sleep)
		v, err := db.run(ctx, tickScript, db.tag("q"), most)
		if err == nil {
			a := v
			if d := time.Duration(a.number(1)) * time.Microsecond; a.number(0) == most {
				continue
			} else if d >= 0 {
				db.timer.within(d)
			}
		}
		for wait := db.timer.wait(); wait > 0; wait = db.timer.wait() {
			select {
			case <-ctx.Done():
				return
			case <-db.timer.nudge:
			case <-time.After(wait):
			}
		}
	}
}
