package phlegethon

import (
	"math"
	"time"
)

// Lesson is what one replica of the control plane has seen of a template, for the others.
type Lesson struct {
	Ended int       `json:"n,omitempty"`    // sandboxes that were learned from
	CPU   float64   `json:"cpu,omitempty"`  // seconds of processor time of one
	Life  float64   `json:"life,omitempty"` // seconds that one ran
	Rate  float64   `json:"rate,omitempty"` // arrivals per second at At
	At    time.Time `json:"at"`
}

// Lesson is what others may learn from p at now.
func (p Past) Lesson(now time.Time) Lesson {
	return Lesson{Ended: p.Ended, CPU: p.CPU, Life: p.Life, Rate: p.Arrival.PerSecond(now), At: now}
}

// Sound reports whether a lesson can be true: it comes from a store that others write to.
func (l Lesson) Sound() bool {
	for _, x := range []float64{l.CPU, l.Life, l.Rate} {
		if math.IsNaN(x) || math.IsInf(x, 0) || x < 0 {
			return false
		}
	}
	return l.Ended >= 0 && !l.At.IsZero()
}

const (
	// lessonHalf is how long it takes until what another replica saw counts half: templates change by the hour, not by the minute.
	lessonHalf = time.Hour
	// lessonMost is how many ended sandboxes are behind a weighted mean at the most; pastWeight forgets those before.
	lessonMost = 10
)

// With is p together with what others have seen, at now: sandboxes arrive at all replicas, so that rates add up; what one sandbox does is the mean of
// what was seen, by how many it was seen of and how long ago.
func (p Past) With(others []Lesson, now time.Time) Past {
	p = p.At(now)
	weight := float64(min(p.Ended, lessonMost))
	cpu, life := p.CPU*weight, p.Life*weight
	for _, l := range others {
		if !l.Sound() {
			continue
		}
		age := max(0, now.Sub(l.At))
		p.Arrival.rate += l.Rate * math.Exp(-age.Seconds()/rateMemory.Seconds())
		if l.Ended == 0 || l.Life <= 0 {
			continue
		}
		w := float64(min(l.Ended, lessonMost)) * math.Exp2(-age.Seconds()/lessonHalf.Seconds())
		weight, cpu, life = weight+w, cpu+w*l.CPU, life+w*l.Life
		p.Ended += l.Ended
	}
	if weight > 0 {
		p.CPU, p.Life = cpu/weight, life/weight
	}
	return p
}
