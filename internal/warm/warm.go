// Package warm keeps pristine machines ready, so that a create claims one instead of making one. A machine is claimed once and never comes
// back, what is ready never takes more than the memory it was given, and whoever makes a sandbox comes before whoever
// fills a shelf.
package warm

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/phlegethon"
)

// Kind is what machines are alike in. A claim gets a machine of just the kind it asks for.
type Kind struct {
	Template, Build string
	Runtime         string
	Resources       tartarus.Resources
}

// Machine is one that waits to become a sandbox.
type Machine interface {
	// Memory is what it takes of the host, in bytes.
	Memory() int64
	// Wait returns nil once the machine has ended by itself, or ctx's error.
	Wait(ctx context.Context) error
	// Discard removes it from the host.
	Discard(ctx context.Context) error
}

// Maker makes machines.
type Maker[M Machine] interface {
	// Make makes a pristine machine. When it fails, or ctx ends, nothing of it is left.
	Make(ctx context.Context, k Kind) (M, error)
	// Current reports whether machines of the kind are still wanted: its template may be gone or replaced.
	Current(ctx context.Context, k Kind) bool
}

// Config sets up a pool.
type Config[M Machine] struct {
	Maker Maker[M]
	// Memory is how many bytes the machines that wait may take together. 0 switches the pool off.
	Memory int64
	// Keep is how many of a kind are kept ready while it is in use at all.
	Keep int
	// Most bounds how many of one kind wait.
	Most int
	// Makers is how many are made at once.
	Makers int
	// Busy reports whether sandboxes are being started: shelves are filled when they are not.
	Busy func() bool
	Log  *slog.Logger
}

func (c *Config[M]) validate() error {
	if c.Maker == nil || c.Busy == nil || c.Log == nil {
		return errors.New("warm: maker, busy and log are needed")
	}
	if c.Memory < 0 || c.Keep < 0 || c.Most < c.Keep || c.Makers < 1 {
		return errors.New("warm: memory and keep must not be negative, most at least keep, makers at least 1")
	}
	return nil
}

const (
	// maxKinds bounds how many kinds are kept track of; the one asked for longest ago gives way.
	maxKinds = 64
	// outOfUse is how long after the last request a kind is no longer in use.
	outOfUse = 15 * time.Minute
	// turnEvery is how often shelves are looked at when nothing happens: bursts are forgotten, templates replaced.
	turnEvery = time.Second
	// rest is how long after a claim nothing is made, because what claims a machine is about to use it; patience is how long a shelf
	// that is half empty waits for a quiet moment.
	rest, patience = 50 * time.Millisecond, 500 * time.Millisecond
	// makeTime bounds making one machine, discardTime removing one.
	makeTime, discardTime = time.Minute, 30 * time.Second
	// firstRetry and lastRetry are how long a kind rests that could not be made.
	firstRetry, lastRetry = time.Second, time.Minute
	// guessMemory and guessTake stand in for what the first machine of a kind will take: measured with gVisor and a Python template.
	guessMemory, guessTake = 32 << 20, 200 * time.Millisecond
)

// Pool keeps machines ready. All methods may be called concurrently.
type Pool[M Machine] struct {
	cfg   Config[M]
	poked chan struct{} // capacity 1: look at the shelves now

	mu      sync.Mutex
	shelves map[Kind]*shelf[M]
	claimed time.Time // when the last machine was
	making  int
	closed  bool

	work sync.WaitGroup // machines being made, watched or discarded
}

// shelf is the machines of one kind.
type shelf[M Machine] struct {
	kind   Kind
	pinned bool
	demand phlegethon.Demand
	ready  []*place[M] // oldest first
	making int
	least  int           // made up to this number in any case, set by Pin
	memory int64         // of one, as last seen
	take   time.Duration // to make one, as last seen
	hungry time.Time     // since when it is half empty
	fails  int
	retry  time.Time // not before, after a failure
	gone   bool      // no longer among the shelves
}

// place is one machine on a shelf.
type place[M Machine] struct {
	machine M
	unwatch context.CancelFunc
}

// New makes an empty pool.
func New[M Machine](cfg Config[M]) (*Pool[M], error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Pool[M]{cfg: cfg, poked: make(chan struct{}, 1), shelves: map[Kind]*shelf[M]{}}, nil
}

// Claim takes a ready machine for good, for a sandbox of some heat. It notes the demand whether or not there is one.
func (p *Pool[M]) Claim(ctx context.Context, k Kind, heat phlegethon.Heat) (m M, ok bool) {
	if p.cfg.Memory == 0 {
		return m, false
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return m, false
	}
	s := p.shelf(ctx, k)
	s.demand.Arrive(now, heat)
	p.claimed = now
	p.poke()
	if len(s.ready) == 0 {
		return m, false
	}
	first := s.ready[0]
	s.ready[0] = nil
	s.ready = s.ready[1:]
	first.unwatch()
	return first.machine, true
}

// Pin keeps at least n machines of the kind ready from now on, asked for or not, as far as the memory goes.
func (p *Pool[M]) Pin(ctx context.Context, k Kind, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.Memory == 0 || p.closed {
		return
	}
	s := p.shelf(ctx, k)
	s.pinned, s.least = true, min(n, p.cfg.Most)
	p.poke()
}

// Expect counts a machine of the kind as in use, though nobody asked for one yet.
func (p *Pool[M]) Expect(ctx context.Context, k Kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.Memory == 0 || p.closed {
		return
	}
	p.shelf(ctx, k).demand.Arrive(time.Now(), "")
	p.poke()
}

// Ready says how many machines of each kind wait.
func (p *Pool[M]) Ready() map[Kind]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[Kind]int, len(p.shelves))
	for k, s := range p.shelves {
		out[k] = len(s.ready)
	}
	return out
}

// All returns the machines that wait.
func (p *Pool[M]) All() []M {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []M
	for _, s := range p.shelves {
		for _, pl := range s.ready {
			out = append(out, pl.machine)
		}
	}
	return out
}

// shelf finds or makes the shelf of a kind. The lock is held.
func (p *Pool[M]) shelf(ctx context.Context, k Kind) *shelf[M] {
	if s, ok := p.shelves[k]; ok {
		return s
	}
	if len(p.shelves) >= maxKinds {
		p.dropOldest(ctx)
	}
	s := &shelf[M]{kind: k, memory: guessMemory, take: guessTake}
	p.shelves[k] = s
	return s
}

// dropOldest gives up the kind that was asked for longest ago. The lock is held.
func (p *Pool[M]) dropOldest(ctx context.Context) {
	var oldest *shelf[M]
	for _, s := range p.shelves {
		if !s.pinned && (oldest == nil || s.demand.Last().Before(oldest.demand.Last())) {
			oldest = s
		}
	}
	if oldest != nil {
		p.drop(ctx, oldest)
	}
}

// drop takes a shelf down and discards what is on it. The lock is held.
func (p *Pool[M]) drop(ctx context.Context, s *shelf[M]) {
	s.gone = true
	delete(p.shelves, s.kind)
	for _, pl := range s.ready {
		p.discard(ctx, pl)
	}
	s.ready = nil
}

// discard removes one machine in the background. The lock is held.
func (p *Pool[M]) discard(ctx context.Context, pl *place[M]) {
	pl.unwatch()
	p.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTime)
		defer cancel()
		if err := pl.machine.Discard(ctx); err != nil {
			p.cfg.Log.Error("warm machine not removed", "error", err)
		}
	})
}

// poke has the shelves looked at soon.
func (p *Pool[M]) poke() {
	select {
	case p.poked <- struct{}{}:
	default:
	}
}
