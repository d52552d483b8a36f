// Package phlegethon places sandboxes on nodes. Placement is a pure function of the nodes as they were last seen, so that it can be replayed
// and explained, and it never picks a node that could not run the sandbox at all.
package phlegethon

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// Want is what a sandbox needs of a node.
type Want struct {
	Resources tartarus.Resources
	Runtime   string        // demanded; empty is any
	Tier      tartarus.Tier // weakest that will do; empty is any
	Build     string        // version of the template; a node that lists what it has must have it
	Heat      Heat          // chooses the pool; empty is that of nodes for any heat
	Confined  bool          // only on nodes with tartarus.LabelTyphon; others never go there
	Near      string        // node that has its snapshot
	Only      string        // node that alone has what it is made from; it must suit like any other
	Apart     string        // node that it must not go to: it comes from there
	CPU       string        // model of processor that it was snapshot on; empty is any
}

// Placement is where a sandbox goes.
type Placement struct {
	Index   int    // in the nodes given
	Node    string // its name
	Runtime string // what it must be run with to meet the demand; empty leaves it to the node
	Pool    Heat   // that the node belongs to; empty is any heat
	Warm    bool   // a machine waits there
	// Full says that the node has no room at the moment: the sandbox waits in its queue.
	Full    bool
	Explain Explanation
}

// Explanation counts how the nodes that were looked at fared.
type Explanation struct {
	Seen       int `json:"seen"` // nodes looked at
	Fit        int `json:"fit"`  // those with room
	Lost       int `json:"notAnswering"`
	Cordoned   int `json:"cordoned"`
	NoRuntime  int `json:"withoutRuntime"`
	TooSmall   int `json:"tooSmall"`
	Busy       int `json:"full"`
	NoTemplate int `json:"withoutTemplate"`
	Apart      int `json:"apart"` // on the other side of the quarantine
	OtherCPU   int `json:"otherProcessor"`
}

func (e Explanation) String() string {
	parts := make([]string, 0, 6)
	for _, p := range []struct {
		n    int
		what string
	}{
		{e.Fit, "fit"}, {e.Busy, "full"}, {e.Cordoned, "cordoned"}, {e.Lost, "not answering"}, {e.NoRuntime, "without such a runtime"},
		{e.TooSmall, "too small"}, {e.NoTemplate, "without the template"}, {e.Apart, "on the other side of the quarantine"},
		{e.OtherCPU, "with another processor"},
	} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	if len(parts) == 0 {
		return "there are no nodes"
	}
	return fmt.Sprintf("of %d nodes: %s", e.Seen+e.Apart, strings.Join(parts, ", "))
}

// Candidate is a node with room that was compared with others.
type Candidate struct {
	Node string  `json:"node"`
	Pool Heat    `json:"pool,omitempty"`
	Warm int     `json:"warm"` // machines of the build that wait there
	Near bool    `json:"near"` // it has the snapshot
	Load float64 `json:"load"` // share of its scarcest resource that would be handed out
}

// better reports whether a is to be preferred to b: by warm machines, then the snapshot, then the load.
func (a Candidate) better(b Candidate) bool {
	if (a.Warm > 0) != (b.Warm > 0) {
		return a.Warm > 0
	}
	if a.Near != b.Near {
		return a.Near
	}
	return a.Load < b.Load
}

// candidates is how many fitting nodes are compared. The best of a few at random spreads load nearly as well as the best of all
// (Mitzenmacher, "The power of two choices"), does not send everybody to the same node between two heartbeats, and
// looks at a handful of nodes where there are ten thousand.
const candidates = 4

// Fleet is the nodes as they were last seen, sorted into pools.
type Fleet struct {
	Nodes  []hades.Node
	pools  map[Heat][]int
	typhon []int            // apart from all others
	warm   map[string][]int // by build: where machines wait
	near   map[string]int   // by name
}

// NewFleet sorts nodes, which belong to the Fleet from then on.
func NewFleet(nodes []hades.Node) *Fleet {
	f := &Fleet{Nodes: nodes, pools: map[Heat][]int{}, warm: map[string][]int{}, near: make(map[string]int, len(nodes))}
	for i := range nodes {
		n := &nodes[i]
		f.near[n.Name] = i
		for build, ready := range n.Warm {
			if ready > 0 {
				f.warm[build] = append(f.warm[build], i)
			}
		}
		if isTyphon(n) {
			f.typhon = append(f.typhon, i)
			continue
		}
		pool := poolOf(n)
		f.pools[pool] = append(f.pools[pool], i)
	}
	return f
}

// Node returns a node as it is counted with.
func (f *Fleet) Node(name string) (hades.Node, bool) {
	i, ok := f.near[name]
	if !ok {
		return hades.Node{}, false
	}
	return f.Nodes[i], true
}

// isTyphon reports whether a node takes what is in quarantine, and nothing else.
func isTyphon(n *hades.Node) bool {
	v, ok := n.Labels[tartarus.LabelTyphon]
	return ok && v != "false"
}

// poolOf is the pool of a node. A label that is no heat is as good as none.
func poolOf(n *hades.Node) Heat {
	h, err := ParseHeat(n.Labels[LabelHeat])
	if err != nil {
		return ""
	}
	return h
}

// Place chooses a node among these. NewFleet saves sorting them each time.
func Place(nodes []hades.Node, want Want, now time.Time, rnd *rand.Rand) (Placement, error) {
	return NewFleet(nodes).Place(want, now, rnd)
}

// Place chooses a node for want. It goes through the pools in the order of want's heat, and through the nodes of each in a random order until
// it has seen enough that fit; of them it takes the best. Where none has room, it takes the least loaded that could ever hold the sandbox,
// which then waits there. Nobody to run it at all is tartarus.Unavailable when nodes that could are away or cordoned,
// tartarus.Unsupported when there are none.
func (f *Fleet) Place(want Want, now time.Time, rnd *rand.Rand) (Placement, error) {
	return f.place(want, now, rnd, func(Candidate) {})
}

// Explain is Place that lists what was compared.
func (f *Fleet) Explain(want Want, now time.Time, rnd *rand.Rand) (Placement, []Candidate, error) {
	seen := []Candidate{}
	p, err := f.place(want, now, rnd, func(c Candidate) { seen = append(seen, c) })
	return p, seen, err
}

func (f *Fleet) place(want Want, now time.Time, rnd *rand.Rand, note func(Candidate)) (Placement, error) {
	s := search{fleet: f, want: want, now: now, rnd: rnd, note: note, best: -1, waiting: -1}
	switch i, known := f.near[want.Only]; {
	case want.Only != "":
		if known && isTyphon(&f.Nodes[i]) != want.Confined {
			s.explain.Apart = 1
		} else if known {
			s.through([]int{i})
		}
	case want.Confined:
		s.explain.Apart = len(f.Nodes) - len(f.typhon)
		s.through(f.typhon)
	default:
		s.explain.Apart = len(f.typhon)
		for _, pool := range fallback[want.Heat] {
			s.through(f.pools[pool])
			if s.best >= 0 {
				break
			}
		}
	}
	at, full := s.best, s.best < 0
	if full {
		at = s.waiting
	}
	if at < 0 {
		return Placement{Index: -1, Explain: s.explain}, refusal(want, s.explain)
	}
	n := &f.Nodes[at]
	runtime, _ := runtimeFor(n, want)
	return Placement{Index: at, Node: n.Name, Runtime: runtime, Pool: poolOf(n), Warm: n.Warm[want.Build] > 0, Full: full, Explain: s.explain}, nil
}

// Take reserves a placement, so that the next one counts with it.
func (f *Fleet) Take(node string, want Want) {
	i, ok := f.near[node]
	if !ok {
		return
	}
	n := &f.Nodes[i]
	n.Sandboxes++
	n.Allocated.VCPU += want.Resources.VCPU
	n.Allocated.MemoryMB += want.Resources.MemoryMB
	n.Allocated.DiskMB += want.Resources.DiskMB
	if n.Warm[want.Build] > 0 {
		n.Warm = maps.Clone(n.Warm) // whoever listed the nodes may look at it
		n.Warm[want.Build]--
	}
}

// search is one placement under way.
type search struct {
	fleet *Fleet
	want  Want
	now   time.Time
	rnd   *rand.Rand
	note  func(Candidate)

	explain       Explanation
	best, waiting int // indexes of nodes; -1 for none yet
	choice        Candidate
	waitingLoad   float64
}

// through looks at the nodes of one pool: first at those that are better than others if they fit, then at some at random.
func (s *search) through(pool []int) {
	fit := 0
	looked := map[int]bool{}
	for _, i := range s.preferred(pool) {
		looked[i] = true
		if s.look(i) {
			fit++
		}
	}
	if fit > 0 {
		return
	}
	for at := range order(len(pool), s.rnd) {
		i := pool[at]
		if looked[i] {
			continue
		}
		if s.look(i) {
			fit++
		}
		if fit == candidates {
			return
		}
	}
}

// preferred are some nodes of a pool where a machine waits, and the one that has the snapshot.
func (s *search) preferred(pool []int) []int {
	var out []int
	if warm := s.fleet.warm[s.want.Build]; s.want.Build != "" && len(warm) > 0 {
		for at := range order(len(warm), s.rnd) {
			if i := warm[at]; s.fleet.Nodes[i].Warm[s.want.Build] > 0 && contains(pool, i) {
				out = append(out, i)
			}
			if len(out) == candidates {
				break
			}
		}
	}
	if i, ok := s.fleet.near[s.want.Near]; ok && s.want.Near != "" && contains(pool, i) && !slices.Contains(out, i) {
		out = append(out, i)
	}
	return out
}

// contains reports whether a pool, which is in order, has a node.
func contains(pool []int, i int) bool {
	_, ok := slices.BinarySearch(pool, i)
	return ok
}

// look compares one node with the best so far and reports whether it has room.
func (s *search) look(i int) bool {
	n := &s.fleet.Nodes[i]
	s.explain.Seen++
	load := loadWith(n, s.want.Resources)
	if load > 1 && s.waiting >= 0 && load >= s.waitingLoad { // no better than one that it could wait on: whatever else there is about it
		s.explain.Busy++
		return false
	}
	if !suits(n, s.want, s.now, &s.explain) {
		return false
	}
	if load > 1 {
		s.explain.Busy++
		if s.waiting < 0 || load < s.waitingLoad {
			s.waiting, s.waitingLoad = i, load
		}
		return false
	}
	s.explain.Fit++
	c := Candidate{Node: n.Name, Pool: poolOf(n), Warm: n.Warm[s.want.Build], Near: s.want.Near == n.Name, Load: load}
	s.note(c)
	if s.best < 0 || c.better(s.choice) {
		s.best, s.choice = i, c
	}
	return true
}

// order yields 0..n-1 once each, from a random start with a random stride that shares no divisor with n.
func order(n int, rnd *rand.Rand) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		if n == 0 {
			return
		}
		at, stride := rnd.IntN(n), 1
		if n > 2 {
			for stride = 1 + rnd.IntN(n-1); gcd(stride, n) != 1; stride++ {
			}
		}
		for range n {
			if !yield(at) {
				return
			}
			at = (at + stride) % n
		}
	}
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// suits reports whether n could run the sandbox when it has room, and counts why not.
func suits(n *hades.Node, want Want, now time.Time, ex *Explanation) bool {
	switch _, ok := runtimeFor(n, want); {
	case !ok:
		ex.NoRuntime++
	case want.CPU != "" && n.CPUModel != want.CPU:
		ex.OtherCPU++
	case want.Apart != "" && n.Name == want.Apart:
		ex.Cordoned++
	case !within(want.Resources, n.Capacity):
		ex.TooSmall++
	case !n.Live(now):
		ex.Lost++
	case n.Cordoned:
		ex.Cordoned++
	case want.Build != "" && n.Templates != nil && !slices.ContainsFunc(n.Templates, func(t hades.Template) bool { return t.Build == want.Build }):
		ex.NoTemplate++
	default:
		return true
	}
	return false
}

// runtimeFor finds the runtime of n that meets the demand. A demand for a tier must name one, lest the node's preference fall below it; of
// several the strongest is taken, then the first by name.
func runtimeFor(n *hades.Node, want Want) (string, bool) {
	if want.Runtime != "" {
		rt, ok := n.Runtimes[want.Runtime]
		return want.Runtime, ok && (want.Tier == "" || rt.Tier.AtLeast(want.Tier))
	}
	if want.Tier == "" {
		return "", len(n.Runtimes) > 0
	}
	found := ""
	for name, rt := range n.Runtimes {
		if !rt.Tier.AtLeast(want.Tier) {
			continue
		}
		if rt.Tier == tartarus.TierEmulated && want.Tier != tartarus.TierEmulated {
			continue // ten times slower than any other: only for those who ask for it
		}
		if found == "" || better(name, rt.Tier, found, n.Runtimes[found].Tier) {
			found = name
		}
	}
	return found, found != ""
}

func better(name string, tier tartarus.Tier, than string, thanTier tartarus.Tier) bool {
	if tier != thanTier {
		return tier.AtLeast(thanTier)
	}
	return name < than
}

// within reports whether r fits into c. A capacity of zero is not limited by the node.
func within(r, c tartarus.Resources) bool {
	return (c.VCPU == 0 || r.VCPU <= c.VCPU) && (c.MemoryMB == 0 || r.MemoryMB <= c.MemoryMB) && (c.DiskMB == 0 || r.DiskMB <= c.DiskMB)
}

// loadWith is the share of its scarcest resource that n would have handed out with r on top; over 1 there is no room. A node that limits
// nothing is compared by how many sandboxes it has.
func loadWith(n *hades.Node, r tartarus.Resources) float64 {
	load := float64(n.Sandboxes) * 1e-9
	share := func(used, more, of int64) {
		if of > 0 {
			load = max(load, float64(used+more)/float64(of))
		}
	}
	share(int64(n.Sandboxes), 1, int64(n.Most))
	share(int64(n.Allocated.VCPU), int64(r.VCPU), int64(n.Capacity.VCPU))
	share(n.Allocated.MemoryMB, r.MemoryMB, n.Capacity.MemoryMB)
	share(n.Allocated.DiskMB, r.DiskMB, n.Capacity.DiskMB)
	return load
}

func refusal(want Want, ex Explanation) *tartarus.Error {
	what := "this sandbox"
	if want.Runtime != "" {
		what = "runtime " + want.Runtime
	}
	if want.Tier != "" {
		what += " with isolation " + string(want.Tier) + " or better"
	}
	cannot, offers := "no node can take", "no node offers"
	if want.Only != "" {
		alone := "node " + want.Only + ", which alone has what it is made from,"
		cannot, offers = alone+" cannot take", alone+" does not offer"
	}
	if want.Confined && ex.Seen == 0 && (want.Only == "" || ex.Apart > 0) {
		unlabelled := "no node is labelled "
		if want.Only != "" {
			unlabelled = "node " + want.Only + ", which alone has what it is made from, is not labelled "
		}
		return &tartarus.Error{Kind: tartarus.Denied, Code: "quarantine", Message: "this sandbox may only run in quarantine, and " + unlabelled + tartarus.LabelTyphon}
	}
	if ex.Lost+ex.Cordoned+ex.NoTemplate+ex.OtherCPU > 0 || ex.Seen == 0 {
		e := tartarus.Errorf(tartarus.Unavailable, "%s %s now (%s)", cannot, what, ex)
		e.RetryAfter = 5 * time.Second // a heartbeat
		return e
	}
	return tartarus.Errorf(tartarus.Unsupported, "%s %s in this size (%s)", offers, what, ex)
}
