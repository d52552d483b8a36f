package phlegethon

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

var now = time.Unix(1_000_000, 0)

func rnd(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

func node(name string, change func(*hades.Node)) hades.Node {
	n := hades.Node{
		Name: name, LeaseEnds: now.Add(time.Minute),
		Runtimes: map[string]hades.Runtime{"gvisor": {Tier: tartarus.TierUserKernel}},
		Capacity: tartarus.Resources{VCPU: 16, MemoryMB: 16 << 10, DiskMB: 100 << 10},
	}
	if change != nil {
		change(&n)
	}
	return n
}

var small = Want{Resources: tartarus.Resources{VCPU: 2, MemoryMB: 1024, DiskMB: 4096}}

func TestPlace(t *testing.T) {
	lost := func(n *hades.Node) { n.LeaseEnds = now }
	cordoned := func(n *hades.Node) { n.Cordoned = true }
	full := func(n *hades.Node) { n.Allocated = n.Capacity }
	firecracker := func(n *hades.Node) {
		n.Runtimes = map[string]hades.Runtime{"gvisor": {Tier: tartarus.TierUserKernel}, "firecracker": {Tier: tartarus.TierHardware}}
	}
	for name, tc := range map[string]struct {
		nodes   []hades.Node
		want    Want
		node    string
		runtime string
		full    bool
		err     tartarus.Kind
	}{
		"no nodes":                         {want: small, err: tartarus.Unavailable},
		"one":                              {nodes: []hades.Node{node("a", nil)}, want: small, node: "a"},
		"not the lost":                     {nodes: []hades.Node{node("a", lost), node("b", nil)}, want: small, node: "b"},
		"only a lost one":                  {nodes: []hades.Node{node("a", lost)}, want: small, err: tartarus.Unavailable},
		"not the cordoned":                 {nodes: []hades.Node{node("a", cordoned), node("b", nil)}, want: small, node: "b"},
		"only a cordoned one":              {nodes: []hades.Node{node("a", cordoned)}, want: small, err: tartarus.Unavailable},
		"not the full":                     {nodes: []hades.Node{node("a", full), node("b", nil)}, want: small, node: "b"},
		"not one with as many as it takes": {nodes: []hades.Node{node("a", func(n *hades.Node) { n.Sandboxes, n.Most = 2, 2 }), node("b", nil)}, want: small, node: "b"},
		"waits where all full":             {nodes: []hades.Node{node("a", full)}, want: small, node: "a", full: true},
		"too big for any":                  {nodes: []hades.Node{node("a", nil)}, want: Want{Resources: tartarus.Resources{MemoryMB: 1 << 20}}, err: tartarus.Unsupported},
		"unlimited node":                   {nodes: []hades.Node{node("a", func(n *hades.Node) { n.Capacity = tartarus.Resources{} })}, want: Want{Resources: tartarus.Resources{MemoryMB: 1 << 20}}, node: "a"},
		"runtime demanded":                 {nodes: []hades.Node{node("a", nil), node("b", firecracker)}, want: Want{Runtime: "firecracker"}, node: "b", runtime: "firecracker"},
		"runtime nobody has":               {nodes: []hades.Node{node("a", nil)}, want: Want{Runtime: "qemu"}, err: tartarus.Unsupported},
		"tier names a runtime":             {nodes: []hades.Node{node("a", nil), node("b", firecracker)}, want: Want{Tier: tartarus.TierHardware}, node: "b", runtime: "firecracker"},
		"strongest of the tier":            {nodes: []hades.Node{node("b", firecracker)}, want: Want{Tier: tartarus.TierUserKernel}, node: "b", runtime: "firecracker"},
		"runtime below tier":               {nodes: []hades.Node{node("b", firecracker)}, want: Want{Runtime: "gvisor", Tier: tartarus.TierHardware}, err: tartarus.Unsupported},
		"no runtime at all":                {nodes: []hades.Node{node("a", func(n *hades.Node) { n.Runtimes = nil })}, want: small, err: tartarus.Unsupported},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(20) {
				p, err := Place(tc.nodes, tc.want, now, rnd(seed))
				if tc.err != "" {
					if !tartarus.Is(err, tc.err) {
						t.Fatalf("got %+v, %v; want %s", p, err, tc.err)
					}
					continue
				}
				if err != nil || p.Node != tc.node || p.Runtime != tc.runtime || p.Full != tc.full || tc.nodes[p.Index].Name != p.Node {
					t.Fatalf("got %+v, %v", p, err)
				}
			}
		})
	}
}

// What no test case names must hold as well: the chosen node can run the sandbox, one with room is found if there is any, and the explanation adds up.
func TestPlaceProperties(t *testing.T) {
	tiers := []tartarus.Tier{tartarus.TierNone, tartarus.TierUserKernel, tartarus.TierEmulated, tartarus.TierHardware}
	runtimes := []string{"gvisor", "firecracker", "qemu"}
	rapid.Check(t, func(t *rapid.T) {
		nodes := make([]hades.Node, rapid.IntRange(0, 30).Draw(t, "nodes"))
		for i := range nodes {
			n := hades.Node{Name: fmt.Sprint("n", i), Runtimes: map[string]hades.Runtime{}}
			n.LeaseEnds = now.Add(time.Duration(rapid.IntRange(-1, 5).Draw(t, "lease")) * time.Second)
			n.Cordoned = rapid.IntRange(0, 4).Draw(t, "cordon") == 0
			n.Capacity = tartarus.Resources{VCPU: rapid.IntRange(0, 8).Draw(t, "cpu"), MemoryMB: int64(rapid.IntRange(0, 4).Draw(t, "mem")) * 1024}
			n.Allocated.VCPU = rapid.IntRange(0, 8).Draw(t, "used cpu")
			n.Allocated.MemoryMB = int64(rapid.IntRange(0, 4).Draw(t, "used mem")) * 1024
			n.Labels = map[string]string{}
			if h := rapid.SampledFrom([]Heat{"", "", Cold, Hot, "lukewarm"}).Draw(t, "pool"); h != "" {
				n.Labels[LabelHeat] = string(h)
			}
			if rapid.IntRange(0, 3).Draw(t, "typhon") == 0 {
				n.Labels[tartarus.LabelTyphon] = "true"
			}
			n.Warm = map[string]int{"build": rapid.IntRange(0, 2).Draw(t, "warm")}
			for _, r := range runtimes {
				if rapid.Bool().Draw(t, "has") {
					n.Runtimes[r] = hades.Runtime{Tier: rapid.SampledFrom(tiers).Draw(t, "tier")}
				}
			}
			nodes[i] = n
		}
		want := Want{
			Resources: tartarus.Resources{VCPU: rapid.IntRange(1, 4).Draw(t, "want cpu"), MemoryMB: int64(rapid.IntRange(1, 3).Draw(t, "want mem")) * 1024},
			Runtime:   rapid.SampledFrom([]string{"", "", "gvisor", "qemu"}).Draw(t, "want runtime"),
			Tier:      rapid.SampledFrom([]tartarus.Tier{"", "", tartarus.TierEmulated}).Draw(t, "want tier"),
			Heat:      rapid.SampledFrom([]Heat{"", Cold, Warm, Hot, Inferno}).Draw(t, "want heat"),
			Confined:  rapid.Bool().Draw(t, "confined"),
			Only:      rapid.SampledFrom([]string{"", "", "n0", "n3", "gone"}).Draw(t, "only"),
			Build:     rapid.SampledFrom([]string{"", "build", "other"}).Draw(t, "want build"),
		}
		could := func(n hades.Node) bool {
			rt := false
			for name, r := range n.Runtimes {
				rt = rt || (want.Runtime == "" || name == want.Runtime) && (want.Tier == "" || r.Tier.AtLeast(want.Tier))
			}
			return rt && (want.Only == "" || n.Name == want.Only) && want.Confined == (n.Labels[tartarus.LabelTyphon] != "") && n.Live(now) && !n.Cordoned && within(want.Resources, n.Capacity)
		}
		room := func(n hades.Node) bool {
			return could(n) && (n.Capacity.VCPU == 0 || n.Allocated.VCPU+want.Resources.VCPU <= n.Capacity.VCPU) &&
				(n.Capacity.MemoryMB == 0 || n.Allocated.MemoryMB+want.Resources.MemoryMB <= n.Capacity.MemoryMB)
		}
		seed := rapid.Uint64().Draw(t, "seed")
		p, err := Place(nodes, want, now, rnd(seed))
		again, _ := Place(nodes, want, now, rnd(seed))
		if p != again {
			t.Fatalf("the same question gave %+v and %+v", p, again)
		}
		ex := p.Explain
		if ex.Seen != ex.Fit+ex.Busy+ex.Lost+ex.Cordoned+ex.NoRuntime+ex.TooSmall || ex.Seen+ex.Apart > len(nodes) {
			t.Fatalf("explanation does not add up: %+v", ex)
		}
		switch {
		case err != nil:
			if slices.ContainsFunc(nodes, could) {
				t.Fatalf("refused (%v) though a node could take it", err)
			}
		case !could(nodes[p.Index]):
			t.Fatalf("placed on %+v, which cannot run it", nodes[p.Index])
		case p.Full == slices.ContainsFunc(nodes, room):
			t.Fatalf("full is %v, but a node with room: %v", p.Full, !p.Full)
		case !p.Full && !room(nodes[p.Index]):
			t.Fatalf("placed on %+v, which has no room", nodes[p.Index])
		case !p.Full && colder(nodes, p.Index, want.Heat, room):
			t.Fatalf("placed in pool %q, though one that comes before has room", p.Pool)
		case !p.Full && want.Build == "build" && nodes[p.Index].Warm["build"] == 0 && slices.ContainsFunc(nodes, func(n hades.Node) bool {
			return room(n) && poolOf(&n) == p.Pool && n.Warm["build"] > 0
		}):
			t.Fatalf("placed on %+v, though a machine waits elsewhere in its pool", nodes[p.Index])
		case want.Tier != "" && !nodes[p.Index].Runtimes[p.Runtime].Tier.AtLeast(want.Tier):
			t.Fatalf("runtime %q of %+v is below %s", p.Runtime, nodes[p.Index], want.Tier)
		}
	})
}

// colder reports whether a node with room is in a pool that comes before that of the chosen one.
func colder(nodes []hades.Node, chosen int, heat Heat, room func(hades.Node) bool) bool {
	rank := func(n hades.Node) int { return slices.Index(fallback[heat], poolOf(&n)) }
	if isTyphon(&nodes[chosen]) {
		return false
	}
	return slices.ContainsFunc(nodes, func(n hades.Node) bool { return !isTyphon(&n) && room(n) && rank(n) < rank(nodes[chosen]) })
}

// A thousand sandboxes on ten equal nodes end up spread, when each placement is seen by the next one.
func TestSpreads(t *testing.T) {
	nodes := make([]hades.Node, 10)
	for i := range nodes {
		nodes[i] = node(fmt.Sprint(i), func(n *hades.Node) { n.Capacity = tartarus.Resources{MemoryMB: 1 << 20} })
	}
	r := rnd(7)
	for range 1000 {
		p, err := Place(nodes, small, now, r)
		if err != nil {
			t.Fatal(err)
		}
		nodes[p.Index].Allocated.MemoryMB += small.Resources.MemoryMB
		nodes[p.Index].Sandboxes++
	}
	for _, n := range nodes {
		if n.Sandboxes < 95 || n.Sandboxes > 105 {
			t.Errorf("node %s has %d of 1000", n.Name, n.Sandboxes)
		}
	}
}

func TestOrderVisitsEachOnce(t *testing.T) {
	for n := range 50 {
		for seed := range uint64(20) {
			seen := make([]bool, n)
			for i := range order(n, rnd(seed)) {
				if seen[i] {
					t.Fatalf("n=%d seed=%d: %d twice", n, seed, i)
				}
				seen[i] = true
			}
			if slices.Contains(seen, false) {
				t.Fatalf("n=%d seed=%d: not all visited", n, seed)
			}
		}
	}
}

// Placements that are reserved one after the other never hand out more than a node has.
func TestTakeProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := make([]hades.Node, rapid.IntRange(1, 10).Draw(t, "nodes"))
		for i := range nodes {
			nodes[i] = node(fmt.Sprint("n", i), func(n *hades.Node) {
				n.Capacity = tartarus.Resources{VCPU: rapid.IntRange(1, 8).Draw(t, "cpu"), MemoryMB: int64(rapid.IntRange(1, 8).Draw(t, "mem")) * 512}
				n.Warm = map[string]int{"build": rapid.IntRange(0, 2).Draw(t, "warm")}
			})
		}
		f, r := NewFleet(nodes), rnd(rapid.Uint64().Draw(t, "seed"))
		for range rapid.IntRange(1, 60).Draw(t, "placements") {
			want := Want{Build: rapid.SampledFrom([]string{"", "build"}).Draw(t, "build"), Only: rapid.SampledFrom([]string{"", "n0"}).Draw(t, "only")}
			want.Resources = tartarus.Resources{VCPU: rapid.IntRange(1, 4).Draw(t, "want cpu"), MemoryMB: int64(rapid.IntRange(1, 4).Draw(t, "want mem")) * 512}
			p, err := f.Place(want, now, r)
			if err != nil || p.Full {
				continue
			}
			f.Take(p.Node, want)
			if n := f.Nodes[p.Index]; n.Allocated.VCPU > n.Capacity.VCPU || n.Allocated.MemoryMB > n.Capacity.MemoryMB || n.Warm["build"] < 0 {
				t.Fatalf("overfilled: %+v", n)
			}
		}
	})
}

// The worst case of the fleet that DESIGN names: ten thousand nodes, none of which fits until the last.
func BenchmarkPlace(b *testing.B) {
	fleet := func(busy bool) []hades.Node {
		nodes := make([]hades.Node, 10_000)
		for i := range nodes {
			nodes[i] = node(fmt.Sprint(i), func(n *hades.Node) {
				if busy {
					n.Allocated = n.Capacity
				}
			})
		}
		return nodes
	}
	for name, nodes := range map[string][]hades.Node{"room": fleet(false), "full": fleet(true)} {
		b.Run(name, func(b *testing.B) {
			r, f := rnd(1), NewFleet(nodes)
			for b.Loop() {
				if _, err := f.Place(small, now, r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestHeat(t *testing.T) {
	two := tartarus.Resources{VCPU: 2, MemoryMB: 512}
	past := func(cpu, life time.Duration, perSecond float64) Past {
		p := Past{Arrival: Demand{rate: perSecond}}
		p.End(cpu, life)
		return p
	}
	for name, tc := range map[string]struct {
		work Work
		want Heat
	}{
		"a short task":                {Work{Resources: two, Lifetime: 30 * time.Second}, Hot},
		"the usual":                   {Work{Resources: two, Lifetime: 5 * time.Minute}, Warm},
		"a day of waiting":            {Work{Resources: tartarus.Resources{VCPU: 1, MemoryMB: 512}, Lifetime: 24 * time.Hour}, Warm},
		"one that is known to idle":   {Work{Resources: two, Lifetime: time.Minute, Past: past(time.Second, time.Hour, 0)}, Cold},
		"one that is known to work":   {Work{Resources: two, Lifetime: time.Hour, Past: past(time.Hour, time.Hour, 0)}, Hot},
		"many that work":              {Work{Resources: two, Past: past(10*time.Second, 20*time.Second, 1)}, Inferno},
		"much memory":                 {Work{Resources: tartarus.Resources{VCPU: 1, MemoryMB: 16384}, Lifetime: 2 * time.Hour}, Hot},
		"a hint":                      {Work{Resources: two, Lifetime: 5 * time.Minute, Hint: Hot}, Hot},
		"a hint that goes too far":    {Work{Resources: two, Lifetime: 5 * time.Minute, Hint: Inferno}, Hot},
		"a hint that is none":         {Work{Resources: two, Lifetime: 5 * time.Minute, Hint: "lukewarm"}, Warm},
		"used more than there can be": {Work{Resources: two, Past: past(time.Hour, time.Minute, 0)}, Hot},
	} {
		t.Run(name, func(t *testing.T) {
			if got := DefaultThresholds().Of(tc.work); got.Heat != tc.want || got.Why == "" {
				t.Errorf("got %+v, want %s", got, tc.want)
			}
		})
	}
}

// The last sandboxes of a template count more than those long ago.
func TestPastForgets(t *testing.T) {
	var p Past
	for range 50 {
		p.End(time.Minute, time.Minute)
	}
	for range 20 {
		p.End(0, time.Minute)
	}
	if use, known := p.use(); !known || use > 0.02 {
		t.Errorf("it is known to use %g processors", use)
	}
}

// Confined sandboxes are refused where no node is for them, whatever else there is.
func TestConfined(t *testing.T) {
	typhon := func(n *hades.Node) { n.Labels = map[string]string{tartarus.LabelTyphon: "true"} }
	want := small
	want.Confined = true
	if _, err := Place([]hades.Node{node("a", nil)}, want, now, rnd(1)); !tartarus.Is(err, tartarus.Denied) {
		t.Errorf("without a node for it: %v", err)
	}
	if p, err := Place([]hades.Node{node("a", nil), node("b", typhon)}, want, now, rnd(1)); err != nil || p.Node != "b" {
		t.Errorf("got %+v, %v", p, err)
	}
	if _, err := Place([]hades.Node{node("b", typhon)}, small, now, rnd(1)); !tartarus.Is(err, tartarus.Unavailable) {
		t.Errorf("an ordinary one where all are for quarantine: %v", err)
	}
}

// What the control plane counts as room, the node does too, and the other way round.
func TestRoomIsWhatTheNodeSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		some := func(what string) tartarus.Resources {
			return tartarus.Resources{
				VCPU: rapid.IntRange(0, 9).Draw(t, what+" cpu"), MemoryMB: rapid.Int64Range(0, 9).Draw(t, what+" memory"), DiskMB: rapid.Int64Range(0, 9).Draw(t, what+" disk"),
			}
		}
		n := hades.Node{Capacity: some("capacity"), Allocated: some("allocated"), Sandboxes: rapid.IntRange(0, 9).Draw(t, "sandboxes"), Most: rapid.IntRange(0, 9).Draw(t, "most")}
		want := some("want")
		if room, lacks := loadWith(&n, want) <= 1, n.Lacks(want); room != (lacks == "") {
			t.Fatalf("%+v: load %g, lacks %q", n, loadWith(&n, want), lacks)
		}
	})
}

// A policy bounds what a hint does, never what is known of a sandbox.
func TestPolicyBoundsTheHint(t *testing.T) {
	two := tartarus.Resources{VCPU: 2, MemoryMB: 512}
	steps := func(n int) *int { return &n }
	wide := DefaultThresholds()
	wide.Hint = 3
	for name, tc := range map[string]struct {
		hint  Heat
		bound Bound
		want  Heat
		says  string // in the reason
	}{
		"no bound":           {Inferno, Bound{}, Inferno, "moves it from warm to inferno"},
		"no steps":           {Inferno, Bound{Steps: steps(0)}, Warm, "by 0 steps at the most"},
		"one step":           {Inferno, Bound{Steps: steps(1)}, Hot, "by 1 steps at the most"},
		"one step down":      {Cold, Bound{Steps: steps(1)}, Cold, "moves it from warm to cold"},
		"no steps down":      {Cold, Bound{Steps: steps(0)}, Warm, "by 0 steps"},
		"more than there is": {Inferno, Bound{Steps: steps(9)}, Inferno, ""},
		"less than none":     {Inferno, Bound{Steps: steps(-1)}, Warm, "by 0 steps"},
		"a ceiling":          {Inferno, Bound{Hottest: Hot}, Hot, "raise it to hot at the most"},
		"a ceiling below":    {Hot, Bound{Hottest: Cold}, Warm, "raise it to cold at the most"}, // what it is anyway, it stays
		"under a ceiling":    {Cold, Bound{Hottest: Warm}, Cold, ""},
		"an odd ceiling":     {Inferno, Bound{Hottest: "tepid"}, Inferno, ""},
		"both":               {Inferno, Bound{Steps: steps(2), Hottest: Hot}, Hot, "raise it to hot"},
	} {
		got := wide.Of(Work{Resources: two, Lifetime: 5 * time.Minute, Hint: tc.hint, Bound: tc.bound})
		if got.Heat != tc.want || !strings.Contains(got.Why, tc.says) || tc.says == "" && strings.Contains(got.Why, "policy") {
			t.Errorf("%s: %s, %s; want %s", name, got.Heat, got.Why, tc.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		work := Work{
			Resources: tartarus.Resources{VCPU: rapid.IntRange(1, 16).Draw(t, "cpu"), MemoryMB: rapid.Int64Range(128, 1<<17).Draw(t, "memory")},
			Lifetime:  time.Duration(rapid.IntRange(1, 7200).Draw(t, "seconds")) * time.Second,
		}
		plain := slices.Index(heats, DefaultThresholds().Of(work).Heat)
		n := rapid.IntRange(0, 3).Draw(t, "steps")
		work.Hint, work.Bound = rapid.SampledFrom(heats).Draw(t, "hint"), Bound{Steps: &n, Hottest: rapid.SampledFrom(heats).Draw(t, "hottest")}
		limits := DefaultThresholds()
		limits.Hint = rapid.IntRange(0, 3).Draw(t, "setting")
		got, most := slices.Index(heats, limits.Of(work).Heat), min(n, limits.Hint)
		if got < plain-most || got > plain+most || got > max(plain, slices.Index(heats, work.Bound.Hottest)) {
			t.Fatalf("%+v: from %s to %s", work, heats[plain], heats[got])
		}
	})
}
