package storetest

import (
	"fmt"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// slop is how much two clocks of one machine may disagree here, and a store may round times.
const slop = int64(5 * time.Millisecond)

// verb is what a client did to a job or a sandbox.
type verb string

const (
	didEnqueue  verb = "enqueue"
	didLease    verb = "lease"
	didRenew    verb = "renew"
	didComplete verb = "complete"
	didFail     verb = "fail"
	didCancel   verb = "cancel"
	didRead     verb = "read"
	didPut      verb = "put"
	didRemove   verb = "remove"
)

// outcome is how the store answered.
type outcome string

const (
	ok       outcome = "ok"
	conflict outcome = "conflict"
	absent   outcome = "absent"
	unknown  outcome = "unknown" // no answer: it may have happened, now or later
)

// call is what a client asked, answer what it got. Times count from the history's start.
type call struct {
	verb       verb
	id         string
	token      int64 // a job's lease
	retry      bool
	ttl        int64
	begin, end int64

	revision int64 // a sandbox's
	value    string
}

type answer struct {
	outcome  outcome
	state    acheron.State
	token    int64
	attempt  int
	result   string
	revision int64
}

func (c call) String() string {
	return fmt.Sprintf("%8.3f..%8.3f ms %s %s token=%d retry=%t revision=%d %s", float64(c.begin)/1e6, float64(c.end)/1e6, c.verb, c.id, c.token, c.retry, c.revision, c.value)
}

// jobState is a job as the model knows it.
type jobState struct {
	state   acheron.State // empty before Enqueue
	token   int64
	attempt int
	result  string
	ghost   bool  // leased under a token that no client got to know, because the answer was lost
	early   int64 // leased: its lease ends no earlier; waiting: it is handed out no earlier
	late    int64 // leased: its lease ends no later
}

// queueModel is one job's life. What happens by itself, the end of a lease, may happen at any time that the leases' times
// allow; the model follows all of them. ghosts allows leases that nobody heard of.
func queueModel(maxAttempts int, ghosts bool) porcupine.Model {
	m := jobModel{maxAttempts, ghosts}
	return (&porcupine.NondeterministicModel{
		Init: func() []any { return []any{jobState{}} },
		Step: func(s, in, out any) []any {
			var next []any
			for _, s := range m.reachable(s.(jobState), in.(call).end) {
				next = append(next, m.step(s, in.(call), out.(answer))...)
			}
			return next
		},
	}).ToModel()
}

type jobModel struct {
	maxAttempts int
	ghosts      bool
}

// reachable is s and what it may become by itself until end.
func (m jobModel) reachable(s jobState, end int64) []jobState {
	all := []jobState{s}
	for i := 0; i < len(all); i++ {
		s := all[i]
		switch {
		case s.state == acheron.Leased && end+slop >= s.early:
			s.ghost, s.late = false, 0
			s.state = acheron.Waiting
			if s.attempt >= m.maxAttempts {
				s.state = acheron.Dead
			}
			if all[i].ghost {
				s.token++ // at least
			}
			all = append(all, s)
		case s.state == acheron.Waiting && m.ghosts:
			s.state, s.ghost, s.early, s.late = acheron.Leased, true, 0, 1<<62
			s.attempt++
			all = append(all, s)
		}
	}
	return all
}

func (m jobModel) step(s jobState, c call, a answer) []any {
	if a.outcome == unknown {
		next := []any{s} // it did not happen
		a.outcome = ok
		if c.verb != didRead && c.verb != didLease {
			next = append(next, m.step(s, c, a)...)
		}
		return next
	}
	same := func(possible bool) []any {
		if possible {
			return []any{s}
		}
		return nil
	}
	ended := s.state.Ended()
	switch c.verb {
	case didRead:
		if a.outcome == absent {
			return same(s.state == "")
		}
		tokenFits := s.token == a.token || m.ghosts && a.token >= s.token
		return same(s.state == a.state && s.attempt == a.attempt && tokenFits && (s.state != acheron.Done || s.result == a.result))
	case didEnqueue:
		if a.outcome == conflict {
			return same(s.state != "")
		}
		return become(s.state == "", jobState{state: acheron.Waiting})
	case didLease:
		possible := s.state == acheron.Waiting && c.end+slop >= s.early && a.token > s.token && a.attempt == s.attempt+1
		return become(possible, jobState{state: acheron.Leased, token: a.token, attempt: a.attempt, early: c.begin + c.ttl, late: c.end + c.ttl})
	case didCancel:
		switch a.outcome {
		case absent:
			return same(s.state == "")
		case conflict:
			return same(ended)
		}
		possible := s.state != "" && !ended
		s.state = acheron.Cancelled
		return become(possible, s)
	}
	return m.report(s, c, a)
}

// report is what the holder of a lease says.
func (m jobModel) report(s jobState, c call, a answer) []any {
	holds := s.state == acheron.Leased && !s.ghost && s.token == c.token
	if a.outcome == conflict {
		return become(!holds, s)
	}
	holds = holds && c.begin <= s.late+slop
	switch c.verb {
	case didRenew:
		s.early, s.late = c.begin+c.ttl, c.end+c.ttl
	case didComplete:
		s.state, s.result = acheron.Done, c.value
	case didFail:
		s.state = acheron.Dead
		if c.retry && s.attempt < m.maxAttempts {
			s.state, s.early = acheron.Waiting, c.begin+int64(acheron.Backoff(s.attempt))
		}
	}
	return become(holds, s)
}

func become(possible bool, s any) []any {
	if possible {
		return []any{s}
	}
	return nil
}

// sandboxState is a sandbox as the model knows it.
type sandboxState struct {
	revision int64
	value    string
}

// registryModel is one sandbox: a register that is compared before it is set.
func registryModel() porcupine.Model {
	return (&porcupine.NondeterministicModel{
		Init: func() []any { return []any{sandboxState{}} },
		Step: func(state, in, out any) []any {
			s, c, a := state.(sandboxState), in.(call), out.(answer)
			var next []any
			if a.outcome == unknown {
				next = append(next, s)
				a.outcome, a.revision = ok, c.revision+1
			}
			switch {
			case c.verb == didRead && a.outcome == absent:
				return append(next, become(s.revision == 0, s)...)
			case c.verb == didRead:
				return append(next, become(s.revision == a.revision && s.value == a.result, s)...)
			case c.verb == didRemove:
				return append(next, sandboxState{})
			case a.outcome == conflict:
				return append(next, become(s.revision != c.revision, s)...)
			}
			return append(next, become(s.revision == c.revision && a.revision > s.revision, sandboxState{a.revision, c.value})...)
		},
	}).ToModel()
}
