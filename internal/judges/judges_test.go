package judges

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func chain(t *testing.T) *Chain {
	c, err := New(Config{Limits: DefaultLimits()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestMinosFillsInDefaults(t *testing.T) {
	r := Request{Action: Create, Spec: tartarus.Spec{Timeout: time.Minute, Resources: tartarus.Resources{MemoryMB: 512}}}
	out, err := chain(t).Try(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultLimits().Default
	want.MemoryMB = 512
	if got := out.Request.Spec.Resources; got != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	if len(out.Verdicts) != 3 || !out.Verdicts[0].Allow || out.Verdicts[0].Judge != "minos" {
		t.Fatalf("verdicts %+v", out.Verdicts)
	}
}

func TestMinosHoldsToLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*tartarus.Spec)
		want   string
	}{
		"cpu":              {func(s *tartarus.Spec) { s.Resources.VCPU = 9 }, "cpuCount is 9"},
		"negative cpu":     {func(s *tartarus.Spec) { s.Resources.VCPU = -1 }, "cpuCount is -1"},
		"little memory":    {func(s *tartarus.Spec) { s.Resources.MemoryMB = 127 }, "memoryMB is 127 MiB"},
		"much memory":      {func(s *tartarus.Spec) { s.Resources.MemoryMB = 16<<10 + 1 }, "between 128 and 16384"},
		"disk":             {func(s *tartarus.Spec) { s.Resources.DiskMB = 1 << 40 }, "diskSizeMB"},
		"processes":        {func(s *tartarus.Spec) { s.Resources.PIDs = 5000 }, "processes"},
		"no time":          {func(s *tartarus.Spec) { s.Timeout = 0 }, "timeout is 0 s"},
		"too long a time":  {func(s *tartarus.Spec) { s.Timeout = 24*time.Hour + time.Second }, "between 1 and 86400 s"},
		"overflowing time": {func(s *tartarus.Spec) { s.Timeout = -1 << 62 }, "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			s := tartarus.Spec{Timeout: time.Minute}
			tc.change(&s)
			_, err := chain(t).Try(t.Context(), Request{Action: Create, Spec: s})
			if !tartarus.Is(err, tartarus.Invalid) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want an Invalid with %q", err, tc.want)
			}
		})
	}
}

// The limits of a start do not stand in the way of changing the network of what runs.
func TestNetworkActionNeedsNoLimits(t *testing.T) {
	if _, err := chain(t).Try(t.Context(), Request{Action: Network}); err != nil {
		t.Fatal(err)
	}
}

type judge struct {
	name string
	say  func(ctx context.Context, r Request) Verdict
}

func (j judge) Name() string                                 { return j.name }
func (j judge) Judge(ctx context.Context, r Request) Verdict { return j.say(ctx, r) }

// prompt knows at once.
type prompt struct{ judge }

func (j prompt) AtOnce(r Request) (Verdict, bool) { return j.say(context.Background(), r), true }

type amender func(*Request)

func (amender) Name() string       { return "amender" }
func (a amender) Amend(r *Request) { a(r) }

func allow(context.Context, Request) Verdict { return Verdict{Allow: true} }

func TestAllVerdictsAreKept(t *testing.T) {
	c := &Chain{timeout: time.Second, judges: []Judge{
		judge{"one", allow},
		judge{"two", func(context.Context, Request) Verdict { return Verdict{Kind: tartarus.Exhausted, Reason: "too many"} }},
		judge{"three", func(context.Context, Request) Verdict { panic("boom") }},
		judge{"four", func(context.Context, Request) Verdict { return Verdict{} }},
		judge{"five", allow},
		prompt{judge{"six", func(context.Context, Request) Verdict { panic("bang") }}},
		prompt{judge{"seven", func(_ context.Context, r Request) Verdict { return Verdict{Allow: r.refused} }}},
	}}
	out, err := c.Try(t.Context(), Request{})
	if !tartarus.Is(err, tartarus.Exhausted) {
		t.Fatalf("got %v, want the kind of the first refusal", err)
	}
	for _, part := range []string{"too many", "three failed: boom", "four refused", "six failed: bang"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
	if len(out.Verdicts) != 7 {
		t.Fatalf("got %d verdicts, want 7", len(out.Verdicts))
	}
	for i, want := range []bool{true, false, false, false, true, false, true} {
		if out.Verdicts[i].Allow != want {
			t.Errorf("verdict %d: %+v", i, out.Verdicts[i])
		}
	}
}

func TestAJudgeThatHangsHasSaidNo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Chain{timeout: time.Second, judges: []Judge{judge{"slow", func(ctx context.Context, _ Request) Verdict {
			<-ctx.Done()
			time.Sleep(time.Hour) // does not even listen
			return Verdict{Allow: true}
		}}}}
		began := time.Now()
		_, err := c.Try(t.Context(), Request{})
		if !tartarus.Is(err, tartarus.Denied) || time.Since(began) != time.Second {
			t.Fatalf("got %v after %s", err, time.Since(began))
		}
		time.Sleep(2 * time.Hour) // the bubble must be empty at the end
	})
}

func TestJudgesCannotChangeTheRequest(t *testing.T) {
	c := &Chain{timeout: time.Second, judges: []Judge{
		judge{"vandal", func(_ context.Context, r Request) Verdict {
			r.Spec.Env["A"], r.Spec.Network.Deny[0], r.Spec.Metadata["m"] = "changed", "changed", "changed"
			return Verdict{Allow: true}
		}},
		judge{"witness", func(_ context.Context, r Request) Verdict {
			return Verdict{Allow: r.Spec.Env["A"] == "1" && r.Spec.Network.Deny[0] == "1.1.1.1", Reason: "saw another's change"}
		}},
	}}
	env := map[string]string{"A": "1"}
	out, err := c.Try(t.Context(), Request{Spec: tartarus.Spec{
		Env: env, Metadata: map[string]string{"m": "1"}, Network: tartarus.Network{Deny: []string{"1.1.1.1"}},
	}})
	if err != nil || out.Request.Spec.Env["A"] != "1" || out.Request.Spec.Metadata["m"] != "1" || env["A"] != "1" {
		t.Fatalf("got %+v, %v", out, err)
	}
}

func TestAmenderThatPanicsIsARefusal(t *testing.T) {
	c := &Chain{timeout: time.Second, amenders: []Amender{amender(func(*Request) { panic("boom") })}, judges: []Judge{judge{"one", allow}}}
	if _, err := c.Try(t.Context(), Request{}); !tartarus.Is(err, tartarus.Denied) {
		t.Fatalf("got %v", err)
	}
}

func TestImpossibleLimitsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Limits){
		"cpu":     func(l *Limits) { l.Default.VCPU = 0 },
		"memory":  func(l *Limits) { l.Default.MemoryMB = l.Max.MemoryMB + 1 },
		"disk":    func(l *Limits) { l.Max.DiskMB = 0 },
		"pids":    func(l *Limits) { l.Default.PIDs = 0 },
		"timeout": func(l *Limits) { l.MaxTimeout = 0 },
	} {
		l := DefaultLimits()
		change(&l)
		if _, err := New(Config{Limits: l}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
