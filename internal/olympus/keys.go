package olympus

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// maxKeyName bounds what a key is called.
const maxKeyName = 128

func answerKey(k tenant.Key) api.Key {
	out := api.Key{KeyID: k.ID, Tenant: k.Tenant, Name: k.Name, Role: string(k.Role), Exec: k.Exec, Rate: k.Rate, Burst: k.Burst, Replaces: k.Replaces, CreatedAt: k.CreatedAt.UTC()}
	for at, t := range map[**time.Time]time.Time{&out.ExpiresAt: k.ExpiresAt, &out.RevokedAt: k.RevokedAt, &out.LastUsed: k.LastUsed} {
		if !t.IsZero() {
			utc := t.UTC()
			*at = &utc
		}
	}
	return out
}

// createKey makes a key. Its secret is in this answer and nowhere else.
func (s *Server) createKey(w http.ResponseWriter, r *http.Request, who caller) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.NewKey
	if err := decode(raw, &in, true); err != nil {
		return err
	}
	k, err := newKey(in, who)
	if err != nil {
		return err
	}
	// A tenant that was not entered is most likely a slip of the pen.
	if k.Tenant != tenant.Default && s.cfg.Shelf != nil {
		if _, err := s.tenants.dir.Get(r.Context(), k.Tenant); tartarus.Is(err, tartarus.NotFound) {
			return tartarus.Errorf(tartarus.NotFound, "no tenant %s: create it first", k.Tenant)
		} else if err != nil {
			return err
		}
	}
	secret := tenant.NewSecret()
	k.Hash = tenant.HashSecret(secret)
	if err := s.cfg.Keys.PutKey(r.Context(), k); err != nil {
		return err
	}
	who.act.about(k.ID, k.Tenant)
	out := answerKey(k)
	out.Key = secret
	writeJSON(w, http.StatusCreated, out)
	return nil
}

func newKey(in api.NewKey, who caller) (tenant.Key, error) {
	k := tenant.Key{ID: tartarus.NewID(), Tenant: in.Tenant, Name: in.Name, Role: tenant.Role(in.Role), Exec: in.Exec == nil || *in.Exec, Rate: in.Rate, Burst: in.Burst, CreatedAt: who.now}
	if k.Tenant == "" {
		k.Tenant = who.key.Tenant
	}
	if k.Role == "" {
		k.Role = tenant.Developer
	}
	if in.ExpiresAt != nil {
		k.ExpiresAt = *in.ExpiresAt
	}
	switch {
	case !tenant.ValidName(k.Tenant):
		return k, tartarus.Errorf(tartarus.Invalid, "tenant must be 1 to 63 lower-case letters, digits and dashes")
	case !k.Role.Covers(tenant.Reader):
		return k, tartarus.Errorf(tartarus.Invalid, "role %.20q is none of admin, operator, developer, reader", in.Role)
	case len(k.Name) > maxKeyName:
		return k, tartarus.Errorf(tartarus.Invalid, "the name of a key has up to %d bytes", maxKeyName)
	case strings.Contains(k.Name, "e2b_"):
		return k, tartarus.Errorf(tartarus.Invalid, "the name of a key must not look like its secret: it is shown to everybody")
	case in.ExpiresAt != nil && !k.ExpiresAt.After(who.now):
		return k, tartarus.Errorf(tartarus.Invalid, "expiresAt is not in the future")
	case k.Rate < 0 || k.Rate > 1e6 || k.Burst < 0 || k.Burst > 1e6:
		return k, tartarus.Errorf(tartarus.Invalid, "rate and burst must be between 0 and 1000000")
	}
	return k, nil
}

// listKeys lists the keys of a tenant, or of all.
func (s *Server) listKeys(w http.ResponseWriter, r *http.Request, _ caller) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	name := q.Get("tenant")
	if name == "" {
		name = hades.AnyTenant
	}
	keys, err := s.cfg.Keys.Keys(r.Context(), name)
	if err == nil && s.usage != nil {
		err = s.usage.Fill(r.Context(), keys)
	}
	if err != nil {
		return err
	}
	out := make([]api.Key, len(keys))
	for i, k := range keys {
		out[i] = answerKey(k)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// findKey finds a key by its id.
func (s *Server) findKey(ctx context.Context, id string) (tenant.Key, error) {
	keys, err := s.cfg.Keys.Keys(ctx, hades.AnyTenant)
	if err != nil {
		return tenant.Key{}, err
	}
	i := slices.IndexFunc(keys, func(k tenant.Key) bool { return k.ID == id })
	if i < 0 {
		return tenant.Key{}, tartarus.Errorf(tartarus.NotFound, "no key %.40q", id)
	}
	return keys[i], nil
}

// maxKeyGrace bounds how long a rotated key goes on working.
const maxKeyGrace = 30 * 24 * time.Hour

// rotateKey makes a key that takes the place of another one, which works for a while still.
func (s *Server) rotateKey(w http.ResponseWriter, r *http.Request, who caller) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.KeyRotation
	if err := decodeOptional(raw, &in, true); err != nil {
		return err
	}
	grace := time.Duration(in.GraceSeconds) * time.Second
	if in.GraceSeconds < 0 || in.GraceSeconds > int64(maxKeyGrace/time.Second) {
		return tartarus.Errorf(tartarus.Invalid, "graceSeconds must be between 0 and %d", int64(maxKeyGrace/time.Second))
	}
	old, err := s.findKey(r.Context(), chi.URLParam(r, "keyID"))
	if err != nil {
		return err
	}
	if !old.Valid(who.now) {
		return tartarus.Errorf(tartarus.Conflict, "key %s does not work any more: create a new one", old.ID)
	}
	secret := tenant.NewSecret()
	next := old
	next.ID, next.Hash, next.Replaces, next.CreatedAt, next.LastUsed = tartarus.NewID(), tenant.HashSecret(secret), old.ID, who.now, time.Time{}
	if err := s.cfg.Keys.PutKey(r.Context(), next); err != nil {
		return err
	}
	if ends := who.now.Add(grace); old.ExpiresAt.IsZero() || ends.Before(old.ExpiresAt) {
		old.ExpiresAt = ends
		if err := s.cfg.Keys.PutKey(r.Context(), old); err != nil {
			return err
		}
	}
	s.gate.forget()
	out := answerKey(next)
	out.Key = secret
	writeJSON(w, http.StatusCreated, out)
	return nil
}

// revokeKey ends a key. It stays listed, because the audit log speaks of it.
func (s *Server) revokeKey(w http.ResponseWriter, r *http.Request, who caller) error {
	k, err := s.findKey(r.Context(), chi.URLParam(r, "keyID"))
	if err != nil {
		return err
	}
	if k.ID == who.key.ID {
		return tartarus.Errorf(tartarus.Conflict, "key %s is the one of this request: revoke it with another one", k.ID)
	}
	if k.RevokedAt.IsZero() {
		k.RevokedAt = who.now
		if err := s.cfg.Keys.PutKey(r.Context(), k); err != nil {
			return err
		}
	}
	s.gate.forget()
	noContent(w)
	return nil
}
