package judges

import (
	"context"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/quota"
)

// Ledger counts what tenants hold; quota.Ledger does.
type Ledger interface {
	// Claim grants what fits into the quota, and says why what does not fit is refused.
	Claim(ctx context.Context, c quota.Claim) (*quota.Refusal, error)
	// Doubt says that a claim may have come to nothing. It does not wait.
	Doubt(ctx context.Context, tenant, id string)
}

// Quotas is the part of Minos that counts: what a tenant's sandboxes take together, on all replicas. It is the last judge, because what it
// allows it has taken: where another one refused, it takes nothing.
type Quotas struct {
	ledger Ledger
}

// Name is minos.
func (*Quotas) Name() string { return "minos" }

// Patience is the time for claims that wait behind a flood of others, and for a store that is slow: more than a round of the ledger, which
// answers by itself when the store does not.
func (*Quotas) Patience() time.Duration { return 15 * time.Second }

var acts = map[Action]quota.Act{Create: quota.Start, Resume: quota.Wake, Pause: quota.Sleep, Snapshot: quota.Keep}

// AtOnce implements Prompt: what takes nothing of a quota, or has none, is not counted.
func (q *Quotas) AtOnce(r Request) (v Verdict, known bool) {
	_, counted := acts[r.Action]
	v.Allow = q.ledger == nil || !counted || r.refused || r.Dry || r.Quota.Unbounded()
	return v, v.Allow
}

// Judge claims what the request needs.
func (q *Quotas) Judge(ctx context.Context, r Request) Verdict {
	if v, known := q.AtOnce(r); known {
		return v
	}
	why, err := q.ledger.Claim(ctx, quota.Claim{
		Act: acts[r.Action], Tenant: r.Spec.Tenant, Quota: r.Quota, ID: r.Spec.ID, Revision: r.Revision, Resources: r.Spec.Resources, KeptMB: r.KeptMB, Now: r.Now,
	})
	switch {
	case err != nil:
		kind := tartarus.KindOf(err)
		if kind == tartarus.Internal {
			kind = tartarus.Unavailable
		}
		return Verdict{Kind: kind, Reason: "the quota cannot be told: " + err.Error(), Reasons: []Reason{{Code: "quota_unknown", Message: err.Error()}}}
	case why != nil:
		return Verdict{
			Kind: tartarus.Exhausted, Reason: why.Message, RetryAfter: why.After,
			Reasons: []Reason{{Code: "quota_exceeded", Message: why.Message, Rule: "quota." + why.Rule}},
		}
	}
	return Verdict{Allow: true}
}
