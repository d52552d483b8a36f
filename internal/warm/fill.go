package warm

import (
	"context"
	"time"
)

// Run keeps the shelves as they should be until ctx ends, then discards all that is on them. A pool that was run is closed.
func (p *Pool[M]) Run(ctx context.Context) error {
	if p.cfg.Memory > 0 {
		p.fill(ctx)
	}
	p.mu.Lock()
	p.closed = true
	for _, s := range p.shelves {
		p.drop(ctx, s)
	}
	p.mu.Unlock()
	p.work.Wait() // bounded: making and discarding each have their time
	return nil
}

func (p *Pool[M]) fill(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var looked time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.poked:
		case <-timer.C:
		}
		now := time.Now()
		if now.Sub(looked) >= turnEvery {
			looked = now
			p.weed(ctx, now)
		}
		timer.Reset(p.turn(ctx, now))
	}
}

// weed takes down what nobody asks for any more, and kinds whose template was replaced.
func (p *Pool[M]) weed(ctx context.Context, now time.Time) {
	p.mu.Lock()
	kinds := make([]Kind, 0, len(p.shelves))
	for k, s := range p.shelves {
		if !s.pinned && now.Sub(s.demand.Last()) > outOfUse {
			p.drop(ctx, s)
			continue
		}
		kinds = append(kinds, k)
	}
	p.mu.Unlock()
	for _, k := range kinds {
		if p.cfg.Maker.Current(ctx, k) || ctx.Err() != nil {
			continue
		}
		p.mu.Lock()
		if s, ok := p.shelves[k]; ok {
			p.drop(ctx, s)
		}
		p.mu.Unlock()
	}
}

// turn starts making what is missing, discards what is too much, and says when to look again.
func (p *Pool[M]) turn(ctx context.Context, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := turnEvery
	shelves := make([]*shelf[M], 0, len(p.shelves))
	needs := make([]need, 0, len(p.shelves))
	for _, s := range p.shelves {
		shelves = append(shelves, s)
		needs = append(needs, p.need(s, now))
	}
	quiet := now.Sub(p.claimed) >= rest && !p.cfg.Busy()
	for i, want := range allot(needs, p.cfg.Memory) {
		s := shelves[i]
		if over := len(s.ready) - want; over > 0 { // one a turn: what is too much now is often wanted soon
			last := s.ready[len(s.ready)-1]
			s.ready = s.ready[:len(s.ready)-1]
			p.discard(ctx, last)
		}
		missing := want - len(s.ready) - s.making
		if 2*(len(s.ready)+s.making) >= want {
			s.hungry = time.Time{}
		} else if s.hungry.IsZero() {
			s.hungry = now
		}
		if missing <= 0 || now.Before(s.retry) {
			continue
		}
		if !quiet && (s.hungry.IsZero() || now.Sub(s.hungry) < patience) {
			next = min(next, rest)
			continue
		}
		for ; missing > 0 && p.making < p.cfg.Makers; missing-- {
			p.start(ctx, s)
		}
	}
	return next
}

// need is what a shelf wants at now. The lock is held.
func (p *Pool[M]) need(s *shelf[M], now time.Time) need {
	want := max(s.demand.Ready(now, s.take), p.cfg.Keep, s.least)
	return need{want: min(want, p.cfg.Most), least: max(p.cfg.Keep, s.least), rate: s.demand.PerSecond(now) * s.demand.Stretch(), memory: s.memory}
}

// start makes one machine for a shelf in the background. The lock is held.
func (p *Pool[M]) start(ctx context.Context, s *shelf[M]) {
	s.making++
	p.making++
	p.work.Go(func() {
		began := time.Now()
		making, cancel := context.WithTimeout(ctx, makeTime)
		m, err := p.cfg.Maker.Make(making, s.kind)
		cancel()
		var memory int64
		if err == nil {
			memory = m.Memory()
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		s.making--
		p.making--
		defer p.poke()
		if err != nil {
			if ctx.Err() == nil {
				p.failed(s, time.Now(), err)
			}
			return
		}
		s.fails, s.retry = 0, time.Time{}
		s.take = (s.take + time.Since(began)) / 2
		if memory > 0 {
			s.memory = memory
		}
		p.put(ctx, s, m)
	})
}

// failed lets a kind rest that could not be made. The lock is held.
func (p *Pool[M]) failed(s *shelf[M], now time.Time, err error) {
	s.fails++
	wait := min(firstRetry<<min(s.fails-1, 10), lastRetry)
	s.retry = now.Add(wait)
	p.cfg.Log.Warn("no warm machine made", "template", s.kind.Template, "runtime", s.kind.Runtime, "retry", wait, "error", err)
}

// put shelves a machine, and takes it off again when it ends by itself. The lock is held.
func (p *Pool[M]) put(ctx context.Context, s *shelf[M], m M) {
	watch, cancel := context.WithCancel(context.WithoutCancel(ctx))
	pl := &place[M]{machine: m, unwatch: cancel}
	if p.closed || s.gone {
		p.discard(ctx, pl)
		return
	}
	s.ready = append(s.ready, pl)
	p.work.Go(func() {
		defer cancel()
		if m.Wait(watch) == nil {
			p.fell(ctx, s, pl)
		}
	})
}

// fell discards a machine that ended by itself, unless it was claimed meanwhile.
func (p *Pool[M]) fell(ctx context.Context, s *shelf[M], pl *place[M]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, have := range s.ready {
		if have == pl {
			s.ready = append(s.ready[:i:i], s.ready[i+1:]...)
			p.cfg.Log.Warn("warm machine ended by itself", "template", s.kind.Template, "runtime", s.kind.Runtime)
			p.discard(ctx, pl)
			p.poke()
			return
		}
	}
}
