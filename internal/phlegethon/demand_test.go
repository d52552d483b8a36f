package phlegethon

import (
	"testing"
	"time"
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
				d.Arrive(start.Add(after))
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
	d.Arrive(now)
	d.Arrive(now.Add(-time.Hour))
	if got := d.PerSecond(now); got <= 0 || got > 1 {
		t.Fatalf("%f arrivals per second", got)
	}
}
