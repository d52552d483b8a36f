package thanatos

import (
	"context"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Subject is a sandbox as its termination sees it. Each method is called at most once, in the order below, under a context that ends with the
// rung's time; it should return soon after. Uncordon takes the place of what has not been called when the termination is cancelled.
type Subject interface {
	// Cordon keeps new work away and records the termination.
	Cordon(ctx context.Context, e *tartarus.Ending) error
	// Tell asks everything in the guest to end and returns when it has, or says what has not.
	Tell(ctx context.Context, o Order, until time.Time) (Told, error)
	// Keep saves what the order wants kept, and names the snapshot.
	Keep(ctx context.Context, o Order) (snapshot string, err error)
	// Kill ends the machine and records the end. It returns when nothing is left.
	Kill(ctx context.Context, e *tartarus.Ending) error
	// Report tells people how it went.
	Report(ctx context.Context, e *tartarus.Ending, err error)
	// Uncordon lets work in again.
	Uncordon(ctx context.Context, err error) error
}

// Told is what came of telling the guest.
type Told struct {
	Alive int      // processes that did not end
	Notes []string // of hooks that failed
}

// Termination is one sandbox's way down the ladder. It is safe for concurrent use.
type Termination struct {
	nudged chan struct{} // capacity 1: somebody cancelled or hurried it
	done   chan struct{} // closed when Run has returned

	mu       sync.Mutex
	ladder   *Ladder
	told     Told
	snapshot string
	left     bool // Run returned before the end, because the node goes
}

// Begin makes a termination at now. Run carries it out.
func Begin(o Order, now time.Time) *Termination {
	return &Termination{nudged: make(chan struct{}, 1), done: make(chan struct{}), ladder: NewLadder(o, now)}
}

// Cancel calls it off. It returns before the sandbox takes work again; Wait returns after.
func (t *Termination) Cancel(now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ladder.Cancel(now); err != nil {
		return err
	}
	t.nudge()
	return nil
}

// Again adds another order.
func (t *Termination) Again(o Order, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ladder.Again(o, now)
	t.nudge()
}

func (t *Termination) nudge() {
	select {
	case t.nudged <- struct{}{}:
	default:
	}
}

// Ending describes how it stands.
func (t *Termination) Ending() *tartarus.Ending {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ending()
}

// ending is Ending for those who have the lock.
func (t *Termination) ending() *tartarus.Ending {
	e := t.ladder.Ending()
	e.Killed, e.Snapshot = t.told.Alive, t.snapshot
	return e
}

// Done is closed when it is over, was cancelled, or was left to the next agent.
func (t *Termination) Done() <-chan struct{} { return t.done }

// Err says how it went, once Done is closed: nil when nothing of the sandbox is left.
func (t *Termination) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left {
		return tartarus.Errorf(tartarus.Unavailable, "the node is going; the termination goes on when it is back")
	}
	return t.ladder.Err()
}

// Wait returns when it is over, with Err, or when ctx ends, which does not end the termination.
func (t *Termination) Wait(ctx context.Context) error {
	select {
	case <-t.done:
		return t.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run carries the termination out. When leave is closed before the kill has begun, it returns with the sandbox as it is; from the kill
// on it goes to the end. ctx is for values only: a termination belongs to nobody's request.
func (t *Termination) Run(ctx context.Context, s Subject, leave <-chan struct{}) {
	defer close(t.done)
	ctx = context.WithoutCancel(ctx)
	for {
		t.mu.Lock()
		rung, until := t.ladder.Rung(), t.ladder.Until()
		t.mu.Unlock()
		if rung.Final() {
			if rung == Cancelled {
				t.uncordon(ctx, s)
			}
			return
		}
		if !t.stand(ctx, s, rung, until, leave) {
			return
		}
	}
}

// stand does the work of one rung and returns when it is left. It reports whether to go on.
func (t *Termination) stand(ctx context.Context, s Subject, rung Rung, until time.Time, leave <-chan struct{}) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	worked := make(chan error, 1)
	go func() { worked <- t.work(ctx, s, rung, until) }()
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	if !rung.Cancellable() {
		leave = nil
	}
	for {
		select {
		case err := <-worked:
			t.event(rung, func(l *Ladder) { l.Done(time.Now(), err) })
			return true
		case now := <-timer.C:
			t.event(rung, func(l *Ladder) { l.Expire(now) })
		case <-t.nudged:
		case <-leave:
			cancel()
			<-worked
			t.mu.Lock()
			t.left = true
			t.mu.Unlock()
			return false
		}
		t.mu.Lock()
		now, next := t.ladder.Rung(), t.ladder.Until()
		t.mu.Unlock()
		if now != rung {
			cancel()
			<-worked // its answer comes too late to count
			return true
		}
		timer.Reset(time.Until(next))
	}
}

// event changes the ladder if it still stands on rung: of two events at once the first counts.
func (t *Termination) event(rung Rung, f func(*Ladder)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ladder.Rung() == rung {
		f(t.ladder)
	}
}

// work does what the rung is for.
func (t *Termination) work(ctx context.Context, s Subject, rung Rung, until time.Time) error {
	t.mu.Lock()
	order, ending, err := t.ladder.Order(), t.ending(), t.ladder.Err()
	t.mu.Unlock()
	switch rung {
	case Cordon:
		return s.Cordon(ctx, ending)
	case Tell:
		told, err := s.Tell(ctx, order, until)
		t.mu.Lock()
		t.told = told
		for _, n := range told.Notes {
			t.ladder.Note("%s", n)
		}
		t.mu.Unlock()
		return err
	case Keep:
		snapshot, err := s.Keep(ctx, order)
		t.mu.Lock()
		t.snapshot = snapshot
		t.mu.Unlock()
		return err
	case Kill:
		return s.Kill(ctx, ending)
	}
	s.Report(ctx, ending, err)
	return nil
}

// uncordon lets a sandbox live on.
func (t *Termination) uncordon(ctx context.Context, s Subject) {
	t.mu.Lock()
	cause := t.ladder.Err()
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	if err := s.Uncordon(ctx, cause); err != nil {
		t.mu.Lock()
		t.ladder.Note("uncordon: %v", err)
		t.mu.Unlock()
	}
}
