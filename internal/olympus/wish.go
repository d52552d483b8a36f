package olympus

import (
	"context"
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

// wish is a request as the judges see it.
func (s *Server) wish(ctx context.Context, what judges.Action, who caller, spec tartarus.Spec) (judges.Request, error) {
	r := judges.Request{Action: what, Key: who.key, Spec: spec, Now: who.now, Template: judges.Template{ID: spec.TemplateID}}
	t, err := s.tenants.find(ctx, spec.Tenant, who.now)
	if err != nil {
		return r, err
	}
	r.TenantLabels, r.Quota = t.Labels, t.Quota
	found, err := s.templates.version(ctx, spec.TemplateID, spec.BuildID, who.now)
	switch {
	case err == nil:
		r.Template = judges.Template{ID: found.ID, Names: found.Names, Digest: found.Digest, Recipe: found.Recipe, Signers: s.signers(found.SignedBy)}
	case tartarus.Is(err, tartarus.NotFound):
		// A sandbox goes on although its template is gone; where that came from nobody can say any more.
		r.Template.Recipe = judges.RecipeUnknown
	default:
		return r, err
	}
	r.History = func(ctx context.Context) (themis.HistoryInput, error) {
		return s.history(ctx, spec.Tenant, spec.TemplateID)
	}
	return r, nil
}

// signers are the names of keys, of those that are still known.
func (s *Server) signers(ids []string) (names []string) {
	for _, id := range ids {
		if name, ok := s.cfg.Signers[id]; ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// held asks whether a tenant's quota has room for what is done with a sandbox that is there. Where nothing comes of it, undo must be called.
func (s *Server) held(ctx context.Context, what judges.Action, sb tartarus.Sandbox, keptMB int64, now time.Time) (undo func(), err error) {
	t, err := s.tenants.find(ctx, sb.Tenant, now)
	if err != nil || t.Quota.Unbounded() {
		return func() {}, err
	}
	out, err := s.cfg.Judges.Try(ctx, judges.Request{Action: what, Spec: sb.Spec, Quota: t.Quota, Revision: sb.Revision, KeptMB: keptMB, Now: now})
	return func() { s.cfg.Judges.Undo(ctx, out.Request) }, err
}

// maxHistory is how many earlier sandboxes of a tenant are looked at.
const maxHistory = 1000

// history is what a tenant did before, while the registry remembers it.
func (s *Server) history(ctx context.Context, name, template string) (out themis.HistoryInput, err error) {
	page, err := s.cfg.Registry.ListSandboxes(ctx, hades.Query{Tenant: name, Phases: tartarus.Phases, Limit: maxHistory})
	if err != nil {
		return out, err
	}
	for _, sb := range page.Sandboxes {
		out.Creates++
		switch {
		case !sb.Phase.Ended():
			out.Running++
			if sb.Phase != tartarus.Paused {
				out.VCPU += int64(sb.Resources.VCPU)
			}
		case sb.Phase == tartarus.Failed, sb.Reason == tartarus.ReasonPolicy:
			out.Failed++
		}
	}
	if s.cfg.Strikes != nil {
		out.Strikes, out.TemplateStrikes, err = s.cfg.Strikes(ctx, name, template)
	}
	return out, err
}

// errNoQuarantine refuses what may only run apart from everything else, of a sandbox that does not: it cannot become so.
func errNoQuarantine(out judges.Outcome) error {
	why := ""
	for _, v := range out.Verdicts {
		if v.Quarantine {
			why = v.Reason
		}
	}
	return &tartarus.Error{Kind: tartarus.Denied, Code: "quarantine", Message: "it may only run in quarantine, and this sandbox does not: " + why}
}

// clone records what the judges said to one clone of a fork, before it starts.
func (rec *recorder) clone(ctx context.Context, who caller, spec tartarus.Spec, out judges.Outcome) error {
	if rec.log == nil || who.act == nil {
		return nil
	}
	a := &act{action: action{name: "sandbox.create", judged: true}, log: rec.log, record: who.act.record}
	a.record.Action = a.name
	a.about(spec.ID, spec.Tenant)
	return a.decided(ctx, out, map[string]string{"forkOf": who.act.record.Object.ID, "templateID": spec.TemplateID})
}
