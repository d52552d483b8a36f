package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus/client"
)

// rounds is how often ours and the floor take turns in a run with several at once.
const rounds = 4

// Create measures from the create request to the output of the first command, against the runtime doing the same by hand.
func Create(ctx context.Context, cfg Config) (rep *Report, err error) {
	r, err := open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close(ctx)) }()
	rep = r.report("create")
	m := &createRun{rig: r, rep: rep}
	m.ours(ctx, min(2, cfg.N)) // not counted: pages of the program and the image come into memory, and the pool learns what is asked for
	m.floor(ctx, min(2, cfg.N))
	if rep.Failed > 0 {
		return rep, nil
	}
	*m = createRun{rig: r, rep: rep}
	claimedBefore, _, _ := r.stack.Agent().Origins()
	turns := cfg.N
	if cfg.Concurrency > 1 {
		turns = min(rounds, max(1, cfg.N/cfg.Concurrency))
	}
	for i := range turns {
		n := cfg.N*(i+1)/turns - cfg.N*i/turns
		if cfg.Warm {
			if err := r.full(ctx, r.cfg.Daemon.Warm.Keep); err != nil {
				return nil, err
			}
		}
		m.ours(ctx, n)
		if cfg.Warm {
			if err := r.full(ctx, r.cfg.Daemon.Warm.Keep); err != nil {
				return nil, err
			}
		}
		m.floor(ctx, n)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if i%10 == 9 {
			fmt.Fprintf(r.cfg.Progress, "create: %d of %d\n", i+1, turns)
		}
	}
	m.finish()
	if cfg.Warm {
		claimed, _, _ := r.stack.Agent().Origins()
		rep.Extra["claimed"] = float64(claimed - claimedBefore)
	}
	return rep, nil
}

// createRun collects the times of one run.
type createRun struct {
	*rig
	rep *Report

	mu                   sync.Mutex
	all, made, first     []time.Duration // ours: in all, the create, the exec after it
	raw, rawNew, rawExec []time.Duration // by hand
	took, rawTook        time.Duration   // wall time of the rounds
}

// batch runs f n times, as many at once as configured, and returns the wall time of all.
func (m *createRun) batch(n int, f func() error) time.Duration {
	began := time.Now()
	hands := make(chan struct{}, m.cfg.Concurrency)
	var all sync.WaitGroup
	for range n {
		hands <- struct{}{}
		all.Go(func() {
			defer func() { <-hands }()
			if err := f(); err != nil {
				m.mu.Lock()
				m.rep.fail(err)
				m.mu.Unlock()
			}
		})
	}
	all.Wait()
	return time.Since(began)
}

func (m *createRun) ours(ctx context.Context, n int) {
	var mu sync.Mutex
	var guests []*client.Guest
	m.took += m.batch(n, func() error {
		began := time.Now()
		g, err := m.sandbox(ctx)
		if err != nil {
			return fmt.Errorf("create: %w", err)
		}
		mu.Lock()
		guests = append(guests, g)
		mu.Unlock()
		made := time.Now()
		if err := execEcho(ctx, agent(g)); err != nil {
			return fmt.Errorf("first exec: %w", err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.all, m.made, m.first = append(m.all, time.Since(began)), append(m.made, made.Sub(began)), append(m.first, time.Since(made))
		return nil
	})
	for _, g := range guests { // not part of what is measured
		if err := m.client.Kill(ctx, g.ID); err != nil {
			m.rep.fail(fmt.Errorf("kill: %w", err))
		}
	}
}

// hand makes what one turn of the floor begins with.
func (m *createRun) hand(ctx context.Context) (hand, error) {
	if m.inits() {
		return m.rouse(ctx)
	}
	return m.place(ctx)
}

// inits reports whether the floor begins with machines that are up, as a burst on a warm pool does. One create at a time is held
// against a cold start, which is what the pool saves.
func (m *createRun) inits() bool { return m.cfg.Warm && m.cfg.Concurrency > 1 }

func (m *createRun) floor(ctx context.Context, n int) {
	var places []hand
	for range n {
		p, err := m.hand(ctx)
		if err != nil {
			m.rep.fail(fmt.Errorf("floor: %w", err))
			break
		}
		places = append(places, p)
	}
	n = len(places)
	next := make(chan hand, n)
	for _, p := range places {
		next <- p
	}
	m.rawTook += m.batch(n, func() error {
		p := <-next
		began := time.Now()
		if err := p.start(ctx); err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		made := time.Now()
		if err := p.execEcho(ctx); err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.raw, m.rawNew, m.rawExec = append(m.raw, time.Since(began)), append(m.rawNew, made.Sub(began)), append(m.rawExec, time.Since(made))
		return nil
	})
	for _, p := range places {
		if err := p.end(ctx); err != nil {
			m.rep.fail(fmt.Errorf("end of floor: %w", err))
		}
	}
}

func (m *createRun) how() string {
	if m.inits() {
		return "init and exec of echo straight at the agent of machines that are up, same image, as many at once"
	}
	return "runsc container New, Start and first Execute of echo, same image, network namespace made before"
}

func (m *createRun) finish() {
	rep := m.rep
	rep.times(m.all)
	rep.PerSecond = rate(len(m.all), m.took)
	rep.Floor = &Floor{
		How: m.how(),
		P50: quantile(m.raw, 50), P99: quantile(m.raw, 99), PerSecond: rate(len(m.raw), m.rawTook),
	}
	rep.Ratio = round(rep.P50 / rep.Floor.P50)
	if m.cfg.Concurrency > 1 {
		rep.Ratio = round(rep.Floor.PerSecond / rep.PerSecond)
	}
	rep.Stages["create"], rep.Stages["first_exec"] = quantile(m.made, 50), quantile(m.first, 50)
	rep.Stages["floor_start"], rep.Stages["floor_exec"] = quantile(m.rawNew, 50), quantile(m.rawExec, 50)
}
