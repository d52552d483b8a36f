package journal_test

import (
	"errors"
	"log/slog"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus/internal/guest/journal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSince(t *testing.T) {
	j := journal.New(1 << 20)
	if got, _ := j.Since(0, 0); len(got) != 0 {
		t.Errorf("%v", got)
	}
	for _, m := range []string{"one", "two", "three"} {
		j.Add("info", m, nil)
	}
	for _, c := range []struct {
		since int64
		limit int
		want  string
	}{
		{0, 0, "one two three"}, {1, 0, "two three"}, {3, 0, ""}, {99, 0, ""}, {math.MaxInt64, 0, ""}, {-5, 0, "one two three"}, {0, 2, "one two"}, {1, 1, "two"},
	} {
		got, _ := j.Since(c.since, c.limit)
		var words []string
		for _, e := range got {
			words = append(words, e.Message)
		}
		if strings.Join(words, " ") != c.want {
			t.Errorf("since %d, limit %d: %v", c.since, c.limit, words)
		}
	}
}

func TestBounded(t *testing.T) {
	const limit = 100 << 10
	j := journal.New(limit)
	for range 10_000 {
		j.Add("info", strings.Repeat("x", 1000), nil)
	}
	got, _ := j.Since(0, 0)
	if len(got) < 50 || len(got)*1000 > limit {
		t.Errorf("%d entries of 1000 bytes in %d", len(got), limit)
	}
	for i, e := range got {
		if want := int64(10_000 - len(got) + 1 + i); e.Seq != want {
			t.Fatalf("entry %d has number %d, want %d", i, e.Seq, want)
		}
	}
	// Numbers that were dropped are no error: the reader sees the gap.
	if again, _ := j.Since(5, 3); len(again) != 3 || again[0].Seq != got[0].Seq {
		t.Errorf("%+v", again)
	}
	// One entry over the limit leaves the journal empty rather than over it.
	j.Add("info", strings.Repeat("x", 2*limit), nil)
	if got, _ := j.Since(0, 0); len(got) != 0 {
		t.Errorf("%d entries", len(got))
	}
}

func TestChanged(t *testing.T) {
	j := journal.New(1 << 20)
	_, changed := j.Since(0, 0)
	select {
	case <-changed:
		t.Fatal("nothing was added")
	default:
	}
	var wait sync.WaitGroup
	for range 10 {
		wait.Go(func() { j.Add("info", "x", nil) })
	}
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Error("no notice")
	}
	wait.Wait()
	if got, _ := j.Since(0, 0); len(got) != 10 {
		t.Errorf("%d entries", len(got))
	}
}

func TestHandler(t *testing.T) {
	j := journal.New(1 << 20)
	log := slog.New(journal.NewHandler(j, slog.LevelInfo)).With("a", 1).WithGroup("g")
	log.Debug("not kept")
	log.Warn("kept", "b", errors.New("broken"), slog.Group("h", "c", "d"))
	got, _ := j.Since(0, 0)
	if len(got) != 1 || got[0].Level != "warn" || got[0].Message != "kept" || got[0].Fields["a"] != int64(1) || got[0].Fields["g.b"] != "broken" || got[0].Fields["g.h.c"] != "d" {
		t.Errorf("%+v", got)
	}
}
