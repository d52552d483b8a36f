package daemon

import (
	"context"

	"github.com/tartarus-sandbox/tartarus/internal/audit"
	"github.com/tartarus-sandbox/tartarus/internal/typhon"
)

// limits is t in the words of package typhon.
func (t Typhon) limits() typhon.Limits {
	return typhon.Limits{Packets: int64(t.Packets), Targets: t.Targets}
}

// rule is t in the words of package typhon.
func (t Typhon) rule() typhon.Rule {
	return typhon.Rule{Window: t.Window, Sandbox: t.Strikes, Template: t.TemplateStrikes, Tenant: t.TenantStrikes}
}

// strikes is where a node's strikes are counted: by a replica, or here.
func (d *Daemon) strikes(p *parts) func(context.Context, typhon.Strike) (string, error) {
	if p.uplink != nil {
		return p.uplink.Strike
	}
	return func(ctx context.Context, s typhon.Strike) (string, error) { return d.strike(ctx, p, s) }
}

// strikeCount tells policies of the strikes that still count.
func (d *Daemon) strikeCount(p *parts) func(ctx context.Context, tenant, template string) (int64, int64, error) {
	ledger := typhon.NewLedger(p.kept.vault, d.cfg.Typhon.rule())
	return func(ctx context.Context, tenant, template string) (int64, int64, error) {
		n, err := ledger.Count(ctx, tenant, template, "")
		return int64(n.Tenant), int64(n.Template), err
	}
}

// strike counts what a sandbox did, and says why it has to go into quarantine for it. That is on record before it happens.
func (d *Daemon) strike(ctx context.Context, p *parts, s typhon.Strike) (string, error) {
	why, err := typhon.NewLedger(p.kept.vault, d.cfg.Typhon.rule()).Strike(ctx, s)
	if err != nil || p.law.log == nil {
		return why, err
	}
	r := audit.Record{
		Action: "sandbox.strike", Stage: audit.Attempt, Actor: audit.Actor{Kind: audit.BySystem, ID: "typhon"}, Tenant: s.Tenant,
		Object: audit.Object{Kind: "sandbox", ID: s.Sandbox}, Verdict: audit.Allow, Detail: map[string]string{"kind": string(s.Kind), "detail": s.Detail},
	}
	if why != "" {
		r.Action, r.Verdict, r.Reasons = "quarantine.add", audit.Quarantine, []audit.Reason{{Code: string(s.Kind), Message: why, Judge: "typhon"}}
	}
	return why, p.law.log.Append(ctx, r)
}
