package olympus

import (
	"context"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/audit"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// Quarantiner is a Node that can cut sandboxes off and freeze them.
type Quarantiner interface {
	// Quarantine cuts a running sandbox off, freezes it and keeps evidence. One that is paused is held as it is, and nothing of it runs. One that is
	// neither is tartarus.Conflict.
	Quarantine(ctx context.Context, id string, q tartarus.Quarantine) (tartarus.Sandbox, error)
	// Release lets it go on: one that was paused sleeps on. One that is not in quarantine is tartarus.Conflict.
	Release(ctx context.Context, id string) (tartarus.Sandbox, error)
	// Evidence returns what was found, also after the sandbox has gone; none is tartarus.NotFound.
	Evidence(ctx context.Context, id string) (tartarus.Evidence, error)
	// Examine looks at the disk of one in quarantine, in a new machine without network.
	Examine(ctx context.Context, id string) (tartarus.Inspection, error)
}

// maxReason bounds what an operator writes down.
const maxReason = 1000

// readReason reads why, which is never left out: whoever reads the record later was not there.
func readReason(w http.ResponseWriter, r *http.Request) (string, error) {
	raw, err := readBody(w, r)
	if err != nil {
		return "", err
	}
	var in api.QuarantineRequest
	if err := decode(raw, &in, true); err != nil {
		return "", err
	}
	reason := strings.TrimSpace(in.Reason)
	if reason == "" || len(reason) > maxReason || !utf8.ValidString(reason) {
		return "", tartarus.Errorf(tartarus.Invalid, "reason must be 1 to %d bytes of text", maxReason)
	}
	return reason, nil
}

// anyones finds a sandbox of whatever tenant. Only operators' routes use it.
func (s *Server) anyones(r *http.Request) (tartarus.Sandbox, error) {
	id := pathID(r)
	if !tartarus.ValidID(id) {
		return tartarus.Sandbox{}, errNoSandbox(id)
	}
	sb, err := s.cfg.Registry.Sandbox(r.Context(), hades.AnyTenant, id)
	if tartarus.Is(err, tartarus.NotFound) {
		return sb, errNoSandbox(id)
	}
	return sb, err
}

// quarantined finds a sandbox of whatever tenant that is in quarantine.
func (s *Server) quarantined(r *http.Request) (tartarus.Sandbox, error) {
	sb, err := s.anyones(r)
	if err == nil && sb.Phase != tartarus.Quarantined {
		err = tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s, not quarantined", sb.ID, sb.Phase)
	}
	return sb, err
}

func (s *Server) quarantiner(r *http.Request, sb tartarus.Sandbox) (Quarantiner, error) {
	node, err := s.onNode(r, sb)
	if err != nil {
		return nil, err
	}
	q, ok := node.(Quarantiner)
	if !ok {
		return nil, unsupported("quarantine")
	}
	return q, nil
}

// quarantine cuts a running sandbox off and freezes it, or holds one that is paused.
func (s *Server) quarantine(w http.ResponseWriter, r *http.Request, who caller) error {
	reason, err := readReason(w, r)
	if err != nil {
		return err
	}
	sb, err := s.anyones(r)
	if err != nil {
		return err
	}
	if sb.Phase.Ended() {
		return errNoSandbox(sb.ID)
	}
	node, err := s.quarantiner(r, sb)
	if err != nil {
		return err
	}
	if sb, err = node.Quarantine(r.Context(), sb.ID, tartarus.Quarantine{By: who.key.ID, Reason: reason}); err != nil {
		return err
	}
	s.cfg.Changed(sb)
	writeJSON(w, http.StatusOK, answerQuarantined(sb))
	return nil
}

// listQuarantined lists what is in quarantine, of all tenants.
func (s *Server) listQuarantined(w http.ResponseWriter, r *http.Request, _ caller) error {
	q := hades.Query{Tenant: hades.AnyTenant, Phases: []tartarus.Phase{tartarus.Quarantined}, Limit: hades.MaxLimit}
	out := []api.Quarantined{}
	for {
		page, err := s.cfg.Registry.ListSandboxes(r.Context(), q)
		if err != nil {
			return err
		}
		for _, sb := range page.Sandboxes {
			out = append(out, answerQuarantined(sb))
		}
		if page.Next == (hades.Cursor{}) || len(out) >= 10*hades.MaxLimit {
			writeJSON(w, http.StatusOK, out)
			return nil
		}
		q.After = page.Next
	}
}

// maxAuditSlice bounds how many records of a sandbox go with its evidence.
const maxAuditSlice = 1000

// evidence shows what was found in a sandbox, with what the audit log knows of it.
func (s *Server) evidence(w http.ResponseWriter, r *http.Request, _ caller) error {
	sb, err := s.anyones(r)
	if err != nil {
		return err
	}
	node, err := s.quarantiner(r, sb)
	if err != nil {
		return err
	}
	e, err := node.Evidence(r.Context(), sb.ID)
	if err != nil {
		return err
	}
	out := struct {
		api.Quarantined
		Evidence tartarus.Evidence `json:"evidence"`
		Audit    []audit.Record    `json:"audit"`
	}{answerQuarantined(sb), e, []audit.Record{}}
	if s.cfg.Audit != nil {
		found, _, err := audit.Latest(s.cfg.Audit.Dir(), audit.Query{Object: sb.ID}, maxAuditSlice)
		if err != nil {
			return err
		}
		out.Audit = append(out.Audit, found...)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// examine looks at what a sandbox in quarantine has on its disk.
func (s *Server) examine(w http.ResponseWriter, r *http.Request, _ caller) error {
	sb, err := s.quarantined(r)
	if err != nil {
		return err
	}
	node, err := s.quarantiner(r, sb)
	if err != nil {
		return err
	}
	in, err := node.Examine(r.Context(), sb.ID)
	if err != nil {
		return err
	}
	if in.Files == nil {
		in.Files = []tartarus.GuestFile{}
	}
	writeJSON(w, http.StatusOK, in)
	return nil
}

// release lets a sandbox go on. It takes a second person: whoever put it there has not seen it with other eyes.
func (s *Server) release(w http.ResponseWriter, r *http.Request, who caller) error {
	if _, err := readReason(w, r); err != nil {
		return err
	}
	sb, err := s.quarantined(r)
	if err != nil {
		return err
	}
	if sb.Quarantine != nil && sb.Quarantine.By == who.key.ID {
		return tartarus.Errorf(tartarus.Forbidden, "this key put sandbox %s into quarantine; its release takes another operator's", sb.ID)
	}
	node, err := s.quarantiner(r, sb)
	if err != nil {
		return err
	}
	if sb, err = node.Release(r.Context(), sb.ID); err != nil {
		return err
	}
	s.cfg.Changed(sb)
	writeJSON(w, http.StatusOK, answerQuarantined(sb))
	return nil
}

// destroy ends a sandbox in quarantine. Its evidence stays.
func (s *Server) destroy(w http.ResponseWriter, r *http.Request, _ caller) error {
	sb, err := s.quarantined(r)
	if err != nil {
		return err
	}
	node, err := s.onNode(r, sb)
	if err != nil {
		return err
	}
	if err := node.Stop(r.Context(), sb.ID, tartarus.ReasonPolicy); err != nil {
		return err
	}
	noContent(w)
	return nil
}

func answerQuarantined(sb tartarus.Sandbox) api.Quarantined {
	out := api.Quarantined{SandboxID: sb.ID, Tenant: sb.Tenant, TemplateID: sb.TemplateID, Alias: sb.Template, Node: sb.Node, Phase: string(sb.Phase)}
	if q := sb.Quarantine; q != nil {
		out.Since, out.By, out.Reason, out.Snapshot, out.Paused = q.Since.UTC(), q.By, q.Reason, q.Snapshot, q.Paused
	}
	return out
}
