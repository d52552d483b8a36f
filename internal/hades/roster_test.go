package hades

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// slow is a registry of one node, whose name says how many times it was read, that takes its time.
type slow struct {
	Registry
	take time.Duration

	mu    sync.Mutex
	reads int
	at    int // reads under way
	most  int
	fails error
}

func (s *slow) Nodes(ctx context.Context) ([]Node, error) {
	s.mu.Lock()
	s.reads++
	name, err := fmt.Sprint(s.reads), s.fails
	s.at++
	s.most = max(s.most, s.at)
	s.mu.Unlock()
	defer func() { s.mu.Lock(); s.at--; s.mu.Unlock() }()
	select {
	case <-time.After(s.take):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return []Node{{Name: name}}, err
}

func (s *slow) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails = err
}

func (s *slow) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

// bubble gives a test a roster in fake time whose reads take 140 ms.
func bubble(t *testing.T, f func(t *testing.T, r *Roster, s *slow, took func(ask func(context.Context, time.Time) (List, error)) (string, time.Duration))) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{take: 140 * time.Millisecond}
		r := NewRoster(s)
		f(t, r, s, func(ask func(context.Context, time.Time) (List, error)) (string, time.Duration) {
			t.Helper()
			began := time.Now()
			list, err := ask(t.Context(), began)
			if err != nil {
				t.Fatal(err)
			}
			return list.Nodes[0].Name, time.Since(began)
		})
		synctest.Wait()
		if s.most > 1 {
			t.Errorf("%d reads at once", s.most)
		}
	})
}

// Whoever asks waits for the first list alone, however old the one at hand is becoming while the roster runs; many at once read it once.
func TestNobodyWaitsForTheRoster(t *testing.T) {
	bubble(t, func(t *testing.T, r *Roster, s *slow, took func(func(context.Context, time.Time) (List, error)) (string, time.Duration)) {
		ctx, stop := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { _ = r.Run(ctx) })
		defer run.Wait()
		defer stop()
		if name, d := took(r.List); name != "1" || d != s.take {
			t.Fatalf("first list %s after %s", name, d)
		}
		for i := range 500 {
			time.Sleep(37 * time.Millisecond)
			if i == 250 {
				time.Sleep(time.Hour) // nobody asks
			}
			began := time.Now()
			list, err := r.List(t.Context(), began)
			if d := time.Since(began); err != nil || d != 0 {
				t.Fatalf("list after %s, %v", d, err)
			}
			if age := began.Sub(list.Read); age > rosterIdle+RosterEvery+s.take || i%250 > 40 && age > RosterEvery+s.take+40*time.Millisecond {
				t.Fatalf("list %d is %s old", i, age)
			}
		}
		if n := s.count(); n > 22+3600/5+60 {
			t.Errorf("%d reads", n)
		}
	})
}

// Where nobody runs it, whoever asks first has it read in the background; it is never given away when it is too old.
func TestRosterByItself(t *testing.T) {
	bubble(t, func(t *testing.T, r *Roster, s *slow, took func(func(context.Context, time.Time) (List, error)) (string, time.Duration)) {
		took(r.List)
		time.Sleep(2 * RosterEvery)
		for range 10 {
			if name, d := took(r.List); name != "1" || d != 0 {
				t.Fatalf("list %s after %s", name, d)
			}
		}
		time.Sleep(s.take)
		synctest.Wait()
		if name, d := took(r.List); name != "2" || d != 0 || s.count() != 2 {
			t.Fatalf("list %s after %s and %d reads", name, d, s.count())
		}
		time.Sleep(rosterMost)
		if name, d := took(r.List); name != "3" || d != s.take {
			t.Fatalf("list %s after %s", name, d)
		}
		r.Forget()
		if name, d := took(r.List); name != "4" || d != s.take {
			t.Fatalf("list %s after %s", name, d)
		}
	})
}

// A fresh list was read after it was asked for: one that is on its way does not do. Many who ask at once share the next.
func TestFreshRoster(t *testing.T) {
	bubble(t, func(t *testing.T, r *Roster, s *slow, took func(func(context.Context, time.Time) (List, error)) (string, time.Duration)) {
		took(r.List)
		time.Sleep(2 * RosterEvery)
		took(r.List) // read 2 begins
		time.Sleep(s.take / 2)
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if name, d := took(r.Fresh); name != "3" || d != s.take/2+s.take {
					t.Errorf("list %s after %s", name, d)
				}
			})
		}
		all.Wait()
	})
}

// A store that fails leaves the old list in force, and says so to those who want to know. The first list is an error then.
func TestRosterOfAStoreThatFails(t *testing.T) {
	bubble(t, func(t *testing.T, r *Roster, s *slow, took func(func(context.Context, time.Time) (List, error)) (string, time.Duration)) {
		away := errors.New("away")
		s.fail(away)
		if _, err := r.List(t.Context(), time.Now()); !errors.Is(err, away) {
			t.Fatalf("got %v", err)
		}
		s.fail(nil)
		took(r.List)
		s.fail(away)
		time.Sleep(rosterMost)
		if name, _ := took(r.List); name != "2" {
			t.Fatalf("list %s", name)
		}
		if name, _ := took(r.Fresh); name != "2" {
			t.Fatalf("list %s", name)
		}
		if _, err := r.Check(t.Context(), time.Now()); !errors.Is(err, away) {
			t.Fatalf("got %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), s.take/2)
		defer cancel()
		if _, err := r.Fresh(ctx, time.Now()); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		time.Sleep(s.take)
	})
}
