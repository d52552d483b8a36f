package olympus

import (
	"net/http"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// listTemplates lists what the caller may make sandboxes from.
func (s *Server) listTemplates(w http.ResponseWriter, r *http.Request, who caller) error {
	templates, err := s.cfg.Templates.List(r.Context(), who.key.Tenant)
	if err != nil {
		return err
	}
	out := make([]api.Template, len(templates))
	for i, t := range templates {
		out[i] = answerTemplate(t)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// getAlias says which template a name means. SDKs ask it to learn whether there is one.
func (s *Server) getAlias(w http.ResponseWriter, r *http.Request, who caller) error {
	t, err := s.templates.resolve(r.Context(), who.key.Tenant, pathRef(r, "alias"), who.now)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.TemplateAlias{TemplateID: t.ID, Public: t.Public})
	return nil
}

// listTeams names the one tenant that a key belongs to.
func (s *Server) listTeams(w http.ResponseWriter, _ *http.Request, who caller) error {
	writeJSON(w, http.StatusOK, []api.Team{{TeamID: who.key.Tenant, Name: who.key.Tenant, IsDefault: true}})
	return nil
}

// listNodes shows operators the fleet as the registry has it.
func (s *Server) listNodes(w http.ResponseWriter, r *http.Request, who caller) error {
	nodes, err := s.cfg.Registry.Nodes(r.Context())
	if err != nil {
		return err
	}
	out := make([]api.Node, len(nodes))
	for i, n := range nodes {
		out[i] = answerNode(n, who.now)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func resources(r tartarus.Resources) api.Resources {
	return api.Resources{VCPU: r.VCPU, MemoryMB: r.MemoryMB, DiskMB: r.DiskMB}
}
