package olympus

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/phlegethon"
)

// placer places on the list of nodes at hand, with what this replica has placed on them since added. Nobody waits for a newer list: it is read and
// sorted in the background.
type placer struct {
	roster *hades.Roster

	mu     sync.Mutex
	fleet  *phlegethon.Fleet // nil until there was a list
	placed []placed          // lately, oldest first
	rnd    *rand.Rand
}

func newPlacer(roster *hades.Roster) *placer {
	p := &placer{roster: roster, rnd: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
	roster.Tell(p.adopt)
	return p
}

// adopt goes over to a newer list.
func (p *placer) adopt(list hades.List) {
	fleet := phlegethon.NewFleet(slices.Clone(list.Nodes)) // what is placed is written into it
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fleet = fleet
	p.again(list.Read)
}

// place finds a node, or one to wait for. A refusal is only given on a list that is new.
func (p *placer) place(ctx context.Context, want phlegethon.Want, now time.Time) (phlegethon.Placement, error) {
	return p.find(ctx, want, now, func(phlegethon.Placement) bool { return true })
}

// replace is place for what waits already: where it would only wait elsewhere, nothing is taken, for it stays where it is.
func (p *placer) replace(ctx context.Context, want phlegethon.Want, now time.Time) (phlegethon.Placement, error) {
	return p.find(ctx, want, now, func(got phlegethon.Placement) bool { return !got.Full })
}

func (p *placer) find(ctx context.Context, want phlegethon.Want, now time.Time, take func(phlegethon.Placement) bool) (phlegethon.Placement, error) {
	list, err := p.roster.List(ctx, now)
	if err != nil {
		return phlegethon.Placement{}, err
	}
	got, err := p.pick(want, now, take)
	if err == nil || !list.Read.Before(now) {
		return got, err
	}
	if _, err := p.roster.Fresh(ctx, now); err != nil {
		return phlegethon.Placement{}, err
	}
	return p.pick(want, now, take)
}

// pick places on the list at hand and notes there what is taken.
func (p *placer) pick(want phlegethon.Want, now time.Time, take func(phlegethon.Placement) bool) (phlegethon.Placement, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	got, err := p.fleet.Place(want, now, p.rnd)
	if err == nil && take(got) {
		p.take(got.Node, want, now)
	}
	return got, err
}

// explain finds a node, says what was compared, and takes nothing.
func (p *placer) explain(ctx context.Context, want phlegethon.Want, now time.Time) (phlegethon.Placement, []phlegethon.Candidate, error) {
	if _, err := p.roster.Fresh(ctx, now); err != nil {
		return phlegethon.Placement{}, nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fleet.Explain(want, now, p.rnd)
}

// node is a node as the list has it that ask gives.
func (p *placer) node(ctx context.Context, name string, now time.Time, ask func(context.Context, time.Time) (hades.List, error)) (hades.Node, bool) {
	if _, err := ask(ctx, now); err != nil {
		return hades.Node{}, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fleet.Node(name)
}

// check reports whether the store answers and a node lives.
func (p *placer) check(ctx context.Context, within time.Duration, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	list, err := p.roster.Check(ctx, now)
	if err != nil {
		return &tartarus.Error{Kind: tartarus.Unavailable, Message: "the store does not answer", Err: err}
	}
	for _, n := range list.Nodes {
		if n.Live(now) {
			return nil
		}
	}
	return &tartarus.Error{Kind: tartarus.Unavailable, Message: "no node is registered and alive"}
}

// placed is a sandbox that was placed and that its node may not have spoken of yet.
type placed struct {
	node string
	want phlegethon.Want
	at   time.Time
}

const (
	// unheard is how long it takes at most until a node speaks of what it was given: a heartbeat, and the way to it. Until then a placement counts
	// beside what the node says; for a moment some count twice, which errs on the side of room.
	unheard = 6 * time.Second
	// mostPlaced bounds what is remembered; more than that in six seconds is placed on what is known.
	mostPlaced = 1 << 15
)

// take reserves a placement, on this list of nodes and on those that are read before the node speaks of it. The lock is held.
func (p *placer) take(node string, want phlegethon.Want, now time.Time) {
	p.fleet.Take(node, want)
	if len(p.placed) < mostPlaced {
		p.placed = append(p.placed, placed{node, want, now})
	}
}

// again reserves on a new list what may not be in it yet. The lock is held.
func (p *placer) again(now time.Time) {
	old := 0
	for old < len(p.placed) && now.Sub(p.placed[old].at) > unheard {
		old++
	}
	p.placed = slices.Delete(p.placed, 0, old)
	for _, r := range p.placed {
		p.fleet.Take(r.node, r.want)
	}
}
