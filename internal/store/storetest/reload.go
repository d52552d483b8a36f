package storetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

// Reload is the suite of themis.Engine on a store that replicas share: what one writes is in force on all within a second.
func Reload(t *testing.T, open Factory[themis.Store]) {
	s := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	engines := make([]*themis.Engine, 3)
	done := make(chan error, len(engines))
	for i := range engines {
		e, err := themis.NewEngine(themis.EngineConfig{Store: s.Store})
		must(t, err)
		must(t, e.Load(ctx))
		engines[i] = e
		go func() { done <- e.Run(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		for range engines {
			must(t, <-done)
		}
	})
	seen := func(e *themis.Engine) string {
		r, err := e.Rule(ctx, &themis.Input{Request: themis.RequestInput{Action: "create"}})
		must(t, err)
		if len(r.Reasons) == 0 {
			return ""
		}
		return r.Reasons[0].Policy
	}
	best, worst := time.Hour, time.Duration(0)
	version := int64(0)
	for round := range 6 {
		want := ""
		if round%3 == 2 {
			must(t, s.Store.Remove(ctx, "p", "key", version))
			version = 0
		} else {
			body := fmt.Sprintf("apiVersion: tartarus.io/v1\nname: p\nscope: global\nrules: [{name: r, when: 'true', effect: deny, message: round %d}]\n", round)
			d, err := s.Store.Put(ctx, "p", []byte(body), "key", version)
			must(t, err)
			version, want = d.Version, fmt.Sprintf("p@%d", d.Version)
		}
		began := time.Now()
		for _, e := range engines {
			for seen(e) != want {
				if time.Since(began) > patience {
					t.Fatalf("after %s: %q is in force, want %q", time.Since(began), seen(e), want)
				}
				time.Sleep(2 * time.Millisecond)
			}
		}
		took := time.Since(began)
		best, worst = min(best, took), max(worst, took)
	}
	t.Logf("a change is in force on three replicas after %s to %s", best.Round(time.Millisecond), worst.Round(time.Millisecond))
	// A busy machine may be late once; one that is late each time does not keep the promise.
	if best > time.Second {
		t.Errorf("never within a second: %s at best", best)
	}
}
