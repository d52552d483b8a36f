package olympus

import (
	"encoding/base64"
	"net/http"
	"net/url"

	"github.com/go-chi/chi/v5"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/secret"
)

// vault is where secrets are, on a server that has some.
func (s *Server) vault() (*secret.Vault, error) {
	if s.cfg.Secrets == nil {
		return nil, tartarus.Errorf(tartarus.Unsupported, "this server keeps no secrets")
	}
	return s.cfg.Secrets, nil
}

// createSecret makes a secret.
func (s *Server) createSecret(w http.ResponseWriter, r *http.Request, who caller) error {
	v, in, err := s.secretBody(w, r)
	if err != nil {
		return err
	}
	info, err := v.Create(r.Context(), who.key.Tenant, in.Name, in.Value, in.Metadata)
	if err != nil {
		return err
	}
	s.log.Info("secret created", "tenant", info.Tenant, "secret", info.ID)
	writeJSON(w, http.StatusCreated, answerSecret(info))
	return nil
}

// updateSecret gives a secret a new value.
func (s *Server) updateSecret(w http.ResponseWriter, r *http.Request, who caller) error {
	v, in, err := s.secretBody(w, r)
	if err != nil {
		return err
	}
	info, err := v.Update(r.Context(), who.key.Tenant, pathParam(r, "secretID"), in.Value, in.Metadata)
	if err != nil {
		return err
	}
	s.log.Info("secret updated", "tenant", info.Tenant, "secret", info.ID, "version", info.Version)
	writeJSON(w, http.StatusOK, answerSecret(info))
	return nil
}

// secretBody reads a body that holds a value. What is wrong with it is told by place, never by showing it.
func (s *Server) secretBody(w http.ResponseWriter, r *http.Request) (v *secret.Vault, in api.NewSecret, err error) {
	if v, err = s.vault(); err != nil {
		return nil, in, err
	}
	raw, err := readBody(w, r)
	if err != nil {
		return nil, in, err
	}
	var body struct {
		api.NewSecret
		Metadata map[string]*string `json:"metadata"` // to tell null from an empty text
	}
	if err := decode(raw, &body, false); err != nil {
		return nil, in, err
	}
	in = body.NewSecret
	if body.Metadata == nil {
		return v, in, nil
	}
	in.Metadata = make(map[string]string, len(body.Metadata))
	for name, value := range body.Metadata {
		if value == nil {
			return nil, in, tartarus.Errorf(tartarus.Invalid, "metadata %.40q must be a text", name)
		}
		in.Metadata[name] = *value
	}
	return v, in, nil
}

// getSecret describes a secret by id or name.
func (s *Server) getSecret(w http.ResponseWriter, r *http.Request, who caller) error {
	v, err := s.vault()
	if err != nil {
		return err
	}
	info, err := v.Info(r.Context(), who.key.Tenant, pathParam(r, "secretID"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, answerSecret(info))
	return nil
}

// deleteSecret forgets a secret by id or name.
func (s *Server) deleteSecret(w http.ResponseWriter, r *http.Request, who caller) error {
	v, err := s.vault()
	if err != nil {
		return err
	}
	if err := v.Remove(r.Context(), who.key.Tenant, pathParam(r, "secretID")); err != nil {
		return err
	}
	noContent(w)
	return nil
}

// listSecrets lists a page, by name.
func (s *Server) listSecrets(w http.ResponseWriter, r *http.Request, who caller) error {
	v, err := s.vault()
	if err != nil {
		return err
	}
	after, limit, err := namedPage(r)
	if err != nil {
		return err
	}
	list, err := v.List(r.Context(), who.key.Tenant, after, limit+1)
	if err != nil {
		return err
	}
	if len(list) > limit {
		list = list[:limit]
		w.Header().Set(api.HeaderNextToken, nameToken(list[limit-1].Name))
	}
	out := make([]api.Secret, len(list))
	for i, info := range list {
		out[i] = answerSecret(info)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// namedPage reads which page of a listing by name is wanted.
func namedPage(r *http.Request) (after string, limit int, err error) {
	q, err := parseQuery(r)
	if err != nil {
		return "", 0, err
	}
	if limit, err = number(q, "limit", 1, maxPage, maxPage); err != nil {
		return "", 0, err
	}
	if token := q.Get("nextToken"); token != "" {
		name, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil || len(name) > 256 {
			return "", 0, tartarus.Errorf(tartarus.Invalid, "nextToken %.40q is not one that this server gave", token)
		}
		after = string(name)
	}
	return after, limit, nil
}

// nameToken makes the token of the page that comes after a name.
func nameToken(name string) string { return base64.RawURLEncoding.EncodeToString([]byte(name)) }

func answerSecret(i secret.Info) api.Secret {
	out := api.Secret{
		SecretID: i.ID, Name: i.Name, CurrentVersion: i.Version, Metadata: i.Metadata, CreatedAt: i.CreatedAt.UTC(), UpdatedAt: i.UpdatedAt.UTC(),
	}
	if out.Metadata == nil {
		out.Metadata = map[string]string{}
	}
	return out
}

// pathParam is a part of the path as the client meant it.
func pathParam(r *http.Request, name string) string {
	raw := chi.URLParam(r, name)
	if r.URL.RawPath == "" {
		return raw
	}
	if plain, err := url.PathUnescape(raw); err == nil {
		return plain
	}
	return raw
}
