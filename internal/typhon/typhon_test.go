package typhon

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// watched feeds readings five seconds apart and lists what they came to.
func watched(l Limits, readings ...Reading) string {
	w, out := NewWatch(l), []string{}
	for i, r := range readings {
		r.At = start.Add(time.Duration(i) * 5 * time.Second)
		for _, s := range w.Read(r) {
			out = append(out, fmt.Sprintf("%s@%d", s.Kind, i))
		}
	}
	return strings.Join(out, " ")
}

// readings makes n of them.
func readings(n int, make func(i int) Reading) []Reading {
	var out []Reading
	for i := range n {
		out = append(out, make(i))
	}
	return out
}

func TestWatch(t *testing.T) {
	tests := map[string]struct {
		limits   Limits
		readings []Reading
		want     string
	}{
		"quiet":                            {Limits{}, readings(30, func(int) Reading { return Reading{Packets: 3, Threads: 2, Limit: 10} }), ""},
		"slow refusals":                    {Limits{Packets: 100}, readings(60, func(i int) Reading { return Reading{Packets: uint64(i * 5)} }), ""},
		"a flood":                          {Limits{Packets: 100}, readings(5, func(i int) Reading { return Reading{Packets: uint64(i * 60)} }), "egress-flood@2"},
		"a flood that goes on":             {Limits{Packets: 100}, readings(27, func(i int) Reading { return Reading{Packets: uint64(i * 60)} }), "egress-flood@2 egress-flood@14 egress-flood@26"},
		"a scan":                           {Limits{Targets: 50}, []Reading{{}, {Packets: 49, Targets: 49}, {Packets: 80, Targets: 70}}, "port-scan@2"},
		"another sandbox's scan":           {Limits{Targets: 50}, []Reading{{Targets: 70}, {Packets: 3, Targets: 70}}, ""},
		"a build that touches the limit":   {Limits{}, []Reading{{Threads: 10, Limit: 10}, {Threads: 10, Limit: 10}, {Threads: 9, Limit: 10}, {Threads: 10, Limit: 10}}, ""},
		"a process bomb":                   {Limits{}, readings(4, func(int) Reading { return Reading{Threads: 12, Limit: 10} }), "process-bomb@2"},
		"no limit of processes":            {Limits{}, readings(9, func(int) Reading { return Reading{Threads: 12} }), ""},
		"nothing strikes where all is off": {Limits{}, readings(9, func(i int) Reading { return Reading{Packets: uint64(i) * 1e6, Targets: 1e5} }), ""},
		"counters that began anew":         {Limits{Packets: 100}, []Reading{{Packets: 1000}, {Packets: 10}, {Packets: 20}}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := watched(tt.limits, tt.readings...); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// values is a store of one process; time does not pass in it.
type values struct {
	mu  sync.Mutex
	all map[string][]byte
}

func (v *values) Set(_ context.Context, name string, value []byte, ttl time.Duration) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if ttl <= 0 {
		return fmt.Errorf("%s is kept for good", name)
	}
	v.all[name] = value
	return nil
}

func (v *values) List(_ context.Context, prefix string) (map[string][]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := map[string][]byte{}
	for k, b := range v.all {
		if strings.HasPrefix(k, prefix) {
			out[k] = b
		}
	}
	return out, nil
}

// Strikes count once each, against the sandbox, its template and its tenant, and against nobody else.
func TestLedger(t *testing.T) {
	l := NewLedger(&values{all: map[string][]byte{}}, Rule{Window: time.Hour, Sandbox: 2, Template: 3, Tenant: 4})
	do := func(tenant, template, sandbox string, minute int) string {
		t.Helper()
		why, err := l.Strike(t.Context(), Strike{Kind: Flood, Detail: "much", At: start.Add(time.Duration(minute) * time.Minute), Tenant: tenant, TemplateID: template, Sandbox: sandbox})
		if err != nil {
			t.Fatal(err)
		}
		return why
	}
	if why := do("a", "t", "s1", 0) + do("a", "t", "s1", 0) + do("b", "t", "s2", 0); why != "" {
		t.Errorf("one strike each, and one told twice: %q", why)
	}
	if why := do("a", "t", "s1", 1); !strings.Contains(why, "strike 2 of this sandbox") {
		t.Errorf("second strike of a sandbox: %q", why)
	}
	if why := do("a", "t", "s3", 1); !strings.Contains(why, "strike 3 of this template") {
		t.Errorf("third strike of a template: %q", why)
	}
	if why := do("a", "u", "s4", 1); !strings.Contains(why, "strike 4 of this tenant") {
		t.Errorf("fourth strike of a tenant: %q", why)
	}
	if n, err := l.Count(t.Context(), "b", "t", "s2"); err != nil || n != (Counts{1, 1, 1}) {
		t.Errorf("another tenant has %+v, %v", n, err)
	}
	if _, err := l.Strike(t.Context(), Strike{Kind: Flood, Tenant: "a/b", TemplateID: "t", Sandbox: "s"}); err == nil {
		t.Error("a name with a slash was taken")
	}
}
