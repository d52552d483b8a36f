package olympus

import (
	"bufio"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/audit"
)

const (
	defaultAuditPage = 100
	maxAuditPage     = 1000
)

func (s *Server) needAudit() error {
	if s.cfg.Audit == nil || s.cfg.Sealer == nil {
		return tartarus.Errorf(tartarus.Unsupported, "this server keeps no audit log")
	}
	return nil
}

// auditQuery reads the filters of a query.
func auditQuery(q url.Values) (out audit.Query, err error) {
	for name, at := range map[string]*time.Time{"since": &out.Since, "until": &out.Until} {
		if v := q.Get(name); v != "" {
			if *at, err = time.Parse(time.RFC3339Nano, v); err != nil {
				return out, tartarus.Errorf(tartarus.Invalid, "%s %.40q is no time such as 2026-01-31T12:00:00Z", name, v)
			}
		}
	}
	switch v := audit.Verdict(q.Get("verdict")); v {
	case "", audit.Allow, audit.Deny, audit.Quarantine:
		out.Verdict = v
	default:
		return out, tartarus.Errorf(tartarus.Invalid, "verdict %.20q is none of allow, deny, quarantine", v)
	}
	switch v := q.Get("failed"); v {
	case "", "false":
	case "true":
		out.Failed = true
	default:
		return out, tartarus.Errorf(tartarus.Invalid, "failed %.20q must be true or false", v)
	}
	out.Tenant, out.Actor, out.Action, out.Object, out.Request = q.Get("tenant"), q.Get("actor"), q.Get("action"), q.Get("object"), q.Get("request")
	return out, nil
}

// listAudit gives the newest records, or those behind a token.
func (s *Server) listAudit(w http.ResponseWriter, r *http.Request, _ caller) error {
	if err := s.needAudit(); err != nil {
		return err
	}
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	filter, err := auditQuery(q)
	if err != nil {
		return err
	}
	limit := defaultAuditPage
	if v := q.Get("limit"); v != "" {
		if limit, err = strconv.Atoi(v); err != nil || limit < 1 || limit > maxAuditPage {
			return tartarus.Errorf(tartarus.Invalid, "limit must be between 1 and %d", maxAuditPage)
		}
	}
	var found []audit.Record
	var at audit.Position
	if token := q.Get("nextToken"); token != "" {
		var from audit.Position
		if from, err = audit.ParsePosition(token); err != nil {
			return err
		}
		found, at, err = audit.After(s.cfg.Audit.Dir(), filter, from, limit)
	} else {
		found, at, err = audit.Latest(s.cfg.Audit.Dir(), filter, limit)
	}
	if err != nil {
		return err
	}
	w.Header().Set(api.HeaderNextToken, at.String())
	writeJSON(w, http.StatusOK, found)
	return nil
}

// exportAudit streams all matching records in a format that other systems read.
func (s *Server) exportAudit(w http.ResponseWriter, r *http.Request, _ caller) error {
	if err := s.needAudit(); err != nil {
		return err
	}
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	filter, err := auditQuery(q)
	if err != nil {
		return err
	}
	encode, err := audit.Encoder(q.Get("format"), s.cfg.Version)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := bufio.NewWriterSize(w, 64<<10)
	err = audit.Walk(s.cfg.Audit.Dir(), filter, func(rec audit.Record, line []byte) error {
		if err := r.Context().Err(); err != nil {
			return err
		}
		b, err := encode(rec, line)
		if err == nil {
			_, err = out.Write(b)
		}
		return err
	})
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		s.log.Warn("audit export not finished", "error", err)
		panic(http.ErrAbortHandler) // part of it is sent: a broken stream must not pass for a whole one
	}
	return nil
}

// verifyAudit holds the log against its hashes and signatures.
func (s *Server) verifyAudit(w http.ResponseWriter, r *http.Request, _ caller) error {
	if err := s.needAudit(); err != nil {
		return err
	}
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	report, err := s.cfg.Sealer.Verify(r.Context(), q.Get("root"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, report)
	return nil
}

// listAuditKeys names the keys whose signatures count.
func (s *Server) listAuditKeys(w http.ResponseWriter, _ *http.Request, _ caller) error {
	if err := s.needAudit(); err != nil {
		return err
	}
	trust, own := s.cfg.Sealer.Keys()
	out := []api.AuditKey{}
	for _, k := range trust {
		out = append(out, api.AuditKey{KeyID: k.ID, PublicKey: k.Key, Own: k == own})
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// rotateAuditKey gives this replica a new signing key.
func (s *Server) rotateAuditKey(w http.ResponseWriter, r *http.Request, _ caller) error {
	if err := s.needAudit(); err != nil {
		return err
	}
	k, err := s.cfg.Sealer.Rotate(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, api.AuditKey{KeyID: k.ID, PublicKey: k.Key, Own: true})
	return nil
}

func (s *Server) trustAuditKey(w http.ResponseWriter, r *http.Request, _ caller) error {
	if err := s.needAudit(); err != nil {
		return err
	}
	if err := s.cfg.Sealer.Trust(r.Context(), chi.URLParam(r, "keyID")); err != nil {
		return err
	}
	noContent(w)
	return nil
}

func (s *Server) distrustAuditKey(w http.ResponseWriter, r *http.Request, _ caller) error {
	if err := s.needAudit(); err != nil {
		return err
	}
	if err := s.cfg.Sealer.Distrust(r.Context(), chi.URLParam(r, "keyID")); err != nil {
		return err
	}
	noContent(w)
	return nil
}
