package olympus

import (
	"context"
	"net/http"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
	"github.com/tartarus-sandbox/tartarus/internal/phlegethon"
)

// want is what a sandbox needs of a node.
func want(spec tartarus.Spec, tier tartarus.Tier) phlegethon.Want {
	return phlegethon.Want{
		Resources: spec.Resources, Runtime: spec.Runtime, Tier: tier, Build: spec.BuildID, Heat: phlegethon.Heat(spec.Heat), Confined: spec.Confined != "",
	}
}

// needs is what a sandbox needs of a node, in the order in which it is asked for. One made from a snapshot goes where that is; where that
// node does not take it, it goes to another one if there is a copy to fetch.
func (s *Server) needs(ctx context.Context, spec tartarus.Spec, tier tartarus.Tier) ([]phlegethon.Want, error) {
	need := want(spec, tier)
	if spec.SnapshotID == "" {
		return []phlegethon.Want{need}, nil
	}
	snap, err := s.findSnapshot(ctx, spec.Tenant, spec.SnapshotID)
	if err != nil {
		return nil, err
	}
	if snap.Node == "" {
		return []phlegethon.Want{need}, nil
	}
	there := need
	// What it is made from is there, whether or not the template still is.
	there.Only, there.Near, there.Runtime, there.Build = snap.Node, snap.Node, snap.Runtime, ""
	if !snap.Copied {
		return []phlegethon.Want{there}, nil
	}
	return []phlegethon.Want{there, need}, nil
}

// explainPlacement says where a sandbox would go and why, and makes none.
func (s *Server) explainPlacement(w http.ResponseWriter, r *http.Request, who caller) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	spec, tier, err := s.newSpec(r.Context(), raw, who, v2)
	if err != nil {
		return err
	}
	wish, err := s.wish(r.Context(), judges.Create, who, spec)
	if err != nil {
		return err
	}
	wish.Tier, wish.Dry = tier, true
	verdict, err := s.cfg.Judges.Try(r.Context(), wish)
	if err != nil {
		return err
	}
	spec, tier = verdict.Request.Spec, verdict.Request.Tier
	confine(&spec, &tier, verdict)
	heated := s.heat(spec, s.pasts.peek(spec.TemplateID, who.now), verdict.Request.Heat)
	spec.Heat = string(heated.Heat)
	out, err := s.explain(r.Context(), spec, tier, who)
	if err != nil {
		return err
	}
	out.Heat, out.HeatWhy, out.Own, out.Crowd, out.Confined = string(heated.Heat), heated.Why, heated.Own, heated.Crowd, spec.Confined
	writeJSON(w, http.StatusOK, out)
	return nil
}

func (s *Server) explain(ctx context.Context, spec tartarus.Spec, tier tartarus.Tier, who caller) (api.Placement, error) {
	needs, err := s.needs(ctx, spec, tier)
	if err != nil {
		return api.Placement{}, err
	}
	var got phlegethon.Placement
	var seen []phlegethon.Candidate
	for _, need := range needs {
		if got, seen, err = s.placer.explain(ctx, need, who.now); err == nil {
			break
		}
	}
	out := api.Placement{Candidates: []api.PlacementCandidate{}, Nodes: api.PlacementNodes(got.Explain)}
	switch {
	case tartarus.Is(err, tartarus.Unavailable), tartarus.Is(err, tartarus.Unsupported), tartarus.Is(err, tartarus.Denied):
		out.Refused = err.Error()
	case err != nil:
		return out, err
	default:
		out.Node, out.Pool, out.Runtime, out.Full, out.Warm = got.Node, string(got.Pool), got.Runtime, got.Full, got.Warm
	}
	for _, c := range seen {
		out.Candidates = append(out.Candidates, api.PlacementCandidate{Node: c.Node, Pool: string(c.Pool), Warm: c.Warm, Near: c.Near, Load: c.Load})
	}
	return out, nil
}
