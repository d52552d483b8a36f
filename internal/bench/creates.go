package bench

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/vmm/fake"
)

// side is one of the two servers that are measured in turn.
type side struct {
	clients clients

	mu   sync.Mutex
	took []time.Duration // of each request that went well

	total, cpu, store time.Duration
}

// perRequest is a part of the processor time of each request, in microseconds.
func (s *side) perRequest(d time.Duration) float64 {
	return round(float64(d.Microseconds()) / float64(max(1, len(s.took))))
}

func (s *side) rate() float64 { return rate(len(s.took), s.total) }

// measure sends n requests to one side. Check looks at the answers, one at a time.
func (p *plane) measure(ctx context.Context, s *side, n int, check func(status int, body []byte) error, rep *Report) {
	used, stored := processorTime(), p.redisTime()
	s.total += s.clients.load(ctx, n, func(status int, body []byte, took time.Duration, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err == nil {
			err = check(status, body)
		}
		if err != nil {
			rep.fail(err)
			return
		}
		s.took = append(s.took, took)
	})
	s.cpu, s.store = s.cpu+processorTime()-used, s.store+p.redisTime()-stored
}

// mostRounds is how often the sides change. Each round begins with nothing under way and ends when the last one is answered: with many, mostly that
// would be measured.
const mostRounds = 5

// creates measures creates, and then looks whether each that was acknowledged is there.
func (p *plane) creates(ctx context.Context, cfg ControlConfig) (*Report, error) {
	rep := &Report{What: "control", Runtime: fake.Name, N: cfg.N, Concurrency: cfg.Concurrency, Host: thisHost(), Extra: map[string]float64{}}
	floorURL, err := p.listen(ctx, http.HandlerFunc(answerAtOnce), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	ours, floor := &side{}, &side{}
	for s, to := range map[*side]string{ours: p.url + "/v2/sandboxes", floor: floorURL} {
		if s.clients, err = dial(ctx, to, p.secret, createBody, cfg.Concurrency); err != nil {
			return nil, err
		}
		p.closers = append(p.closers, s.clients.close)
	}
	ours.clients.load(ctx, warmUp(cfg), func(int, []byte, time.Duration, error) {})
	acknowledged := map[string]bool{}
	rounds := min(mostRounds, cfg.N)
	for round := range rounds { // interleaved, so that both see the same machine
		n := cfg.N*(round+1)/rounds - cfg.N*round/rounds
		p.measure(ctx, ours, n, func(status int, body []byte) error {
			id := sandboxID(body)
			if status != http.StatusCreated || id == "" {
				return fmt.Errorf("create: status %d: %.200s", status, body)
			}
			acknowledged[id] = true
			return nil
		}, rep)
		p.measure(ctx, floor, n, func(int, []byte) error { return nil }, rep)
		fmt.Fprintf(cfg.Progress, "round %d of %d: %.0f creates/s\n", round+1, rounds, ours.rate())
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	rep.times(ours.took)
	rep.PerSecond = ours.rate()
	// Of everything in this process, the clients too; unlike the rate it says nearly the same on a busy machine.
	rep.Extra["cpu_us_per_create"], rep.Extra["floor_cpu_us"] = ours.perRequest(ours.cpu), floor.perRequest(floor.cpu)
	if p.redis != 0 {
		rep.Extra["redis_cpu_us_per_create"] = ours.perRequest(ours.store)
	}
	rep.Floor = &Floor{How: "the same requests to a server that answers at once", P50: quantile(floor.took, 50), P99: quantile(floor.took, 99), PerSecond: floor.rate()}
	if rep.PerSecond > 0 {
		rep.Ratio = round(rep.Floor.PerSecond / rep.PerSecond)
	}
	if err := lost(ctx, p.registry, acknowledged); err != nil {
		return nil, err
	}
	for id := range acknowledged {
		rep.fail(fmt.Errorf("sandbox %s was acknowledged and is not there", id))
	}
	return rep, nil
}

// answerAtOnce is the least that an API can do.
func answerAtOnce(w http.ResponseWriter, r *http.Request) {
	const answer = `{"sandboxID":"i00000000000000000000","templateID":"benchtemplate0000000","clientID":"tartarus","envdVersion":"0.6.13","domain":null}`
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w, answer)
}
