package phlegethon

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Two replicas that share what they see know what one would that saw all of it.
func TestLessonsAddUp(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var all, a, b Past
	at := start
	for i := range 600 {
		at = start.Add(time.Duration(i) * 100 * time.Millisecond)
		one := []*Past{&a, &b}[i%2]
		for _, p := range []*Past{&all, one} {
			p.Arrival.Arrive(at, "")
			p.End(2*time.Second, 10*time.Second)
		}
	}
	got := a.With([]Lesson{b.Lesson(at)}, at)
	if math.Abs(got.crowd()-all.At(at).crowd()) > 0.01 || math.Abs(got.CPU-2) > 1e-9 || math.Abs(got.Life-10) > 1e-9 || got.Ended != 600 {
		t.Errorf("together they know %+v, crowd %g; one that saw all knows a crowd of %g", got, got.crowd(), all.At(at).crowd())
	}
	if alone := (Past{}).With([]Lesson{b.Lesson(at)}, at.Add(time.Hour)); alone.crowd() > 1e-9 || alone.CPU != 2 {
		t.Errorf("an hour later %+v", alone)
	}
}

// Means stay between what was seen, rates only add, older lessons count less, and nonsense counts nothing.
func TestLessonsAreMeans(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		var p Past
		for range rapid.IntRange(0, 20).Draw(t, "ended here") {
			p.End(time.Duration(rapid.IntRange(0, 1000).Draw(t, "cpu ms"))*time.Millisecond, time.Duration(rapid.IntRange(1, 10_000).Draw(t, "life ms"))*time.Millisecond)
		}
		low, high, rate := math.Inf(1), math.Inf(-1), 0.0
		note := func(n int, cpu float64) {
			if n > 0 {
				low, high = min(low, cpu), max(high, cpu)
			}
		}
		note(p.Ended, p.CPU)
		var lessons []Lesson
		for range rapid.IntRange(0, 5).Draw(t, "others") {
			l := Lesson{
				Ended: rapid.IntRange(0, 100).Draw(t, "ended there"), CPU: rapid.Float64Range(0, 100).Draw(t, "cpu"), Life: rapid.Float64Range(0.001, 1000).Draw(t, "life"),
				Rate: rapid.Float64Range(0, 50).Draw(t, "rate"), At: now.Add(time.Duration(rapid.IntRange(-10_000, 10).Draw(t, "seconds")) * time.Second),
			}
			lessons = append(lessons, l)
			note(l.Ended, l.CPU)
			rate += l.Rate
		}
		got := p.With(append(lessons, Lesson{Ended: 5, CPU: math.NaN(), Life: 1, At: now}, Lesson{Ended: -1, At: now}, Lesson{Rate: math.Inf(1), At: now}), now)
		if _, known := got.use(); known != !math.IsInf(low, 1) {
			t.Fatalf("%+v is known: %t", got, known)
		}
		if !math.IsInf(low, 1) && (got.CPU < low-1e-9 || got.CPU > high+1e-9) {
			t.Fatalf("processor time %g of between %g and %g", got.CPU, low, high)
		}
		if r := got.Arrival.PerSecond(now); r < 0 || r > rate+1e-9 {
			t.Fatalf("rate %g of %g", r, rate)
		}
	})
}
