package guest

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
	"github.com/tartarus-sandbox/tartarus/internal/guest/hostapi"
	"github.com/tartarus-sandbox/tartarus/internal/guest/settings"
	"github.com/tartarus-sandbox/tartarus/internal/guest/system"
)

// maxInit bounds the body of POST /init: an environment as large as a process can have, with room for JSON.
const maxInit = 4 << 20

// initRequest is the body of POST /init. An absent token changes nothing, as every other absent field; an empty one
// means that none is asked for from now on.
type initRequest struct {
	hostapi.Init
	AccessToken *string `json:"accessToken"`
	identity    system.Identity
}

// read decodes and checks the request as a whole, before anything of it is applied.
func (r *initRequest) read(body io.Reader) error {
	if err := json.NewDecoder(body).Decode(r); err != nil {
		return tartarus.Errorf(tartarus.Invalid, "read the body: %w", err)
	}
	entropy, err := base64.StdEncoding.DecodeString(r.Entropy)
	if err != nil {
		return tartarus.Errorf(tartarus.Invalid, "entropy is not base64: %w", err)
	}
	r.identity = system.Identity{
		Hostname: r.Hostname, MachineID: r.MachineID, Entropy: entropy, Time: r.Timestamp, Hosts: r.Hosts, DNS: r.DNSServers, Trust: r.CABundle,
	}
	return r.validate()
}

func (r *initRequest) validate() error {
	for name, value := range r.EnvVars {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return tartarus.Errorf(tartarus.Invalid, "environment variable %q has a name or value that cannot be passed on", name)
		}
	}
	for _, id := range []string{r.SandboxID, r.TemplateID} {
		if len(id) > 256 || strings.ContainsFunc(id, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			return tartarus.Errorf(tartarus.Invalid, "id %.40q is not an id", id)
		}
	}
	return r.identity.Validate()
}

// init answers POST /init. It is on the way of every sandbox, and may be repeated.
func (a *Agent) init(w http.ResponseWriter, r *http.Request) {
	var req initRequest
	if err := req.read(http.MaxBytesReader(w, r.Body, maxInit)); err != nil {
		fault.HTTP(w, err)
		return
	}
	a.initialising.Lock()
	defer a.initialising.Unlock()
	a.settings.Update(req.apply)
	skipped, err := a.guest.Apply(req.identity)
	if err == nil {
		err = a.note(&req)
	}
	if err != nil {
		a.log.Error("init incomplete", "error", err)
		fault.HTTP(w, err)
		return
	}
	if len(skipped) > 0 {
		a.log.Debug("init skipped what the runtime does not permit", "what", skipped)
	}
	w.Header().Set("X-Envd-Version", tartarus.AgentVersion)
	w.WriteHeader(http.StatusNoContent)
}

func (r *initRequest) apply(s *settings.Settings) {
	env := maps.Clone(s.Env)
	if env == nil {
		env = make(map[string]string, len(r.EnvVars)+3)
	}
	maps.Copy(env, r.EnvVars)
	env["E2B_SANDBOX"] = "true"
	if r.SandboxID != "" {
		s.SandboxID, env["E2B_SANDBOX_ID"] = r.SandboxID, r.SandboxID
	}
	if r.TemplateID != "" {
		s.TemplateID, env["E2B_TEMPLATE_ID"] = r.TemplateID, r.TemplateID
	}
	if r.CABundle != "" {
		for name, file := range system.TrustVariables {
			if _, set := env[name]; !set {
				env[name] = file
			}
		}
	}
	s.Env = env
	if r.AccessToken != nil {
		s.Token = *r.AccessToken
	}
	if r.DefaultUser != "" {
		s.User = r.DefaultUser
	}
	if r.DefaultWorkdir != "" {
		s.Workdir = r.DefaultWorkdir
	}
}

// note leaves the facts where programs without our environment, such as cron jobs, find them. What this agent has left there once is
// not looked at again.
func (a *Agent) note(r *initRequest) error {
	for _, n := range []struct{ name, value string }{
		{"E2B_SANDBOX", "true"}, {"E2B_SANDBOX_ID", r.SandboxID}, {"E2B_TEMPLATE_ID", r.TemplateID},
	} {
		if n.value == "" || a.noted[n.name] == n.value {
			continue
		}
		if err := a.guest.Note(n.name, n.value); err != nil {
			return err
		}
		a.noted[n.name] = n.value
	}
	return nil
}
