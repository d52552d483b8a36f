package phlegethon

import (
	"fmt"
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Heat says how much work a sandbox is expected to make.
type Heat string

// The heats, coolest first.
const (
	Cold    Heat = "cold"    // waits most of the time: an editor's backend, an agent that thinks elsewhere
	Warm    Heat = "warm"    // works now and then: a session of a notebook
	Hot     Heat = "hot"     // keeps a processor busy: a build, a test run
	Inferno Heat = "inferno" // keeps several busy, or its template does
)

// LabelHeat is the label of nodes that are for work of one heat. A node without it takes any.
const LabelHeat = "tartarus.io/phlegethon"

// MetaHeat is the metadata by which a caller hints at the heat of a sandbox.
const MetaHeat = "tartarus.io/phlegethon"

var heats = []Heat{Cold, Warm, Hot, Inferno}

// ParseHeat reads a heat.
func ParseHeat(s string) (Heat, error) {
	if !slices.Contains(heats, Heat(s)) {
		return "", tartarus.Errorf(tartarus.Invalid, "heat %.20q is none of cold, warm, hot, inferno", s)
	}
	return Heat(s), nil
}

// Thresholds turn processors kept busy into heat.
type Thresholds struct {
	Warm, Hot, Inferno float64 // from so many on
	// Hint is by how many steps a caller's hint may move the heat, either way.
	Hint int
}

// DefaultThresholds: a session that runs a command of a second every twenty is at 0.05 processors, and one that computes half of the time at
// 0.5. From 4 on, what comes of one template fills a small machine by itself.
func DefaultThresholds() Thresholds { return Thresholds{Warm: 0.05, Hot: 0.5, Inferno: 4, Hint: 1} }

// Validate checks that t makes sense.
func (t Thresholds) Validate() error {
	if !(0 < t.Warm && t.Warm < t.Hot && t.Hot < t.Inferno) {
		return tartarus.Errorf(tartarus.Invalid, "heat: thresholds must grow from above 0: warm %g, hot %g, inferno %g", t.Warm, t.Hot, t.Inferno)
	}
	if t.Hint < 0 || t.Hint >= len(heats) {
		return tartarus.Errorf(tartarus.Invalid, "heat: a hint can move it by 0 to %d steps, not %d", len(heats)-1, t.Hint)
	}
	return nil
}

// Work is what is known of a sandbox before it runs.
type Work struct {
	Resources tartarus.Resources
	Lifetime  time.Duration // asked for
	Past      Past          // of its template
	Hint      Heat          // of the caller; may be empty
	Bound     Bound         // of the hint, by policies
}

// Bound is how far policies let a hint go.
type Bound struct {
	Steps   *int // it moves the heat by so many at the most, beside Thresholds.Hint; nil says nothing
	Hottest Heat // it raises the heat to this at the most; empty is any
}

// moved is the step that a hint moves the heat to, and why no further.
func (t Thresholds) moved(at, hint int, b Bound) (to int, why string) {
	steps := t.Hint
	if b.Steps != nil && *b.Steps < steps {
		steps = max(0, *b.Steps)
		why = fmt.Sprintf("; a policy lets hints move it by %d steps at the most", steps)
	}
	to = min(max(hint, at-steps), at+steps)
	if most := slices.Index(heats, b.Hottest); most >= 0 && to > max(at, most) {
		to = max(at, most)
		why = fmt.Sprintf("; a policy lets hints raise it to %s at the most", b.Hottest)
	}
	if to == hint { // it did not need more
		why = ""
	}
	return to, why
}

// Heated is a heat with its arithmetic.
type Heated struct {
	Heat  Heat    `json:"heat"`
	Own   float64 `json:"own"`   // processors that one such sandbox keeps busy
	Crowd float64 `json:"crowd"` // processors that all that are created from its template keep busy
	Why   string  `json:"why"`
}

// Without a past, the share of its processors that a sandbox uses is guessed from how long it may live: what is asked for a minute has a task,
// and what is asked for hours waits for somebody.
const (
	shortLife, shortUse = time.Minute, 0.5
	longLife, longUse   = time.Hour, 0.05
	usualUse            = 0.2
)

// memoryPerProcessor is the memory of a node for each of its processors. A sandbox that takes more of it than of the processors keeps others
// from using these, which is counted as use at a quarter.
const memoryPerProcessor = 4096 * 4

// Of computes the heat: the larger of what one sandbox keeps busy and what its template does, against the thresholds, moved by the hint.
func (t Thresholds) Of(w Work) Heated {
	cpus := float64(max(w.Resources.VCPU, 1))
	var out Heated
	if use, known := w.Past.use(); known {
		out.Own, out.Why = min(use, cpus), fmt.Sprintf("its template's sandboxes keep %.2g processors busy", min(use, cpus))
	} else {
		share := usualUse
		switch {
		case w.Lifetime > 0 && w.Lifetime <= shortLife:
			share = shortUse
		case w.Lifetime >= longLife:
			share = longUse
		}
		out.Own, out.Why = cpus*share, fmt.Sprintf("%g processors for %s, of which %g is guessed to be used", cpus, w.Lifetime, share)
	}
	if m := float64(w.Resources.MemoryMB) / memoryPerProcessor; m > out.Own {
		out.Own, out.Why = m, fmt.Sprintf("%d MB of memory weigh like %.2g processors", w.Resources.MemoryMB, m)
	}
	out.Crowd = w.Past.crowd()
	busy := out.Own
	if out.Crowd > busy {
		busy, out.Why = out.Crowd, fmt.Sprintf("its template keeps %.2g processors busy", out.Crowd)
	}
	at := 0
	for i, from := range []float64{t.Warm, t.Hot, t.Inferno} {
		if busy >= from {
			at = i + 1
		}
	}
	if hint := slices.Index(heats, w.Hint); hint >= 0 && hint != at {
		moved, held := t.moved(at, hint, w.Bound)
		if moved != at {
			out.Why += fmt.Sprintf("; the caller's hint moves it from %s to %s", heats[at], heats[moved])
		}
		out.Why += held
		at = moved
	}
	out.Heat = heats[at]
	return out
}

// Past is what sandboxes of one template did lately, the later the heavier. The zero Past knows nothing.
type Past struct {
	Ended   int     // that it was learned from
	CPU     float64 // seconds of processor time of one, weighted exponentially
	Life    float64 // seconds that one ran, likewise
	Arrival Demand
}

// pastWeight is how much the last sandbox counts against all before it: about the last ten matter.
const pastWeight = 0.2

// End learns from a sandbox that has ended.
func (p *Past) End(cpu, life time.Duration) {
	if life <= 0 || cpu < 0 {
		return
	}
	p.Ended++
	if p.Ended == 1 {
		p.CPU, p.Life = cpu.Seconds(), life.Seconds()
		return
	}
	p.CPU += pastWeight * (cpu.Seconds() - p.CPU)
	p.Life += pastWeight * (life.Seconds() - p.Life)
}

// use is how many processors one sandbox keeps busy.
func (p Past) use() (processors float64, known bool) {
	if p.Ended == 0 || p.Life <= 0 {
		return 0, false
	}
	return p.CPU / p.Life, true
}

// crowd is how many processors those keep busy that arrive: arrivals per second, times seconds of processor time of each (Little's law).
func (p Past) crowd() float64 { return p.Arrival.rate * p.CPU }

// At is the past as it looks at now, when nothing more came.
func (p Past) At(now time.Time) Past {
	p.Arrival = p.Arrival.at(now)
	return p
}

// fallback is in which pools a sandbox of some heat looks for a node: first in its own, then among nodes for any heat, then where the others
// disturb it and are disturbed least. The empty pool is that of nodes without the label.
var fallback = map[Heat][]Heat{
	"":      {"", Warm, Cold, Hot, Inferno},
	Cold:    {Cold, "", Warm, Hot, Inferno},
	Warm:    {Warm, "", Cold, Hot, Inferno},
	Hot:     {Hot, "", Inferno, Warm, Cold},
	Inferno: {Inferno, "", Hot, Warm, Cold},
}
