package judges

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/quota"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

// book counts what is claimed and doubted.
type book struct {
	say              *quota.Refusal
	err              error
	claimed, doubted []string
}

func (b *book) Claim(_ context.Context, c quota.Claim) (*quota.Refusal, error) {
	b.claimed = append(b.claimed, string(c.Act)+" "+c.ID)
	return b.say, b.err
}

func (b *book) Doubt(_ context.Context, tenant, id string) {
	b.doubted = append(b.doubted, tenant+" "+id)
}

type ruling func(in *themis.Input) (themis.Ruling, error)

func (f ruling) Rule(_ context.Context, in *themis.Input) (themis.Ruling, error) { return f(in) }

func lawful(t *testing.T, b *book, f ruling) *Chain {
	t.Helper()
	c, err := New(Config{Limits: DefaultLimits(), Policies: f, Ledger: b})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wished(what Action) Request {
	return Request{
		Action: what, Quota: tenant.Quota{Sandboxes: 1}, Key: tenant.Key{ID: "k", Role: tenant.Developer},
		Template: Template{ID: "t", Names: []string{"base"}, Recipe: "oci:ghcr.io/acme/app@sha256:01"},
		Spec:     tartarus.Spec{ID: "i1", Tenant: "acme", Timeout: time.Minute, Network: tartarus.Network{Internet: true}},
	}
}

func allowed(*themis.Input) (themis.Ruling, error) { return themis.Ruling{Revision: "7"}, nil }

// What a judge refuses takes nothing of the quota, and every verdict is there all the same.
func TestNothingIsClaimedForWhatIsRefused(t *testing.T) {
	b := &book{}
	c := lawful(t, b, func(*themis.Input) (themis.Ruling, error) {
		return themis.Ruling{Effect: themis.Deny, Revision: "7", Reasons: []themis.Reason{{Code: "c", Message: "m", Rule: "r", Policy: "p@3"}}}, nil
	})
	out, err := c.Try(t.Context(), wished(Create))
	e, ok := errors.AsType[*tartarus.Error](err)
	if !ok || e.Kind != tartarus.Denied || e.Code != "c" || len(e.Causes) != 1 || e.Causes[0] != (tartarus.Cause{Code: "c", Message: "m", Judge: "rhadamanthus", Rule: "r", Policy: "p@3"}) {
		t.Fatalf("got %+v", err)
	}
	if len(b.claimed) != 0 || len(out.Verdicts) != 3 || out.Verdicts[1].Policy != "7" {
		t.Fatalf("claimed %v, verdicts %+v", b.claimed, out.Verdicts)
	}
}

func TestQuotaVerdicts(t *testing.T) {
	for name, tc := range map[string]struct {
		b    book
		kind tartarus.Kind
		code string
	}{
		"room":     {},
		"no room":  {b: book{say: &quota.Refusal{Rule: "sandboxes", Message: "full", After: time.Second}}, kind: tartarus.Exhausted, code: "quota_exceeded"},
		"no store": {b: book{err: tartarus.Errorf(tartarus.Unavailable, "away")}, kind: tartarus.Unavailable, code: "quota_unknown"},
		"a fault":  {b: book{err: errors.New("boom")}, kind: tartarus.Unavailable, code: "quota_unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			for act, want := range map[Action]string{Create: "start i1", Resume: "wake i1", Pause: "sleep i1", Snapshot: "keep i1"} {
				b := tc.b
				out, err := lawful(t, &b, allowed).Try(t.Context(), wished(act))
				if len(b.claimed) != 1 || b.claimed[0] != want {
					t.Errorf("%s: claimed %v", act, b.claimed)
				}
				if tc.kind == "" {
					if err != nil || len(b.doubted) != 0 {
						t.Errorf("%s: %v, doubted %v", act, err, b.doubted)
					}
					continue
				}
				e, ok := errors.AsType[*tartarus.Error](err)
				if !ok || e.Kind != tc.kind || e.Code != tc.code || out.Verdicts[2].Judge != "minos" || len(b.doubted) != 1 {
					t.Errorf("%s: got %+v, doubted %v", act, err, b.doubted)
				}
			}
		})
	}
	b := &book{say: &quota.Refusal{}}
	r := wished(Create)
	r.Quota = tenant.Quota{}
	if _, err := lawful(t, b, allowed).Try(t.Context(), r); err != nil || len(b.claimed) != 0 {
		t.Fatalf("without a quota: %v, claimed %v", err, b.claimed)
	}
}

// Policies see provenance and egress, and their word for quarantine is the outcome's.
func TestRhadamanthus(t *testing.T) {
	var seen themis.Input
	b := &book{}
	c := lawful(t, b, func(in *themis.Input) (themis.Ruling, error) {
		seen = *in
		return themis.Ruling{Effect: themis.Quarantine, Reasons: []themis.Reason{{Code: "q", Message: "apart", Rule: "r", Policy: "p@1"}}}, nil
	})
	out, err := c.Try(t.Context(), wished(Create))
	if err != nil || !out.Quarantine() || len(b.claimed) != 1 {
		t.Fatalf("got %+v, %v", out, err)
	}
	if seen.Template.Registry != "ghcr.io" || !seen.Template.Pinned || !seen.Request.AllEgress || seen.Request.VCPU != 2 || seen.Tenant.Name != "acme" || seen.Now.IsZero() {
		t.Fatalf("policies saw %+v", seen)
	}
	if out, err = c.Try(t.Context(), wished(Pause)); err != nil || out.Quarantine() {
		t.Fatalf("policies are not about pauses: %+v, %v", out, err)
	}
	unknown := lawful(t, b, func(*themis.Input) (themis.Ruling, error) {
		return themis.Ruling{}, tartarus.Errorf(tartarus.Unavailable, "not read yet")
	})
	if _, err := unknown.Try(t.Context(), wished(Create)); !tartarus.Is(err, tartarus.Unavailable) {
		t.Fatalf("policies that are not known: %v", err)
	}
	for image, want := range map[string]string{"debian": "docker.io", "library/debian:12": "docker.io", "localhost/x": "localhost", "r.example:5000/x": "r.example:5000", "quay.io/a/b": "quay.io"} {
		if got := registryOf(image); got != want {
			t.Errorf("%s is from %s, want %s", image, got, want)
		}
	}
}
