package judges

import (
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

// ender is policies that rule out nothing and say this of ends.
type ender struct {
	Policies
	said themis.Ends
}

func (e ender) Ends(*themis.Input) themis.Ends { return e.said }

// A policy's grace is a default, its bound is none that a request can pass, and what is to be kept is kept.
func TestPoliciesSayHowSandboxesEnd(t *testing.T) {
	long, short := time.Minute, 10*time.Second
	own := time.Second
	for name, tt := range map[string]struct {
		said  themis.Ends
		had   *time.Duration
		grace *time.Duration
		most  *time.Duration
		keeps bool
	}{
		"nothing": {},
		"default": {said: themis.Ends{Grace: &long}, grace: &long},
		"own":     {said: themis.Ends{Grace: &long}, had: &own, grace: &own},
		"bound":   {said: themis.Ends{MaxGrace: &short}, had: &long, grace: &long, most: &short}, // the node holds it to both
		"to keep": {said: themis.Ends{Checkpoint: true, Logs: true}, keeps: true},
	} {
		r := Request{Action: Create, Spec: tartarus.Spec{Lifecycle: tartarus.Lifecycle{Grace: tt.had}}}
		(&Ends{ender{said: tt.said}}).Amend(&r)
		same := func(a, b *time.Duration) bool { return a == nil && b == nil || a != nil && b != nil && *a == *b }
		if l := r.Spec.Lifecycle; !same(l.Grace, tt.grace) || !same(l.MaxGrace, tt.most) || l.Checkpoint != tt.keeps || l.ExportLogs != tt.keeps {
			t.Errorf("%s: %+v", name, l)
		}
	}
}
