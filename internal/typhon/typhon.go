// Package typhon notices sandboxes that behave like an attempt to break out or to do harm, and counts it against their tenants and templates.
// What it goes by is measured from outside of the guest; a guest can earn strikes, and cannot lose any.
package typhon

import (
	"fmt"
	"time"
)

// Kind is what a strike is for.
type Kind string

// The kinds.
const (
	Flood       Kind = "egress-flood" // it went on sending what it may not send
	Scan        Kind = "port-scan"    // it tried many addresses and ports that it may not reach
	ProcessBomb Kind = "process-bomb" // it stayed at the limit of its processes
	MemoryBomb  Kind = "memory-bomb"  // it was killed because its memory was used up
	Broken      Kind = "broken"       // what isolates it was killed over a system call that is never made
)

// Strike is one thing that a sandbox did.
type Strike struct {
	Kind       Kind      `json:"kind"`
	At         time.Time `json:"at"`
	Detail     string    `json:"detail"` // one sentence for people
	Sandbox    string    `json:"sandbox"`
	Tenant     string    `json:"tenant"`
	TemplateID string    `json:"templateID"`
}

// Limits are from where on behaviour is a strike. Zero fields never strike.
type Limits struct {
	Packets int64 // refused ones in a minute
	Targets int   // different addresses and ports among them
}

// DefaultLimits are far from what programs do in good faith: one that has no network and keeps trying sends a few packets a second, and a
// package manager without its mirrors tries some dozen addresses.
func DefaultLimits() Limits { return Limits{Packets: 6000, Targets: 128} }

// span is what counts are held against. One kind strikes at most once in it.
const span = time.Minute

// bombReadings is how many readings in a row at the limit of processes make a bomb: a build that touches it does not stay there.
const bombReadings = 3

// Reading is what was measured of a sandbox, counted since it began.
type Reading struct {
	At      time.Time
	Packets uint64 // refused
	Targets int    // different ones that it was refused within about a minute
	Threads int64
	Limit   int64 // of Threads; 0 is none
}

// Watch follows one sandbox. It is not safe for concurrent use.
type Watch struct {
	limits  Limits
	began   Reading // of the minute that goes on
	crowded int     // readings in a row at the limit of threads
	struck  map[Kind]time.Time
}

// NewWatch watches for what goes over limits.
func NewWatch(l Limits) *Watch {
	return &Watch{limits: l, struck: map[Kind]time.Time{}}
}

// Read takes the next reading and returns what is new against the sandbox, with Kind, At and Detail.
func (w *Watch) Read(r Reading) []Strike {
	if w.began.At.IsZero() || r.Packets < w.began.Packets {
		w.began = r
	}
	var out []Strike
	strike := func(k Kind, format string, args ...any) {
		if last, ok := w.struck[k]; ok && r.At.Sub(last) < span {
			return
		}
		w.struck[k] = r.At
		out = append(out, Strike{Kind: k, At: r.At, Detail: fmt.Sprintf(format, args...)})
	}
	refused := r.Packets - w.began.Packets
	if w.limits.Packets > 0 && refused >= uint64(w.limits.Packets) {
		strike(Flood, "%d packets that it may not send, within %s", refused, max(r.At.Sub(w.began.At), time.Second).Round(time.Second))
		w.began = r
	}
	// Another sandbox may have had the same cable a moment ago: each target took a packet of its own.
	if n := min(uint64(max(r.Targets, 0)), r.Packets); w.limits.Targets > 0 && n >= uint64(w.limits.Targets) {
		strike(Scan, "%d different addresses and ports that it may not reach, within a minute", n)
	}
	if r.Limit > 0 && r.Threads >= r.Limit {
		w.crowded++
	} else {
		w.crowded = 0
	}
	if w.crowded >= bombReadings {
		strike(ProcessBomb, "%d threads, of at most %d", r.Threads, r.Limit)
	}
	if r.At.Sub(w.began.At) >= span {
		w.began = r
	}
	return out
}
