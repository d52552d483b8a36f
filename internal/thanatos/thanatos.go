// Package thanatos ends sandboxes gracefully, and empties nodes: a ladder of named rungs, from "nothing new" to "what is still alive".
// Every rung has a deadline, none is stood on twice, and until the kill a termination can be cancelled.
//
//	cordon ──► tell ──► keep ──► kill ──► report ──► over
//	   │         │        │        ▲
//	   └─────────┴────────┴──► cancelled     (each rung is left when its work is done, has failed, or its time is up)
//
// The ladder is a pure state machine: events come in with the time at which they happen. Termination is what drives one with real timers.
package thanatos

import (
	"fmt"
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Rung is a step of the ladder.
type Rung string

// The rungs, in order, and the two ends.
const (
	Cordon    Rung = "cordon"    // nothing new reaches the sandbox, and the wish is recorded
	Tell      Rung = "tell"      // hooks run in the guest, then SIGTERM goes to everyone there
	Keep      Rung = "keep"      // a checkpoint is taken and the log exported, where asked
	Kill      Rung = "kill"      // the machine is ended, whatever runs in it
	Report    Rung = "report"    // what was still alive is said
	Over      Rung = "over"      // nothing of the sandbox is left
	Cancelled Rung = "cancelled" // the sandbox runs on
)

// Rungs lists all of them.
var Rungs = []Rung{Cordon, Tell, Keep, Kill, Report, Over, Cancelled}

// edges is the one table of allowed steps.
var edges = map[Rung][]Rung{
	Cordon: {Tell, Keep, Kill, Cancelled},
	Tell:   {Keep, Kill, Cancelled},
	Keep:   {Kill, Cancelled},
	Kill:   {Report},
	Report: {Over},
}

// Final reports whether nothing follows r.
func (r Rung) Final() bool { return len(edges[r]) == 0 }

// Cancellable reports whether a termination on r can be called off.
func (r Rung) Cancellable() bool { return slices.Contains(edges[r], Cancelled) }

// Order is a termination as it will be carried out.
type Order struct {
	Reason     tartarus.Reason
	Message    string
	Grace      time.Duration // how long the guest has; 0 does not tell it
	Checkpoint bool
	ExportLogs bool
}

// The time that each rung has, beside Tell, which has the order's grace.
const (
	cordonTime     = 2 * time.Second        // a journal record and a report: milliseconds, on a slow disk a second
	checkpointTime = 10 * time.Minute       // tens of gigabytes on a slow disk
	exportTime     = 10 * time.Second       // the agent's log is at most 1 MiB
	glanceTime     = 300 * time.Millisecond // the log of a sandbox that nobody asked to keep must not hold up its end
	killTime       = 30 * time.Second       // processes, control group, network slot
	reportTime     = 5 * time.Second
)

// Ladder is one termination's place. The zero value is of no use; see NewLadder.
type Ladder struct {
	order Order
	rung  Rung
	since time.Time // when it began
	grace time.Time // when the guest's time is up
	until time.Time // deadline of the rung
	notes []string
	err   error // why it was cancelled by itself, or why the kill did not work
}

// NewLadder begins a termination at now.
func NewLadder(o Order, now time.Time) *Ladder {
	o.Grace = max(0, o.Grace)
	return &Ladder{order: o, rung: Cordon, since: now, grace: now.Add(o.Grace), until: now.Add(cordonTime)}
}

// Rung is where it stands.
func (l *Ladder) Rung() Rung { return l.rung }

// Until is when the rung must be left.
func (l *Ladder) Until() time.Time { return l.until }

// Order is what is carried out.
func (l *Ladder) Order() Order { return l.order }

// Err says why a termination was cancelled, or that the kill did not work; nil for one that went to its end.
func (l *Ladder) Err() error { return l.err }

// Ending describes it for records.
func (l *Ladder) Ending() *tartarus.Ending {
	return &tartarus.Ending{
		Reason: l.order.Reason, Message: l.order.Message, Rung: string(l.rung), Since: l.since, Until: l.grace,
		Checkpoint: l.order.Checkpoint, ExportLogs: l.order.ExportLogs, Notes: slices.Clone(l.notes),
	}
}

// maxNotes bounds what a termination remembers: a line for each rung and hook of any reasonable guest.
const maxNotes = 16

// Note remembers something that did not go as it should.
func (l *Ladder) Note(format string, args ...any) {
	if len(l.notes) < maxNotes {
		l.notes = append(l.notes, fmt.Sprintf(format, args...))
	}
}

// Done is the event that the rung's work is done, or has failed. A checkpoint that failed ends the termination: what it was to keep would be
// lost. Any other failure is noted, and the ladder goes on.
func (l *Ladder) Done(now time.Time, err error) {
	switch {
	case err == nil:
	case l.rung == Keep && l.order.Checkpoint:
		l.err = fmt.Errorf("checkpoint before the end: %w", err)
		l.step(Cancelled, now)
		return
	case l.rung == Kill:
		l.err = err
		l.Note("%s: %v", l.rung, err)
	default:
		l.Note("%s: %v", l.rung, err)
	}
	l.step(l.next(), now)
}

// Expire is the event that the clock shows now. It reports whether the rung's time is up, and then stands on the next one.
func (l *Ladder) Expire(now time.Time) bool {
	if l.rung.Final() || now.Before(l.until) {
		return false
	}
	if l.rung == Tell {
		l.step(l.next(), now) // the guest took all of its time: that is what it has it for
		return true
	}
	l.Done(now, tartarus.Errorf(tartarus.Deadline, "not done in its time"))
	return true
}

// ErrCancelled is what those who wait for a termination get when somebody called it off.
var ErrCancelled = &tartarus.Error{Kind: tartarus.Conflict, Code: "termination_cancelled", Message: "the termination was cancelled, and the sandbox runs on"}

// Cancel is the event that somebody wants the sandbox to live on. After the kill has begun it is tartarus.Conflict.
func (l *Ladder) Cancel(now time.Time) error {
	if !l.rung.Cancellable() {
		return tartarus.Errorf(tartarus.Conflict, "it is too late to cancel: the termination has come to %q", l.rung)
	}
	l.err = ErrCancelled
	l.step(Cancelled, now)
	return nil
}

// Again is the event that the sandbox is to be ended by another order too. The shorter time counts, and what either wants kept is kept, where
// that is still ahead.
func (l *Ladder) Again(o Order, now time.Time) {
	if !l.rung.Cancellable() {
		return
	}
	if l.rung != Keep {
		l.order.Checkpoint = l.order.Checkpoint || o.Checkpoint
		l.order.ExportLogs = l.order.ExportLogs || o.ExportLogs
	}
	if sooner := now.Add(max(0, o.Grace)); sooner.Before(l.grace) {
		l.grace = sooner
		l.order.Grace = max(0, l.grace.Sub(l.since))
	}
	if l.rung == Tell {
		l.until = l.grace
	}
}

// next is the rung after the current one that has anything to do.
func (l *Ladder) next() Rung {
	switch l.rung {
	case Cordon:
		if l.order.Grace > 0 {
			return Tell
		}
		return Keep
	case Tell:
		return Keep
	case Keep:
		return Kill
	case Kill:
		return Report
	}
	return Over
}

// step is the one way to another rung.
func (l *Ladder) step(to Rung, now time.Time) {
	if !slices.Contains(edges[l.rung], to) {
		panic(fmt.Sprintf("thanatos: no step from %s to %s", l.rung, to)) // next and the events above go along edges only
	}
	l.rung = to
	switch to {
	case Tell:
		l.until = l.grace
	case Keep:
		l.until = now.Add(l.keepTime())
	case Kill:
		l.until = now.Add(killTime)
	case Report:
		l.until = now.Add(reportTime)
	}
}

func (l *Ladder) keepTime() time.Duration {
	switch {
	case l.order.Checkpoint:
		return checkpointTime
	case l.order.ExportLogs:
		return exportTime
	}
	return glanceTime
}
