// Package hypnos decides which sandboxes are idle, so that they can be put to sleep until something uses them again. It is a pure function
// over what is known of a sandbox; what it does not know counts as use.
package hypnos

import (
	"fmt"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Config says when a sandbox counts as idle.
type Config struct {
	// IdleAfter is for how long nothing may have used it.
	IdleAfter time.Duration
	// CPUPercent is what it may use of one processor all the same, in every measurement of that time.
	CPUPercent float64
	// MinAge is how old it must be, so that one that is being set up is left alone.
	MinAge time.Duration
	// AtOnce is how many are put to sleep at the same time.
	AtOnce int
}

// Default is what is used where nothing else is set.
//
// Writing an idle sandbox of 20 MB to disk and restoring it costs about 0.2 s of a processor: once in two minutes that is under 0.2 % of one, and less
// than a tenth of a percent for each minute that it sleeps longer. What sleeps frees its 20 MB.
//
// A shell loop that forks `sleep 1` uses 1 to 2 % of a processor in gVisor (6 to 7 ms for each fork and exec), a server that polls ten times a
// second under 3 %. Whatever computes is far above 5 %.
func Default() Config {
	return Config{IdleAfter: 2 * time.Minute, CPUPercent: 5, MinAge: time.Minute, AtOnce: 2}
}

// Validate refuses what cannot work.
func (c Config) Validate() error {
	switch {
	case c.IdleAfter < time.Second || c.IdleAfter > 24*time.Hour:
		return tartarus.Errorf(tartarus.Invalid, "hypnos.idleAfter %s must be between 1s and 24h", c.IdleAfter)
	case !(c.CPUPercent >= 0 && c.CPUPercent <= 100_000):
		return tartarus.Errorf(tartarus.Invalid, "hypnos.cpuPercent %g must be between 0 and 100000", c.CPUPercent)
	case c.MinAge < 0:
		return tartarus.Errorf(tartarus.Invalid, "hypnos.minAge %s must not be negative", c.MinAge)
	case c.AtOnce < 1 || c.AtOnce > 256:
		return tartarus.Errorf(tartarus.Invalid, "hypnos.atOnce %d must be between 1 and 256", c.AtOnce)
	}
	return nil
}

// MetadataKey is the key under which a sandbox says that it must not sleep, and MetadataNever the value.
const (
	MetadataKey   = "tartarus.io/hypnos"
	MetadataNever = "never"
)

// MaySleep reports whether a sandbox has nothing against it.
func MaySleep(s tartarus.Spec) bool {
	return !s.Lifecycle.Awake && s.Metadata[MetadataKey] != MetadataNever
}

// Facts are what is known of a sandbox.
type Facts struct {
	Sandbox     tartarus.Sandbox
	Connections int               // open now, from outside into it
	Used        time.Time         // when the last one was opened or closed, or something else used it; zero is not known
	Tried       time.Time         // when it could not be put to sleep, last
	Samples     []tartarus.Sample // oldest first; those before Used do not matter
}

// Verdict is what was decided.
type Verdict struct {
	Sleep bool
	Why   string // why not; empty with Sleep
}

func no(format string, args ...any) Verdict { return Verdict{Why: fmt.Sprintf(format, args...)} }

// Decide says whether a sandbox should be put to sleep at now. Whether a command runs in it is not among the facts, because only the guest
// can say: who acts on the verdict asks.
func (c Config) Decide(now time.Time, f Facts) Verdict {
	sb := f.Sandbox
	switch {
	case sb.Phase != tartarus.Running || sb.Terminating():
		return no("it does not run")
	case !MaySleep(sb.Spec):
		return no("it must stay awake")
	case now.Sub(sb.StartedAt) < c.MinAge:
		return no("it is younger than %s", c.MinAge)
	case f.Connections > 0:
		return no("%d connections are open", f.Connections)
	case f.Used.IsZero() || now.Sub(f.Used) < c.IdleAfter:
		return no("it was used in the last %s", c.IdleAfter)
	case !f.Tried.IsZero() && now.Sub(f.Tried) < c.IdleAfter:
		return no("it could not be put to sleep in the last %s", c.IdleAfter)
	}
	return c.quiet(now, f)
}

// quiet looks at the measurements of the idle time. With none there is no verdict: a sandbox that is not measured may be busy.
func (c Config) quiet(now time.Time, f Facts) Verdict {
	from, seen := now.Add(-c.IdleAfter), false
	for _, s := range f.Samples {
		if s.Time.Before(from) || !s.Time.After(f.Used) {
			continue
		}
		seen = true
		if s.CPUPercent > c.CPUPercent {
			return no("it used %.1f %% of a processor at %s", s.CPUPercent, s.Time.UTC().Format(time.TimeOnly))
		}
	}
	if !seen {
		return no("it was not measured since")
	}
	return Verdict{Sleep: true}
}
