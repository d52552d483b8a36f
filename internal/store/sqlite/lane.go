package sqlite

import "slices"

// lane is what waits for one node: jobs that can be handed out now, and Lease calls that found none. The tenants
// take turns: one hands out its oldest job and goes to the end of the round.
type lane struct {
	node    string
	tenants map[string]*share
	round   []*share
	waiters []*waiter
}

// share is a tenant's part of a lane, oldest first.
type share struct {
	tenant string
	jobs   []*entry
}

func (ln *lane) empty() bool { return len(ln.round) == 0 && len(ln.waiters) == 0 }

func (ln *lane) clear() {
	clear(ln.tenants)
	ln.round = nil
}

func byRow(e *entry, n int64) int {
	switch {
	case e.n < n:
		return -1
	case e.n > n:
		return 1
	}
	return 0
}

// add puts a job at its place, which is the end unless it comes back.
func (ln *lane) add(e *entry) {
	if e.inLane {
		return
	}
	s := ln.tenants[e.Tenant]
	if s == nil {
		s = &share{tenant: e.Tenant}
		ln.tenants[e.Tenant] = s
		ln.round = append(ln.round, s)
	}
	i := len(s.jobs)
	if i > 0 && s.jobs[i-1].n > e.n {
		i, _ = slices.BinarySearchFunc(s.jobs, e.n, byRow)
	}
	s.jobs = slices.Insert(s.jobs, i, e)
	e.inLane = true
}

// remove takes out a job that is in the lane.
func (ln *lane) remove(e *entry) {
	s := ln.tenants[e.Tenant]
	i, _ := slices.BinarySearchFunc(s.jobs, e.n, byRow)
	s.jobs = slices.Delete(s.jobs, i, i+1)
	e.inLane = false
	if len(s.jobs) == 0 {
		delete(ln.tenants, s.tenant)
		ln.round = slices.DeleteFunc(ln.round, func(o *share) bool { return o == s })
	}
}

// take gives away the next job, nil when there is none.
func (ln *lane) take() *entry {
	if len(ln.round) == 0 {
		return nil
	}
	s := ln.round[0]
	e := s.jobs[0]
	s.jobs[0] = nil
	s.jobs = s.jobs[1:]
	ln.round = ln.round[1:]
	if len(s.jobs) == 0 {
		delete(ln.tenants, s.tenant)
	} else {
		ln.round = append(ln.round, s)
	}
	e.inLane = false
	return e
}

// position is how many jobs will be taken before e, plus one. A job that waits out its backoff counts as if it were ready.
func (ln *lane) position(e *entry) int {
	mine, turn, before := ln.tenants[e.Tenant], 0, true
	if mine != nil {
		turn, _ = slices.BinarySearchFunc(mine.jobs, e.n, byRow)
	}
	p := turn + 1
	for _, s := range ln.round {
		switch {
		case s == mine:
			before = false
		case before:
			p += min(len(s.jobs), turn+1)
		default:
			p += min(len(s.jobs), turn)
		}
	}
	return p
}

// serve hands jobs to those who wait, in the order they came.
func (ln *lane) serve(t *txn, l *line) error {
	for len(ln.waiters) > 0 {
		w := ln.waiters[0]
		if len(ln.round) == 0 {
			// Nothing to hand out; at least the ones that gave up go.
			ln.waiters = slices.DeleteFunc(ln.waiters, func(w *waiter) bool { return w.state.Load() == gone })
			return nil
		}
		ln.waiters[0] = nil
		ln.waiters = ln.waiters[1:]
		if !w.state.CompareAndSwap(idle, served) {
			continue
		}
		t.served = append(t.served, w)
		for len(w.leases) < w.max {
			e := ln.take()
			if e == nil {
				break
			}
			lease, err := l.lease(t, e, w.ttl)
			if err != nil {
				return err
			}
			w.leases = append(w.leases, lease)
		}
	}
	return nil
}
