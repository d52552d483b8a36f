package phlegethon

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestDemand(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const replace = 100 * time.Millisecond
	for name, tc := range map[string]struct {
		arrivals []time.Duration
		at       time.Duration
		least    int
		most     int
	}{
		"nothing":                       {nil, time.Hour, 0, 0},
		"one just now":                  {[]time.Duration{0}, 0, 1, 1},
		"one some time ago":             {[]time.Duration{0}, time.Minute, 0, 0},
		"a burst":                       {every(0, 50), 0, 50, 50},
		"a burst a minute ago":          {every(0, 50), time.Minute, 40, 50},
		"a burst an hour ago":           {every(0, 50), time.Hour, 0, 0},
		"ten a second for five minutes": {every(100*time.Millisecond, 3000), 300 * time.Second, 3, 25},
		"one a minute":                  {every(time.Minute, 30), 30 * time.Minute, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var d Demand
			for _, after := range tc.arrivals {
				d.Arrive(start.Add(after), "")
			}
			if got := d.Ready(start.Add(tc.at), replace); got < tc.least || got > tc.most {
				t.Fatalf("%d, want %d to %d", got, tc.least, tc.most)
			}
		})
	}
}

func every(d time.Duration, n int) []time.Duration {
	out := make([]time.Duration, n)
	for i := range out {
		out[i] = time.Duration(i) * d
	}
	return out
}

func TestDemandOfAClockThatGoesBack(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var d Demand
	d.Arrive(now, "")
	d.Arrive(now.Add(-time.Hour), "")
	if got := d.PerSecond(now); got <= 0 || got > 1 {
		t.Fatalf("%f arrivals per second", got)
	}
}

// Of the same arrivals, hotter ones want no fewer machines, nobody's heat as many as the coldest there could be, and none more than five times as many as a
// cold burst and rate would. What nobody asks for any more wants none, however hot it was.
func TestHotterPoolsAreLarger(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		gaps := rapid.SliceOfN(rapid.IntRange(0, 5000), 1, 300).Draw(t, "milliseconds between arrivals")
		replace := time.Duration(rapid.IntRange(1, 2000).Draw(t, "milliseconds to make one")) * time.Millisecond
		later := time.Duration(rapid.IntRange(0, 120).Draw(t, "seconds later")) * time.Second
		run := func(heatOf func(i int) Heat) (d Demand, at time.Time) {
			at = start
			for i, gap := range gaps {
				at = at.Add(time.Duration(gap) * time.Millisecond)
				d.Arrive(at, heatOf(i))
			}
			return d, at.Add(later)
		}
		all := func(h Heat) func(int) Heat { return func(int) Heat { return h } }
		var sizes []int
		for _, h := range slices.Concat([]Heat{""}, heats) {
			d, at := run(all(h))
			sizes = append(sizes, d.Ready(at, replace))
		}
		if !slices.IsSorted(sizes) {
			t.Fatalf("from unknown to inferno: %v", sizes)
		}
		if none, most := sizes[0], sizes[len(sizes)-1]; most > 5*none+3 { // each is rounded
			t.Fatalf("an inferno wants %d, and %d without its heat", most, none)
		}
		mixed, at := run(func(i int) Heat { return heats[i%len(heats)] })
		if got := mixed.Ready(at, replace); got < sizes[0] || got > sizes[len(sizes)-1] {
			t.Fatalf("a mixture wants %d, and its parts %v", got, sizes)
		}
		if s := mixed.Stretch(); s < 1 || s > 5 {
			t.Fatalf("making one takes %g times as long", s)
		}
		if got := mixed.Ready(at.Add(24*time.Hour), replace); got != 0 {
			t.Fatalf("a day later it wants %d", got)
		}
	})
}

// The arithmetic, at ten arrivals a second and a second for each machine: three times ten, stretched.
func TestPoolOfEachHeat(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for heat, want := range map[Heat]int{"": 30, Cold: 31, Warm: 37, Hot: 60, Inferno: 149} {
		var d Demand
		for _, after := range every(100*time.Millisecond, 3000) {
			d.Arrive(start.Add(after), heat)
		}
		if got := d.Ready(start.Add(300*time.Second), time.Second); got != want {
			t.Errorf("%q: %d, want %d", heat, got, want)
		}
	}
}
