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

// nodesTTL is how old the list of nodes may be that sandboxes are placed by: a fifth of a heartbeat, so that it is hardly older than
// what the nodes last said.
const nodesTTL = time.Second

// placer keeps a recent list of the nodes, with what this replica has placed on them since added.
type placer struct {
	registry hades.Registry

	mu      sync.Mutex
	fleet   *phlegethon.Fleet // nil until it was read once
	fetched time.Time
	placed  []placed // lately, oldest first
	loading bool     // somebody is on the way for a newer list
	rnd     *rand.Rand
}

func newPlacer(registry hades.Registry) *placer {
	return &placer{registry: registry, rnd: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
}

// place finds a node. A refusal is only given on a list that is new.
func (p *placer) place(ctx context.Context, want phlegethon.Want, now time.Time) (phlegethon.Placement, error) {
	fresh, err := p.refresh(ctx, nodesTTL, now)
	if err != nil {
		return phlegethon.Placement{}, err
	}
	got, err := p.pick(want, now)
	if err == nil || fresh {
		return got, err
	}
	if _, err := p.refresh(ctx, 0, now); err != nil {
		return phlegethon.Placement{}, err
	}
	return p.pick(want, now)
}

// pick places on the list at hand and notes it there.
func (p *placer) pick(want phlegethon.Want, now time.Time) (phlegethon.Placement, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	got, err := p.fleet.Place(want, now, p.rnd)
	if err == nil {
		p.take(got.Node, want, now)
	}
	return got, err
}

// explain finds a node, says what was compared, and takes nothing.
func (p *placer) explain(ctx context.Context, want phlegethon.Want, now time.Time) (phlegethon.Placement, []phlegethon.Candidate, error) {
	if _, err := p.refresh(ctx, 0, now); err != nil {
		return phlegethon.Placement{}, nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fleet.Explain(want, now, p.rnd)
}

// refresh reads the list again if it is older than age and reports whether it did. While one caller reads, others go on with what there is;
// where the store fails, the old list serves, and its leases run out by themselves.
func (p *placer) refresh(ctx context.Context, age time.Duration, now time.Time) (fresh bool, err error) {
	p.mu.Lock()
	first := p.fleet == nil
	if now.Sub(p.fetched) < age && !first || p.loading && !first && age > 0 {
		p.mu.Unlock()
		return false, nil
	}
	p.loading = true
	p.mu.Unlock()

	nodes, err := p.registry.Nodes(ctx)

	p.mu.Lock()
	defer p.mu.Unlock()
	p.loading = false
	if err != nil {
		if first {
			return false, err
		}
		return false, nil
	}
	p.fleet, p.fetched = phlegethon.NewFleet(nodes), now
	p.again(now)
	return true, nil
}

// cordoned reports whether a node is known to take nothing new, though it lives.
func (p *placer) cordoned(ctx context.Context, node string, now time.Time) bool {
	if _, err := p.refresh(ctx, nodesTTL, now); err != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n, known := p.fleet.Node(node)
	return known && n.Cordoned && n.Live(now)
}

// forget makes the next placement read the list anew: an operator has just decided something about a node.
func (p *placer) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fetched = time.Time{}
}

// check reports whether the store answers and a node lives.
func (p *placer) check(ctx context.Context, within time.Duration, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	nodes, err := p.registry.Nodes(ctx)
	if err != nil {
		return &tartarus.Error{Kind: tartarus.Unavailable, Message: "the store does not answer", Err: err}
	}
	for _, n := range nodes {
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
