package phlegethon

import (
	"math"
	"time"
)

// Demand is how often sandboxes of one kind were asked for lately, and how hot they were. Warm pools are sized by it. The zero Demand has seen nothing.
type Demand struct {
	rate  float64 // arrivals per second, weighted exponentially over rateMemory
	work  float64 // part of rate, as processors: each arrival counts with what it is expected to keep busy
	crowd float64 // arrivals of the last moments, weighted exponentially over crowdMemory
	burst float64 // the largest crowd of late, halved every burstHalf
	last  time.Time
}

const (
	// rateMemory is how far back the rate looks: a minute follows a daily rhythm easily, and forgets a single request soon.
	rateMemory = time.Minute
	// crowdMemory is how close together arrivals are that count as one burst: about the time in which a pool of two processors
	// restores twenty machines, so that what comes within it has to be there before.
	crowdMemory = 2 * time.Second
	// burstHalf is how long a burst is remembered: callers that work in batches come again within minutes.
	burstHalf = 5 * time.Minute
)

// busy is how many processors a sandbox of some heat is taken to keep busy, where its pool is sized: what lies in the middle of the default thresholds,
// and for an inferno where they end. One whose heat nobody knows keeps none.
var busy = map[Heat]float64{Cold: 0.025, Warm: 0.25, Hot: 1, Inferno: 4}

// Arrive notes that a sandbox of this heat was asked for at now.
func (d *Demand) Arrive(now time.Time, heat Heat) {
	*d = d.at(now)
	d.rate += 1 / rateMemory.Seconds()
	d.work += busy[heat] / rateMemory.Seconds()
	d.crowd++
	d.burst = max(d.burst, d.crowd)
}

// at is the demand as it looks at now, when nothing more came.
func (d Demand) at(now time.Time) Demand {
	if d.last.IsZero() || now.Before(d.last) {
		d.last = now
		return d
	}
	gone := now.Sub(d.last)
	fade := math.Exp(-gone.Seconds() / rateMemory.Seconds())
	d.rate *= fade
	d.work *= fade
	d.crowd *= math.Exp(-gone.Seconds() / crowdMemory.Seconds())
	d.burst *= math.Exp2(-gone.Seconds() / burstHalf.Seconds())
	d.last = now
	return d
}

// PerSecond is the rate of arrivals at now.
func (d Demand) PerSecond(now time.Time) float64 { return d.at(now).rate }

// Last is when a sandbox was last asked for.
func (d Demand) Last() time.Time { return d.last }

// Stretch is how many times longer than alone it takes to make a machine beside what those asked for lately keep busy: whoever makes one shares its
// processor with what they run, so that beside a sandbox that keeps one busy it takes twice as long, beside an inferno five times.
func (d Demand) Stretch() float64 {
	if d.rate <= 0 {
		return 1
	}
	return 1 + d.work/d.rate
}

// spare is how many times the machines that arrive while one is made are kept ready: arrivals are as good as random, and with a mean of
// three within that time, more than nine come once in a thousand times.
const spare = 3

// Ready is how many machines to keep ready at now, when making one takes replace on an idle node: as many as are likely to be asked for before
// the first is replaced, which takes the longer the hotter they are, and as many as the last burst took.
func (d Demand) Ready(now time.Time, replace time.Duration) int {
	d = d.at(now)
	steady := d.rate * replace.Seconds() * d.Stretch() * spare
	burst := d.burst
	if burst < 1 { // a single request some minutes ago is no burst
		burst = 0
	}
	return int(math.Round(max(steady, burst)))
}
