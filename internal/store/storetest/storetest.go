// Package storetest is the conformance suites of the store seams: one test for each promise that the interfaces'
// comments make. An implementation that passes them may take the place of any other.
//
// The suites use real time with small durations: they ask that something does not happen too early and that it happens at
// all, never that it happens quickly.
package storetest

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Subject is an empty store under test.
type Subject[T any] struct {
	Store T
	// Crash opens the store again as a process finds it whose predecessor was killed at this moment. The old
	// Store is not used after it. Nil when this store outlives its clients.
	Crash func(t *testing.T) T
}

// Factory makes an empty store that ends with the test.
type Factory[T any] func(t *testing.T) Subject[T]

// patience bounds everything that a test waits for.
const patience = 20 * time.Second

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, kind tartarus.Kind) {
	t.Helper()
	if !tartarus.Is(err, kind) {
		t.Fatalf("error is %v, want one of kind %s", err, kind)
	}
}

// wantSame compares what two values are as JSON: stores may change a time's zone and nil to empty, nothing else.
func wantSame(t *testing.T, got, want any) {
	t.Helper()
	g, w := encode(t, got), encode(t, want)
	if g != w {
		t.Fatalf("got  %s\nwant %s", g, w)
	}
}

func encode(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	must(t, err)
	return string(b)
}

// each runs fn n times at once and waits for all.
func each(n int, fn func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { fn(i) })
	}
	wg.Wait()
}
