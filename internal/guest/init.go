package guest

import (
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
	"github.com/tartarus-sandbox/tartarus/internal/guest/settings"
	"github.com/tartarus-sandbox/tartarus/internal/guest/system"
)

// maxInit bounds the body of POST /init: an environment as large as a process can have, with room for JSON.
const maxInit = 4 << 20

// InitRequest is what the host tells a guest. The fields up to DefaultWorkdir are the wire's, the rest is our own. An
// absent field changes nothing; unknown ones are left to newer agents.
type InitRequest struct {
	EnvVars        map[string]string `json:"envVars,omitempty"`     // added to those of earlier calls
	AccessToken    *string           `json:"accessToken,omitempty"` // empty: the agent asks for none
	Timestamp      *time.Time        `json:"timestamp,omitempty"`
	DefaultUser    *string           `json:"defaultUser,omitempty"`
	DefaultWorkdir *string           `json:"defaultWorkdir,omitempty"`

	SandboxID  string            `json:"sandboxID,omitempty"`
	TemplateID string            `json:"templateID,omitempty"`
	Hostname   string            `json:"hostname,omitempty"`
	MachineID  string            `json:"machineID,omitempty"`
	Entropy    []byte            `json:"entropy,omitempty"` // base64 in JSON
	Hosts      map[string]string `json:"hosts,omitempty"`   // name to address
	DNSServers []string          `json:"dnsServers,omitempty"`
}

func (r *InitRequest) identity() system.Identity {
	id := system.Identity{Hostname: r.Hostname, MachineID: r.MachineID, Entropy: r.Entropy, Hosts: r.Hosts, DNS: r.DNSServers}
	if r.Timestamp != nil {
		id.Time = *r.Timestamp
	}
	return id
}

// validate refuses the request as a whole, before anything of it is applied.
func (r *InitRequest) validate() error {
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
	return r.identity().Validate()
}

// init answers POST /init. It is on the way of every sandbox, and may be repeated.
func (a *Agent) init(w http.ResponseWriter, r *http.Request) {
	var req InitRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxInit)).Decode(&req); err != nil {
		fault.HTTP(w, tartarus.Errorf(tartarus.Invalid, "read the body: %w", err))
		return
	}
	if err := req.validate(); err != nil {
		fault.HTTP(w, err)
		return
	}
	a.initialising.Lock()
	defer a.initialising.Unlock()
	a.settings.Update(req.apply)
	skipped, err := a.guest.Apply(req.identity())
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

func (r *InitRequest) apply(s *settings.Settings) {
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
	s.Env = env
	set := func(field *string, value *string) {
		if value != nil {
			*field = *value
		}
	}
	set(&s.Token, r.AccessToken)
	set(&s.User, r.DefaultUser)
	set(&s.Workdir, r.DefaultWorkdir)
}

// note leaves the facts where programs without our environment, such as cron jobs, find them.
func (a *Agent) note(r *InitRequest) error {
	for _, n := range []struct{ name, value string }{
		{"E2B_SANDBOX", "true"}, {"E2B_SANDBOX_ID", r.SandboxID}, {"E2B_TEMPLATE_ID", r.TemplateID},
	} {
		if n.value == "" {
			continue
		}
		if err := a.guest.Note(n.name, n.value); err != nil {
			return err
		}
	}
	return nil
}
