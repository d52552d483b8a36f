package olympus

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/recent"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// tenants finds what is known of the tenants of keys. A tenant that nobody entered is one without quota.
type tenants struct {
	dir   *tenant.Directory // nil knows none
	fresh *recent.Cache[string, tenant.Tenant]
	last  sync.Map // by name: what holds while the store is away
}

func newTenants(store shelf.Store) *tenants {
	t := &tenants{fresh: recent.New[string, tenant.Tenant](knownKeys, keyTTL)}
	if store != nil {
		t.dir = tenant.NewDirectory(store)
	}
	return t
}

// find returns a tenant as it was at most keyTTL ago, or, while the store is away, as it was last seen.
func (t *tenants) find(ctx context.Context, name string, now time.Time) (tenant.Tenant, error) {
	if t.dir == nil {
		return tenant.Tenant{Name: name}, nil
	}
	if found, ok := t.fresh.Get(name, now); ok {
		return found, nil
	}
	found, err := t.dir.Get(ctx, name)
	switch {
	case tartarus.Is(err, tartarus.NotFound):
		found = tenant.Tenant{Name: name}
	case err != nil:
		if old, ok := t.last.Load(name); ok {
			return old.(tenant.Tenant), nil
		}
		return found, err
	}
	t.fresh.Put(name, found, now)
	t.last.Store(name, found)
	return found, nil
}

// changed makes a change count at once on this replica.
func (t *tenants) changed(name string) { t.fresh.Drop(name) }

func (s *Server) needTenants() error {
	if s.cfg.Shelf == nil {
		return tartarus.Errorf(tartarus.Unsupported, "this server keeps no tenants")
	}
	return nil
}

func answerTenant(t tenant.Tenant) api.Tenant {
	out := api.Tenant{Name: t.Name, Title: t.Title, Labels: t.Labels, Quota: api.Quota(t.Quota), Disabled: t.Disabled}
	if !t.CreatedAt.IsZero() {
		at := t.CreatedAt.UTC()
		out.CreatedAt = &at
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	return out
}

// applyTenant changes what a client named.
func applyTenant(t *tenant.Tenant, in api.TenantChange) {
	if in.Title != nil {
		t.Title = *in.Title
	}
	if in.Labels != nil {
		t.Labels = in.Labels
	}
	if in.Quota != nil {
		t.Quota = tenant.Quota(*in.Quota)
	}
	if in.Disabled != nil {
		t.Disabled = *in.Disabled
	}
}

func (s *Server) createTenant(w http.ResponseWriter, r *http.Request, who caller) error {
	if err := s.needTenants(); err != nil {
		return err
	}
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.NewTenant
	if err := decode(raw, &in, true); err != nil {
		return err
	}
	t := tenant.Tenant{Name: in.Name, CreatedAt: who.now.UTC()}
	applyTenant(&t, in.TenantChange)
	if err := s.tenants.dir.Create(r.Context(), t); err != nil {
		return err
	}
	who.act.about(t.Name, t.Name)
	s.tenants.changed(t.Name)
	if s.cfg.Quotas != nil && !t.Quota.Unbounded() {
		if err := s.cfg.Quotas.Changed(r.Context(), t.Name); err != nil {
			return err
		}
	}
	writeJSON(w, http.StatusCreated, answerTenant(t))
	return nil
}

func (s *Server) listTenants(w http.ResponseWriter, r *http.Request, _ caller) error {
	if err := s.needTenants(); err != nil {
		return err
	}
	found, err := s.tenants.dir.List(r.Context())
	if err != nil {
		return err
	}
	out := make([]api.Tenant, len(found))
	for i, t := range found {
		out[i] = answerTenant(t)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func (s *Server) getTenant(w http.ResponseWriter, r *http.Request, who caller) error {
	if err := s.needTenants(); err != nil {
		return err
	}
	t, err := s.tenants.dir.Get(r.Context(), chi.URLParam(r, "tenant"))
	if err != nil {
		return err
	}
	out := answerTenant(t)
	if s.cfg.Quotas != nil {
		u, err := s.cfg.Quotas.Usage(r.Context(), t.Name, who.now)
		if err != nil {
			return err
		}
		usage := api.Usage(u)
		out.Usage = &usage
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func (s *Server) changeTenant(w http.ResponseWriter, r *http.Request, _ caller) error {
	if err := s.needTenants(); err != nil {
		return err
	}
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.TenantChange
	if err := decode(raw, &in, true); err != nil {
		return err
	}
	name := chi.URLParam(r, "tenant")
	t, err := s.tenants.dir.Change(r.Context(), name, func(t *tenant.Tenant) { applyTenant(t, in) })
	if err != nil {
		return err
	}
	s.tenants.changed(name)
	if s.cfg.Quotas != nil && in.Quota != nil {
		if err := s.cfg.Quotas.Changed(r.Context(), name); err != nil {
			return err
		}
	}
	writeJSON(w, http.StatusOK, answerTenant(t))
	return nil
}

// deleteTenant forgets a tenant that has neither keys that work nor sandboxes.
func (s *Server) deleteTenant(w http.ResponseWriter, r *http.Request, who caller) error {
	if err := s.needTenants(); err != nil {
		return err
	}
	name := chi.URLParam(r, "tenant")
	if _, err := s.tenants.dir.Get(r.Context(), name); err != nil {
		return err
	}
	keys, err := s.cfg.Keys.Keys(r.Context(), name)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.Valid(who.now) {
			return tartarus.Errorf(tartarus.Conflict, "tenant %s has key %s, which works: revoke its keys first", name, k.ID)
		}
	}
	page, err := s.cfg.Registry.ListSandboxes(r.Context(), hades.Query{Tenant: name, Phases: livePhases, Limit: 1})
	if err != nil {
		return err
	}
	if len(page.Sandboxes) > 0 {
		return tartarus.Errorf(tartarus.Conflict, "tenant %s has sandboxes: end them first", name)
	}
	for _, k := range keys {
		if err := s.cfg.Keys.RemoveKey(r.Context(), k.ID); err != nil {
			return err
		}
		if err := s.usage.Forget(r.Context(), k.ID); err != nil {
			return err
		}
	}
	if err := s.tenants.dir.Remove(r.Context(), name); err != nil {
		return err
	}
	s.tenants.changed(name)
	noContent(w)
	return nil
}

// livePhases are those of sandboxes that have not ended.
var livePhases = func() (out []tartarus.Phase) {
	for _, p := range tartarus.Phases {
		if !p.Ended() {
			out = append(out, p)
		}
	}
	return out
}()

// flushUsage writes when keys were last used.
func (s *Server) flushUsage(ctx context.Context, _ time.Time) error {
	if s.usage == nil {
		return nil
	}
	return s.usage.Flush(ctx)
}
