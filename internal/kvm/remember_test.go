package kvm

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestRemembered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "kvm.json")
	now := time.Now()
	first := Remembered(t.Context(), path, now)
	r, ok := recall(path)
	if !ok || r.Verdict.Usable != first.Usable {
		t.Fatalf("%+v is remembered as %+v", first, r)
	}
	// What is remembered is told apart from what is judged by a reason that nobody gives.
	const mark = "remembered"
	for what, c := range map[string]struct {
		change func(*remembered)
		after  time.Duration
		used   bool
	}{
		"fresh":            {func(*remembered) {}, time.Minute, true},
		"good, and old":    {func(r *remembered) { r.Verdict.Usable = true }, time.Hour, true},
		"bad, and old":     {func(r *remembered) { r.Verdict.Usable = false }, time.Hour, false},
		"good, yesterday":  {func(r *remembered) { r.Verdict.Usable = true }, 25 * time.Hour, false},
		"from the future":  {func(*remembered) {}, -time.Minute, false},
		"another boot":     {func(r *remembered) { r.Boot = "x" }, 0, false},
		"another device":   {func(r *remembered) { r.Device = "x" }, 0, false},
		"nothing readable": {nil, 0, false},
	} {
		m := r
		m.Verdict.Reason = mark
		if c.change != nil {
			c.change(&m)
		}
		if err := note(path, m); err != nil {
			t.Fatal(err)
		}
		if c.change == nil {
			if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := Remembered(t.Context(), path, now.Add(c.after)); (got.Reason == mark) != c.used {
			t.Errorf("%s: %+v", what, got)
		}
	}
}
