package warm

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/phlegethon"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// workshop makes machines of nothing but time.
type workshop struct {
	take time.Duration
	size int64

	mu       sync.Mutex
	made     []*machine
	busy     bool
	broken   error
	replaced bool
	tries    int
}

type machine struct {
	of        *workshop
	ended     chan struct{}
	discarded int
}

func (w *workshop) Make(ctx context.Context, _ Kind) (*machine, error) {
	w.mu.Lock()
	broken := w.broken
	w.tries++
	w.mu.Unlock()
	if broken != nil {
		return nil, broken
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(w.take):
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	m := &machine{of: w, ended: make(chan struct{})}
	w.made = append(w.made, m)
	return m, nil
}

// tried counts attempts.
func (w *workshop) tried() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tries
}

func (w *workshop) Current(context.Context, Kind) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.replaced
}

func (m *machine) Memory() int64 { return m.of.size }

func (m *machine) Wait(ctx context.Context) error {
	select {
	case <-m.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *machine) Discard(context.Context) error {
	m.of.mu.Lock()
	defer m.of.mu.Unlock()
	m.discarded++
	return nil
}

const mb = 1 << 20

var tiny = Kind{Template: "tiny", Build: "1", Runtime: "gvisor", Resources: tartarus.Resources{VCPU: 1}}

// run gives a test a pool in a bubble of fake time, and checks at the end that every machine was either claimed or discarded, once.
func run(t *testing.T, change func(*Config[*machine]), f func(ctx context.Context, p *Pool[*machine], w *workshop)) {
	synctest.Test(t, func(t *testing.T) {
		w := &workshop{take: 100 * time.Millisecond, size: 10 * mb}
		cfg := Config[*machine]{
			Maker: w, Memory: 100 * mb, Keep: 2, Most: 50, Makers: 1, Log: slog.New(slog.DiscardHandler),
			Busy: func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.busy
			},
		}
		if change != nil {
			change(&cfg)
		}
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		f(ctx, p, w)
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if _, ok := p.Claim(ctx, tiny, ""); ok {
			t.Error("a closed pool gave a machine")
		}
	})
}

func TestClaim(t *testing.T) {
	run(t, nil, func(ctx context.Context, p *Pool[*machine], w *workshop) {
		if _, ok := p.Claim(ctx, tiny, ""); ok {
			t.Fatal("the first claim found a machine")
		}
		time.Sleep(time.Second)
		if got := p.Ready()[tiny]; got != 2 {
			t.Fatalf("%d ready, want the 2 that are kept", got)
		}
		m, ok := p.Claim(ctx, tiny, "")
		if !ok {
			t.Fatal("nothing to claim")
		}
		other := tiny
		other.Resources.VCPU = 2
		if _, ok := p.Claim(ctx, other, ""); ok {
			t.Fatal("a machine of another kind was given")
		}
		time.Sleep(time.Second)
		for _, have := range p.All() {
			if have == m {
				t.Fatal("a claimed machine is on the shelf again")
			}
		}
		if m.discarded != 0 {
			t.Fatal("a claimed machine was discarded")
		}
	})
}

func TestPoolFollowsABurst(t *testing.T) {
	run(t, func(c *Config[*machine]) { c.Memory = 1000 * mb }, func(ctx context.Context, p *Pool[*machine], w *workshop) {
		for range 20 {
			p.Claim(ctx, tiny, "")
		}
		time.Sleep(10 * time.Second)
		if got := p.Ready()[tiny]; got < 18 || got > 20 {
			t.Fatalf("%d ready after a burst of 20", got)
		}
		time.Sleep(time.Hour)
		if got := len(p.All()); got != 0 {
			t.Fatalf("%d ready an hour later", got)
		}
		for i, m := range w.made {
			if m.discarded != 1 {
				t.Fatalf("machine %d was discarded %d times", i, m.discarded)
			}
		}
	})
}

// Of two kinds that are asked for equally often, the hotter one wants more machines, and comes first where memory is short.
func TestHotterKindWantsMore(t *testing.T) {
	run(t, func(c *Config[*machine]) { c.Memory, c.Makers = 1000*mb, 8 }, func(ctx context.Context, p *Pool[*machine], w *workshop) {
		w.take = time.Second
		cool, hot := tiny, tiny
		cool.Build, hot.Build = "cool", "hot"
		for range 60 {
			p.Claim(ctx, cool, phlegethon.Cold)
			p.Claim(ctx, hot, phlegethon.Inferno)
			time.Sleep(time.Second)
		}
		p.mu.Lock()
		a, b := p.need(p.shelves[cool], time.Now()), p.need(p.shelves[hot], time.Now())
		p.mu.Unlock()
		if a.want < 2 || b.want < 2*a.want || b.rate < 2*a.rate {
			t.Fatalf("the cold kind needs %+v, the hot one %+v", a, b)
		}
		time.Sleep(5 * time.Second)
		if ready := p.Ready(); ready[hot] <= ready[cool] {
			t.Fatalf("ready: %v", ready)
		}
	})
}

func TestPoolKeepsToItsMemory(t *testing.T) {
	run(t, nil, func(ctx context.Context, p *Pool[*machine], w *workshop) {
		for range 40 {
			p.Claim(ctx, tiny, "")
		}
		time.Sleep(20 * time.Second)
		// Before the first machine is seen, three of the guessed size fit; then ten of the real one.
		if got := p.Ready()[tiny]; got != 10 {
			t.Fatalf("%d ready, 10 fit", got)
		}
	})
}

func TestNoMemoryIsOff(t *testing.T) {
	run(t, func(c *Config[*machine]) { c.Memory = 0 }, func(ctx context.Context, p *Pool[*machine], w *workshop) {
		p.Pin(ctx, tiny, 3)
		p.Claim(ctx, tiny, "")
		time.Sleep(time.Minute)
		if w.tried() != 0 {
			t.Fatal("a pool that is off made a machine")
		}
	})
}

func TestStartsComeFirst(t *testing.T) {
	run(t, nil, func(ctx context.Context, p *Pool[*machine], w *workshop) {
		w.mu.Lock()
		w.busy = true
		w.mu.Unlock()
		p.Claim(ctx, tiny, "")
		time.Sleep(patience - 10*time.Millisecond)
		if w.tried() != 0 {
			t.Fatal("a machine was made while sandboxes were started")
		}
		time.Sleep(2 * patience)
		if w.tried() == 0 {
			t.Fatal("an empty shelf waits for ever")
		}
	})
}

func TestWhatCannotBeMadeRests(t *testing.T) {
	run(t, nil, func(ctx context.Context, p *Pool[*machine], w *workshop) {
		w.mu.Lock()
		w.broken = errors.New("no image")
		w.mu.Unlock()
		p.Claim(ctx, tiny, "")
		time.Sleep(10 * time.Minute)
		if n := w.tried(); n < 5 || n > 20 {
			t.Fatalf("%d tries in ten minutes", n)
		}
		w.mu.Lock()
		w.broken = nil
		w.mu.Unlock()
		time.Sleep(2 * lastRetry)
		if p.Ready()[tiny] == 0 {
			t.Fatal("it did not recover")
		}
	})
}

func TestReplacedTemplateIsDrained(t *testing.T) {
	run(t, nil, func(ctx context.Context, p *Pool[*machine], w *workshop) {
		p.Pin(ctx, tiny, 3)
		time.Sleep(5 * time.Second)
		if got := p.Ready()[tiny]; got != 3 {
			t.Fatalf("%d ready, 3 are pinned", got)
		}
		w.mu.Lock()
		w.replaced = true
		w.mu.Unlock()
		time.Sleep(5 * time.Second)
		if got := len(p.All()); got != 0 {
			t.Fatalf("%d left", got)
		}
	})
}

func TestMachineThatEndsIsReplaced(t *testing.T) {
	run(t, nil, func(ctx context.Context, p *Pool[*machine], w *workshop) {
		p.Pin(ctx, tiny, 1)
		time.Sleep(5 * time.Second)
		dead := p.All()[0]
		close(dead.ended)
		time.Sleep(5 * time.Second)
		for _, m := range p.All() {
			if m == dead {
				t.Fatal("a machine that ended is on the shelf")
			}
		}
		if p.Ready()[tiny] != 2 || dead.discarded != 1 {
			t.Fatalf("%d ready, the dead one discarded %d times", p.Ready()[tiny], dead.discarded)
		}
	})
}

func TestKindsAreBounded(t *testing.T) {
	run(t, func(c *Config[*machine]) { c.Keep = 0 }, func(ctx context.Context, p *Pool[*machine], w *workshop) {
		for i := range 3 * maxKinds {
			k := tiny
			k.Resources.MemoryMB = int64(i)
			p.Claim(ctx, k, "")
		}
		if got := len(p.Ready()); got > maxKinds {
			t.Fatalf("%d kinds", got)
		}
	})
}
