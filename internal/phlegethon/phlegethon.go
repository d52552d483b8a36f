// Package phlegethon places sandboxes on nodes. Placement is a pure function of the nodes as they were last seen, so that it can be replayed
// and explained, and it never picks a node that could not run the sandbox at all.
package phlegethon

import (
	"fmt"
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
}

// Placement is where a sandbox goes.
type Placement struct {
	Index   int    // in the nodes given
	Node    string // its name
	Runtime string // what it must be run with to meet the demand; empty leaves it to the node
	// Full says that the node has no room at the moment: the sandbox waits in its queue.
	Full    bool
	Explain Explanation
}

// Explanation counts how the nodes that were looked at fared.
type Explanation struct {
	Seen, Fit                                 int // nodes looked at, and those with room
	Lost, Cordoned, NoRuntime, TooSmall, Busy int
	NoTemplate                                int
}

func (e Explanation) String() string {
	parts := make([]string, 0, 6)
	for _, p := range []struct {
		n    int
		what string
	}{{e.Fit, "fit"}, {e.Busy, "full"}, {e.Cordoned, "cordoned"}, {e.Lost, "not answering"}, {e.NoRuntime, "without such a runtime"}, {e.TooSmall, "too small"}, {e.NoTemplate, "without the template"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	if len(parts) == 0 {
		return "there are no nodes"
	}
	return fmt.Sprintf("of %d nodes: %s", e.Seen, strings.Join(parts, ", "))
}

// candidates is how many fitting nodes are compared. The best of a few at random spreads load nearly as well as the best of all
// (Mitzenmacher, "The power of two choices"), does not send everybody to the same node between two heartbeats, and
// looks at a handful of nodes where there are ten thousand.
const candidates = 4

// Place chooses a node for want. It looks at nodes in a random order until it has seen enough that fit, and takes the least loaded of
// them. Where none has room, it takes the least loaded that could ever hold the sandbox, which then waits there. Nobody to
// run it at all is tartarus.Unavailable when nodes that could are away or cordoned, tartarus.Unsupported when there are none.
func Place(nodes []hades.Node, want Want, now time.Time, rnd *rand.Rand) (Placement, error) {
	var ex Explanation
	best, waiting := -1, -1
	var bestLoad, waitingLoad float64
	for i := range order(len(nodes), rnd) {
		n := &nodes[i]
		ex.Seen++
		if !suits(n, want, now, &ex) {
			continue
		}
		load := loadWith(n, want.Resources)
		if load > 1 {
			ex.Busy++
			if waiting < 0 || load < waitingLoad {
				waiting, waitingLoad = i, load
			}
			continue
		}
		ex.Fit++
		if best < 0 || load < bestLoad {
			best, bestLoad = i, load
		}
		if ex.Fit == candidates {
			break
		}
	}
	full := best < 0
	if full {
		best = waiting
	}
	if best < 0 {
		return Placement{Index: -1, Explain: ex}, refusal(want, ex)
	}
	runtime, _ := runtimeFor(&nodes[best], want)
	return Placement{Index: best, Node: nodes[best].Name, Runtime: runtime, Full: full, Explain: ex}, nil
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
	if ex.Lost+ex.Cordoned+ex.NoTemplate > 0 || ex.Seen == 0 {
		e := tartarus.Errorf(tartarus.Unavailable, "no node can take %s now (%s)", what, ex)
		e.RetryAfter = 5 * time.Second // a heartbeat
		return e
	}
	return tartarus.Errorf(tartarus.Unsupported, "no node offers %s in this size (%s)", what, ex)
}
