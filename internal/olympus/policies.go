package olympus

import (
	"net/http"
	"strconv"

	"github.com/go-chi/chi/v5"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

func (s *Server) needPolicies() error {
	if s.cfg.Policies == nil || s.cfg.Themis == nil {
		return tartarus.Errorf(tartarus.Unsupported, "this server has no policies")
	}
	return nil
}

func answerPolicy(d themis.Document, body bool) api.Policy {
	out := api.Policy{Name: d.Name, Version: d.Version, Author: d.Author, CreatedAt: d.CreatedAt.UTC(), Removed: d.Removed}
	if body {
		out.Body = string(d.Body)
	}
	return out
}

func (s *Server) listPolicies(w http.ResponseWriter, r *http.Request, _ caller) error {
	if err := s.needPolicies(); err != nil {
		return err
	}
	docs, err := s.cfg.Policies.List(r.Context())
	if err != nil {
		return err
	}
	writePolicies(w, docs)
	return nil
}

func writePolicies(w http.ResponseWriter, docs []themis.Document) {
	out := make([]api.Policy, len(docs))
	for i, d := range docs {
		out[i] = answerPolicy(d, true)
	}
	writeJSON(w, http.StatusOK, out)
}

// getPolicy gives a version, or the current one.
func (s *Server) getPolicy(w http.ResponseWriter, r *http.Request, _ caller) error {
	if err := s.needPolicies(); err != nil {
		return err
	}
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	version := int64(0)
	if v := q.Get("version"); v != "" {
		if version, err = strconv.ParseInt(v, 10, 64); err != nil || version < 1 {
			return tartarus.Errorf(tartarus.Invalid, "version must be a number from 1")
		}
	}
	d, err := s.cfg.Policies.Get(r.Context(), chi.URLParam(r, "policy"), version)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, answerPolicy(d, true))
	return nil
}

func (s *Server) policyHistory(w http.ResponseWriter, r *http.Request, _ caller) error {
	if err := s.needPolicies(); err != nil {
		return err
	}
	docs, err := s.cfg.Policies.History(r.Context(), chi.URLParam(r, "policy"))
	if err != nil {
		return err
	}
	writePolicies(w, docs)
	return nil
}

// applyPolicy stores a new version, if the document can be read, its expressions can be compiled, and its own tests pass. With dryRun it is
// only checked.
func (s *Server) applyPolicy(w http.ResponseWriter, r *http.Request, who caller) error {
	if err := s.needPolicies(); err != nil {
		return err
	}
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.PolicyChange
	if err := decode(raw, &in, true); err != nil {
		return err
	}
	name := chi.URLParam(r, "policy")
	compiled, err := themis.Compile([]byte(in.Body), 0)
	if err != nil {
		return err
	}
	if compiled.Name != name {
		return tartarus.Errorf(tartarus.Invalid, "the document is policy %s, not %.128s", compiled.Name, name)
	}
	results := compiled.RunTests()
	for _, t := range results {
		if !t.OK && !in.DryRun {
			return tartarus.Errorf(tartarus.Invalid, "test %q of the policy fails: it gives %s, not %s", t.Name, t.Got, t.Want)
		}
	}
	out := api.PolicyApplied{Tests: []any{}}
	for _, t := range results {
		out.Tests = append(out.Tests, t)
	}
	if in.DryRun {
		out.Policy = api.Policy{Name: name, Author: who.key.ID, Body: in.Body, CreatedAt: who.now.UTC()}
		writeJSON(w, http.StatusOK, out)
		return nil
	}
	d, err := s.cfg.Policies.Put(r.Context(), name, []byte(in.Body), who.key.ID, in.Expect)
	if err != nil {
		return err
	}
	s.reload(r)
	out.Policy = answerPolicy(d, true)
	writeJSON(w, http.StatusOK, out)
	return nil
}

// reload takes up a change at once on this replica; the others see it within a second.
func (s *Server) reload(r *http.Request) {
	if err := s.cfg.Themis.Load(r.Context()); err != nil {
		s.log.Warn("policies not read again", "error", err)
	}
}

func (s *Server) removePolicy(w http.ResponseWriter, r *http.Request, who caller) error {
	if err := s.needPolicies(); err != nil {
		return err
	}
	name := chi.URLParam(r, "policy")
	d, err := s.cfg.Policies.Get(r.Context(), name, 0)
	if err != nil {
		return err
	}
	if err := s.cfg.Policies.Remove(r.Context(), name, who.key.ID, d.Version); err != nil {
		return err
	}
	s.reload(r)
	noContent(w)
	return nil
}

// rollBackPolicy makes an earlier version the newest one, under a new number.
func (s *Server) rollBackPolicy(w http.ResponseWriter, r *http.Request, who caller) error {
	if err := s.needPolicies(); err != nil {
		return err
	}
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.PolicyRollback
	if err := decode(raw, &in, true); err != nil {
		return err
	}
	name := chi.URLParam(r, "policy")
	if in.Version < 1 {
		return tartarus.Errorf(tartarus.Invalid, "version must be a number from 1")
	}
	old, err := s.cfg.Policies.Get(r.Context(), name, in.Version)
	if err != nil {
		return err
	}
	expect := int64(0)
	if now, err := s.cfg.Policies.Get(r.Context(), name, 0); err == nil {
		expect = now.Version
	} else if !tartarus.Is(err, tartarus.NotFound) {
		return err
	}
	if _, err := themis.Compile(old.Body, 0); err != nil {
		return err
	}
	d, err := s.cfg.Policies.Put(r.Context(), name, old.Body, who.key.ID, expect)
	if err != nil {
		return err
	}
	s.reload(r)
	writeJSON(w, http.StatusOK, answerPolicy(d, true))
	return nil
}

// explainPolicies says what the policies in force would say to a request, and changes nothing.
func (s *Server) explainPolicies(w http.ResponseWriter, r *http.Request, who caller) error {
	if err := s.needPolicies(); err != nil {
		return err
	}
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in themis.Input
	if err := decode(raw, &in, true); err != nil {
		return err
	}
	if in.Request.Action == "" {
		in.Request.Action = "create"
	}
	if in.Now.IsZero() {
		in.Now = who.now.UTC()
	}
	ruling, err := s.cfg.Themis.Rule(r.Context(), &in)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.PolicyRuling{Verdict: ruling.Verdict(), Reasons: reasonsOf(ruling.Reasons), Revision: ruling.Revision, Policies: ruling.Policies, Demand: demandOf(ruling.Demand)})
	return nil
}

func demandOf(d themis.Demand) *api.PolicyDemand {
	if len(d.Reasons) == 0 {
		return nil
	}
	return &api.PolicyDemand{Tier: string(d.Tier), Runtime: d.Runtime, Reasons: reasonsOf(d.Reasons)}
}

func reasonsOf(rs []themis.Reason) []api.Reason {
	out := make([]api.Reason, len(rs))
	for i, q := range rs {
		out[i] = api.Reason{Code: q.Code, Message: q.Message, Judge: "rhadamanthus", Rule: q.Rule, Policy: q.Policy}
	}
	return out
}
