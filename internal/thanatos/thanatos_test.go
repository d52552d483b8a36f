package thanatos

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// TestEveryStep walks every edge and every non-edge of the ladder.
func TestEveryStep(t *testing.T) {
	for _, from := range Rungs {
		for _, to := range Rungs {
			l := NewLadder(Order{Grace: time.Minute}, start)
			l.rung = from
			allowed := slices.Contains(edges[from], to)
			panicked := func() (p bool) {
				defer func() { p = recover() != nil }()
				l.step(to, start)
				return false
			}()
			if panicked == allowed {
				t.Errorf("%s to %s: allowed %v, panicked %v", from, to, allowed, panicked)
			}
		}
		if from.Final() != (from == Over || from == Cancelled) || from.Cancellable() != slices.Contains([]Rung{Cordon, Tell, Keep}, from) {
			t.Errorf("%s: final %v, cancellable %v", from, from.Final(), from.Cancellable())
		}
	}
}

// event is something that happens at a time after the start.
type event struct {
	at   time.Duration
	what func(*Ladder, time.Time)
}

func done(l *Ladder, now time.Time)   { l.Done(now, nil) }
func failed(l *Ladder, now time.Time) { l.Done(now, errors.New("broken")) }
func clock(l *Ladder, now time.Time)  { l.Expire(now) }
func cancel(l *Ladder, now time.Time) { _ = l.Cancel(now) }
func again(d time.Duration) func(*Ladder, time.Time) {
	return func(l *Ladder, now time.Time) { l.Again(Order{Grace: d}, now) }
}

func TestWaysDown(t *testing.T) {
	const s = time.Second
	tests := map[string]struct {
		order  Order
		events []event
		want   Rung
		until  time.Duration // deadline of that rung, 0 for the final ones
		err    string
		note   string
	}{
		"begins":                      {order: Order{Grace: s}, want: Cordon, until: cordonTime},
		"no grace skips the guest":    {events: []event{{0, done}}, want: Keep, until: glanceTime},
		"grace tells it":              {order: Order{Grace: 10 * s}, events: []event{{s, done}}, want: Tell, until: 10 * s},
		"all end early":               {order: Order{Grace: 10 * s}, events: []event{{s, done}, {2 * s, done}}, want: Keep, until: 2*s + glanceTime},
		"the guest takes its time":    {order: Order{Grace: 10 * s}, events: []event{{s, done}, {9 * s, clock}}, want: Tell, until: 10 * s},
		"and no more":                 {order: Order{Grace: 10 * s}, events: []event{{s, done}, {10 * s, clock}}, want: Keep, until: 10*s + glanceTime},
		"a log takes longer":          {order: Order{ExportLogs: true}, events: []event{{0, done}}, want: Keep, until: exportTime},
		"a checkpoint longest":        {order: Order{Checkpoint: true}, events: []event{{0, done}}, want: Keep, until: checkpointTime},
		"a guest that fails is noted": {order: Order{Grace: s}, events: []event{{0, done}, {0, failed}}, want: Keep, until: glanceTime, note: "tell: broken"},
		"a log that fails is noted":   {order: Order{ExportLogs: true}, events: []event{{0, done}, {s, failed}}, want: Kill, until: s + killTime, note: "keep: broken"},
		"a log that takes too long":   {order: Order{ExportLogs: true}, events: []event{{0, done}, {exportTime, clock}}, want: Kill, until: exportTime + killTime, note: "not done in its time"},
		"a checkpoint that fails":     {order: Order{Checkpoint: true}, events: []event{{0, done}, {s, failed}}, want: Cancelled, err: "checkpoint before the end: broken"},
		"a checkpoint that hangs":     {order: Order{Checkpoint: true}, events: []event{{0, done}, {checkpointTime, clock}}, want: Cancelled, err: "not done in its time"},
		"a kill that fails":           {events: []event{{0, done}, {0, done}, {s, failed}}, want: Report, until: s + reportTime, err: "broken"},
		"to the end":                  {events: []event{{0, done}, {0, done}, {0, done}, {0, done}}, want: Over},
		"cancelled at the guest":      {order: Order{Grace: 10 * s}, events: []event{{0, done}, {s, cancel}}, want: Cancelled, err: "cancelled"},
		"too late to cancel":          {events: []event{{0, done}, {0, done}, {s, cancel}}, want: Kill, until: killTime},
		"hurried":                     {order: Order{Grace: 60 * s}, events: []event{{0, done}, {10 * s, again(5 * s)}}, want: Tell, until: 15 * s},
		"hurried to now":              {order: Order{Grace: 60 * s}, events: []event{{0, done}, {10 * s, again(0)}, {10 * s, clock}}, want: Keep, until: 10*s + glanceTime},
		"more time is not given":      {order: Order{Grace: 5 * s}, events: []event{{0, done}, {s, again(60 * s)}}, want: Tell, until: 5 * s},
		"hurried before it began":     {order: Order{Grace: 60 * s}, events: []event{{0, again(0)}, {0, done}}, want: Keep, until: glanceTime},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := NewLadder(tt.order, start)
			for _, e := range tt.events {
				e.what(l, start.Add(e.at))
			}
			if l.Rung() != tt.want || !tt.want.Final() && l.Until() != start.Add(tt.until) {
				t.Errorf("on %s until %s; want %s until %s", l.Rung(), l.Until().Sub(start), tt.want, tt.until)
			}
			if got := l.Err(); (got == nil) != (tt.err == "") || got != nil && !strings.Contains(got.Error(), tt.err) {
				t.Errorf("error %v, want %q", got, tt.err)
			}
			if notes := strings.Join(l.Ending().Notes, "; "); !strings.Contains(notes, tt.note) || tt.note == "" && notes != "" && tt.err == "" {
				t.Errorf("notes %q, want %q", notes, tt.note)
			}
		})
	}
}

func TestAgainKeepsWhatEitherWants(t *testing.T) {
	l := NewLadder(Order{Grace: time.Minute}, start)
	l.Again(Order{Grace: time.Minute, Checkpoint: true, ExportLogs: true}, start)
	if o := l.Order(); !o.Checkpoint || !o.ExportLogs {
		t.Errorf("%+v", o)
	}
}

func TestNotesAreBounded(t *testing.T) {
	l := NewLadder(Order{}, start)
	for range 10 * maxNotes {
		l.Note("again")
	}
	if n := len(l.Ending().Notes); n != maxNotes {
		t.Errorf("%d notes", n)
	}
}

func TestGrace(t *testing.T) {
	limits := Limits{Unattended: 2 * time.Second, Max: 10 * time.Second}
	of := func(d time.Duration) *time.Duration { return &d }
	for _, tt := range []struct {
		reason tartarus.Reason
		said   *time.Duration
		want   time.Duration
	}{
		{tartarus.ReasonUser, nil, 0},
		{tartarus.ReasonPolicy, nil, 0},
		{tartarus.ReasonTimeout, nil, 2 * time.Second},
		{tartarus.ReasonDrained, nil, 2 * time.Second},
		{tartarus.ReasonUser, of(5 * time.Second), 5 * time.Second},
		{tartarus.ReasonTimeout, of(0), 0},
		{tartarus.ReasonUser, of(time.Hour), 10 * time.Second},
		{tartarus.ReasonUser, of(-time.Hour), 0},
	} {
		if got := limits.Grace(tt.reason, tt.said); got != tt.want {
			t.Errorf("%s, said %v: %s, want %s", tt.reason, tt.said, got, tt.want)
		}
	}
}
