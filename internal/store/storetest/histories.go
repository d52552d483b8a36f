package storetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// LongTests is the environment variable that makes the histories long: minutes instead of seconds.
const LongTests = "TARTARUS_LONG_TESTS"

// History says how a store is worked on while its history is recorded.
type History[T any] struct {
	Stores []T // the clients take them in turn: one, or several connections to the same store
	Rounds int // 0: one, or fifty with LongTests
	// Faulty allows answers to be lost: what a call without one did is unknown.
	Faulty bool
}

func (h History[T]) rounds() int {
	switch {
	case h.Rounds > 0:
		return h.Rounds
	case os.Getenv(LongTests) != "":
		return 50
	}
	return 1
}

func queueHistories(t *testing.T, s Subject[QueueStore]) {
	QueueHistories(t, History[QueueStore]{Stores: []QueueStore{s.Store}})
}

func registryHistories(t *testing.T, s Subject[hades.Registry]) {
	RegistryHistories(t, History[hades.Registry]{Stores: []hades.Registry{s.Store}})
}

// recorder gathers what clients did.
type recorder struct {
	start  time.Time
	faulty bool
	t      *testing.T

	mu   sync.Mutex
	ops  map[string][]porcupine.Operation
	lost int // Lease calls without an answer
}

func newRecorder(t *testing.T, faulty bool) *recorder {
	return &recorder{start: time.Now(), faulty: faulty, t: t, ops: map[string][]porcupine.Operation{}}
}

func (r *recorder) now() int64 { return int64(time.Since(r.start)) }

func (r *recorder) add(client int, c call, a answer) {
	end := c.end
	if a.outcome == unknown {
		end = 1 << 61 // it may yet happen: nothing comes after it
		c.end = end
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops[c.id] = append(r.ops[c.id], porcupine.Operation{ClientId: client, Input: c, Call: c.begin, Output: a, Return: end})
}

// record runs a call, notes it, and says whether it had an answer.
func (r *recorder) record(client int, c call, run func() (answer, error)) outcome {
	c.begin = r.now()
	a, err := run()
	c.end = r.now()
	switch {
	case err == nil:
		a.outcome = ok
	case tartarus.Is(err, tartarus.Conflict):
		a.outcome = conflict
	case tartarus.Is(err, tartarus.NotFound):
		a.outcome = absent
	case isContext(err) || r.faulty && tartarus.Is(err, tartarus.Unavailable):
		a.outcome = unknown
	default:
		r.t.Errorf("%s: %v", c, err)
		a.outcome = unknown
	}
	r.add(client, c, a)
	return a.outcome
}

func (r *recorder) check(m porcupine.Model) {
	r.mu.Lock()
	defer r.mu.Unlock()
	total := 0
	for id, ops := range r.ops {
		total += len(ops)
		switch result := porcupine.CheckOperationsTimeout(m, ops, 20*time.Second); result {
		case porcupine.Ok:
		case porcupine.Unknown:
			r.t.Logf("history of %s (%d operations) was too long to check", id, len(ops))
		default:
			var b strings.Builder
			for _, op := range ops {
				fmt.Fprintf(&b, "\n%2d %s -> %+v", op.ClientId, op.Input, op.Output)
			}
			r.t.Errorf("history of %s is not linearizable:%s", id, b.String())
		}
	}
	r.t.Logf("checked %d operations on %d objects", total, len(r.ops))
}

const (
	historyJobs     = 24
	historyHolders  = 6
	historyAttempts = 4
	historyTTL      = 60 * time.Millisecond
)

// QueueHistories has clients, and holders of which some are paused and some die, work on a queue, and checks that each job's
// history could have happened one operation after the other, within the times that leases and backoffs allow.
func QueueHistories(t *testing.T, h History[QueueStore]) {
	for round := range h.rounds() {
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		r := newRecorder(t, h.Faulty)
		ctx, cancel := context.WithCancel(patient(t))
		var holders sync.WaitGroup
		for i := range historyHolders {
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			holders.Go(func() {
				holder{r, h.Stores[i%len(h.Stores)], i, rnd}.run(ctx)
			})
		}
		each(historyJobs, func(i int) {
			q, client := h.Stores[i%len(h.Stores)], historyHolders+i
			rnd := rand.New(rand.NewPCG(seed, uint64(client)))
			jobClient{r, q, client, fmt.Sprintf("h%dj%d", round, i), rnd}.run(ctx)
		})
		cancel()
		holders.Wait()
		r.check(queueModel(historyAttempts, r.lost > 0))
	}
}

// jobClient enqueues a job and looks at it until it has ended.
type jobClient struct {
	*recorder
	q   QueueStore
	n   int
	id  string
	rnd *rand.Rand
}

func (c jobClient) run(ctx context.Context) {
	j := job(c.id)
	j.Tenant, j.MaxAttempts = fmt.Sprint("t", c.n%3), historyAttempts
	for {
		got := c.record(c.n, call{verb: didEnqueue, id: c.id}, func() (answer, error) {
			_, err := c.q.Enqueue(ctx, j)
			return answer{}, err
		})
		if got != unknown || ctx.Err() != nil {
			break
		}
	}
	cancelAt := c.rnd.IntN(60)
	for n := 0; ctx.Err() == nil; n++ {
		if n == cancelAt {
			c.record(c.n, call{verb: didCancel, id: c.id}, func() (answer, error) { return answer{}, c.q.Cancel(ctx, c.id) })
		}
		var j acheron.Job
		c.record(c.n, call{verb: didRead, id: c.id}, func() (a answer, err error) {
			j, err = c.q.Job(ctx, c.id)
			return answer{state: j.State, token: j.Token, attempt: j.Attempt, result: string(j.Result)}, err
		})
		if j.State.Ended() {
			return
		}
		pause(ctx, time.Duration(5+c.rnd.IntN(40))*time.Millisecond)
	}
	c.t.Errorf("job %s did not end", c.id)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// holder takes leases and does with each whatever holders do, good and bad.
type holder struct {
	*recorder
	q   QueueStore
	n   int
	rnd *rand.Rand
}

func (h holder) run(ctx context.Context) {
	for ctx.Err() == nil {
		begin := h.now()
		ls, err := h.q.Lease(ctx, "n1", 1+h.rnd.IntN(3), historyTTL)
		end := h.now()
		if err != nil {
			if !isContext(err) && !(h.faulty && tartarus.Is(err, tartarus.Unavailable)) {
				h.t.Errorf("lease: %v", err)
				return
			}
			h.mu.Lock()
			if h.faulty {
				h.lost++
			}
			h.mu.Unlock()
			continue
		}
		for _, l := range ls {
			h.add(h.n, call{verb: didLease, id: l.Job.ID, ttl: int64(historyTTL), begin: begin, end: end},
				answer{outcome: ok, token: l.Token, attempt: l.Job.Attempt})
		}
		for _, l := range ls {
			h.work(ctx, l)
		}
	}
}

func (h holder) work(ctx context.Context, l acheron.Lease) {
	report := call{id: l.Job.ID, token: l.Token, ttl: int64(historyTTL), value: fmt.Sprint("by ", l.Token)}
	complete := func() {
		report.verb = didComplete
		h.record(h.n, report, func() (answer, error) { return answer{}, h.q.Complete(ctx, l, []byte(report.value)) })
	}
	switch p := h.rnd.IntN(100); {
	case p < 25:
		complete()
	case p < 35: // a network that sends it twice
		complete()
		complete()
	case p < 55:
		report.verb, report.retry = didFail, p < 52
		h.record(h.n, report, func() (answer, error) { return answer{}, h.q.Fail(ctx, l, "unavailable: tried", report.retry) })
	case p < 70: // paused about as long as its lease lasts
		pause(ctx, historyTTL-2*time.Millisecond+time.Duration(h.rnd.IntN(4000))*time.Microsecond)
		complete()
	case p < 80: // paused for longer
		pause(ctx, 2*historyTTL)
		complete()
	case p < 90:
		for range 3 {
			pause(ctx, historyTTL/2)
			report.verb = didRenew
			h.record(h.n, report, func() (answer, error) { return answer{}, h.q.Renew(ctx, l, historyTTL) })
		}
		complete()
	default: // killed
	}
}

// RegistryHistories has clients compare and set the same few sandboxes, and checks each one's history.
func RegistryHistories(t *testing.T, h History[hades.Registry]) {
	const clients, sandboxes, steps = 8, 3, 40
	for round := range h.rounds() {
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		r := newRecorder(t, h.Faulty)
		ctx := patient(t)
		each(clients, func(i int) {
			c := registryClient{r, h.Stores[i%len(h.Stores)], i, rand.New(rand.NewPCG(seed, uint64(i)))}
			for range steps {
				c.step(ctx, fmt.Sprintf("h%ds%d", round, c.rnd.IntN(sandboxes)))
			}
		})
		r.check(registryModel())
	}
}

type registryClient struct {
	*recorder
	s   hades.Registry
	n   int
	rnd *rand.Rand
}

// step reads a sandbox and mostly writes it with the revision it read.
func (c registryClient) step(ctx context.Context, id string) {
	var sb tartarus.Sandbox
	seen := c.record(c.n, call{verb: didRead, id: id}, func() (a answer, err error) {
		sb, err = c.s.Sandbox(ctx, "acme", id)
		return answer{revision: sb.Revision, result: sb.Message}, err
	})
	switch {
	case seen == unknown || c.rnd.IntN(4) == 0:
		return
	case seen == absent:
		sb = sandbox(id)
	case c.rnd.IntN(10) == 0:
		c.record(c.n, call{verb: didRemove, id: id}, func() (answer, error) { return answer{}, c.s.RemoveSandbox(ctx, id) })
		return
	}
	sb.Message = fmt.Sprintf("client %d at %d", c.n, c.now())
	c.record(c.n, call{verb: didPut, id: id, revision: sb.Revision, value: sb.Message}, func() (answer, error) {
		rev, err := c.s.PutSandbox(ctx, sb)
		return answer{revision: rev}, err
	})
}
