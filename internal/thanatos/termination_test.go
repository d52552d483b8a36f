package thanatos

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patient is a sandbox whose rungs take as long as the test says, and fail when it says so.
type patient struct {
	takes map[Rung]time.Duration
	fails map[Rung]error

	mu   sync.Mutex
	log  []string
	last *tartarus.Ending
}

func (p *patient) at(ctx context.Context, r Rung) error {
	p.mu.Lock()
	p.log = append(p.log, string(r))
	p.mu.Unlock()
	select {
	case <-time.After(p.takes[r]):
	case <-ctx.Done():
		return ctx.Err()
	}
	return p.fails[r]
}

func (p *patient) Cordon(ctx context.Context, _ *tartarus.Ending) error { return p.at(ctx, Cordon) }
func (p *patient) Tell(ctx context.Context, _ Order, _ time.Time) (Told, error) {
	return Told{Alive: 2, Notes: []string{"hook a: exit status 1"}}, p.at(ctx, Tell)
}
func (p *patient) Keep(ctx context.Context, o Order) (string, error) {
	if o.Checkpoint {
		return "snap", p.at(ctx, Keep)
	}
	return "", p.at(ctx, Keep)
}
func (p *patient) Kill(ctx context.Context, e *tartarus.Ending) error {
	p.last = e
	return p.at(ctx, Kill)
}
func (p *patient) Report(ctx context.Context, _ *tartarus.Ending, _ error) { _ = p.at(ctx, Report) }
func (p *patient) Uncordon(ctx context.Context, _ error) error             { return p.at(ctx, "uncordon") }

func (p *patient) went() string { return strings.Join(p.log, " ") }

func TestTermination(t *testing.T) {
	tests := map[string]struct {
		order  Order
		p      *patient
		during func(*Termination) // at 3 s
		took   time.Duration
		went   string
		err    string
	}{
		"at once":             {p: &patient{}, went: "cordon keep kill report"},
		"in good order":       {order: Order{Grace: time.Minute}, p: &patient{takes: map[Rung]time.Duration{Tell: 7 * time.Second}}, took: 7 * time.Second, went: "cordon tell keep kill report"},
		"over its time":       {order: Order{Grace: 10 * time.Second}, p: &patient{takes: map[Rung]time.Duration{Tell: time.Hour}}, took: 10 * time.Second, went: "cordon tell keep kill report"},
		"a log that hangs":    {p: &patient{takes: map[Rung]time.Duration{Keep: time.Hour}}, took: glanceTime, went: "cordon keep kill report"},
		"a kill that hangs":   {p: &patient{takes: map[Rung]time.Duration{Kill: time.Hour}}, took: killTime, went: "cordon keep kill report", err: "not done in its time"},
		"a report that hangs": {p: &patient{takes: map[Rung]time.Duration{Report: time.Hour}}, took: reportTime, went: "cordon keep kill report"},
		"cancelled": {order: Order{Grace: time.Minute}, p: &patient{takes: map[Rung]time.Duration{Tell: time.Hour}},
			during: func(term *Termination) { _ = term.Cancel(time.Now()) }, took: 3 * time.Second, went: "cordon tell uncordon", err: "cancelled"},
		"hurried": {order: Order{Grace: time.Minute}, p: &patient{takes: map[Rung]time.Duration{Tell: time.Hour}},
			during: func(term *Termination) { term.Again(Order{Grace: 5 * time.Second}, time.Now()) }, took: 8 * time.Second, went: "cordon tell keep kill report"},
		"a checkpoint that fails": {order: Order{Checkpoint: true}, p: &patient{fails: map[Rung]error{Keep: errors.New("disk full")}},
			went: "cordon keep uncordon", err: "disk full"},
		"a kill that fails": {p: &patient{fails: map[Rung]error{Kill: errors.New("it lives")}}, went: "cordon keep kill report", err: "it lives"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				term := Begin(tt.order, began)
				go term.Run(t.Context(), tt.p, nil)
				if tt.during != nil {
					time.Sleep(3 * time.Second)
					tt.during(term)
				}
				err := term.Wait(t.Context())
				if took := time.Since(began); took != tt.took {
					t.Errorf("took %s, want %s", took, tt.took)
				}
				if tt.p.went() != tt.went {
					t.Errorf("went %q, want %q", tt.p.went(), tt.went)
				}
				if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
			})
		})
	}
}

// TestLeaves holds that a node that goes leaves a termination before the kill, and finishes it from there on.
func TestLeaves(t *testing.T) {
	for rung, want := range map[Rung]string{Tell: "cordon tell", Keep: "cordon tell keep", Kill: "cordon tell keep kill report"} {
		t.Run(string(rung), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &patient{takes: map[Rung]time.Duration{rung: 8 * time.Second}}
				leave := make(chan struct{})
				term := Begin(Order{Grace: time.Minute, ExportLogs: true}, time.Now())
				go term.Run(t.Context(), p, leave)
				time.Sleep(time.Second)
				close(leave)
				err := term.Wait(t.Context())
				if p.went() != want || (rung == Kill) != (err == nil) || err != nil && !tartarus.Is(err, tartarus.Unavailable) {
					t.Errorf("went %q, %v; want %q", p.went(), err, want)
				}
			})
		})
	}
}

// TestRecordSaysHow holds that what the guest did is in the record that the kill writes.
func TestRecordSaysHow(t *testing.T) {
	p := &patient{}
	term := Begin(Order{Reason: tartarus.ReasonTimeout, Message: "its time was up", Grace: time.Minute, Checkpoint: true}, time.Now())
	term.Run(t.Context(), p, nil)
	e := p.last
	if e.Reason != tartarus.ReasonTimeout || e.Message != "its time was up" || e.Killed != 2 || e.Snapshot != "snap" || e.Rung != "kill" ||
		!slices.Contains(e.Notes, "hook a: exit status 1") {
		t.Errorf("%+v", e)
	}
	if err := term.Cancel(time.Now()); !tartarus.Is(err, tartarus.Conflict) {
		t.Errorf("cancelled after the end: %v", err)
	}
}

// TestWaitEndsAlone holds that who stops waiting does not stop the termination.
func TestWaitEndsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{takes: map[Rung]time.Duration{Tell: 5 * time.Second}}
		term := Begin(Order{Grace: time.Minute}, time.Now())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go term.Run(ctx, p, nil)
		if err := term.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waited: %v", err)
		}
		if err := term.Wait(t.Context()); err != nil {
			t.Errorf("ended: %v", err)
		}
	})
}
