package judges

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

const billing = `
apiVersion: tartarus.io/v1
name: billing
scope: global
rules:
  - name: billing-key-goes-home
    when: '"billing" in request.secrets && !request.headerDomains.all(d, d == "api.example.com")'
    effect: deny
    message: the billing key is for api.example.com alone
  - name: no-proxies
    when: 'request.egressProxy != "" || request.nameServers.exists(s, s != "9.9.9.9") || "sts" in request.tokens || "data" in request.volumes'
    effect: deny
    message: not these
`

// Policies see which of a tenant's secrets a sandbox may use for what, and none of their values.
func TestPoliciesSeeServices(t *testing.T) {
	c, err := themis.Compile([]byte(billing), 1)
	if err != nil {
		t.Fatal(err)
	}
	header := func(domain, value string) tartarus.Spec {
		return tartarus.Spec{Network: tartarus.Network{DNS: []string{"9.9.9.9"}, Transforms: map[string]map[string]string{domain: {"Authorization": value}}}}
	}
	for name, tt := range map[string]struct {
		spec tartarus.Spec
		want string
	}{
		"nothing":        {tartarus.Spec{}, "allow"},
		"at home":        {header("api.example.com", "Bearer ${e2b.secrets.billing}"), "allow"},
		"elsewhere":      {header("evil.example", "Bearer ${e2b.secrets.billing}"), "deny"},
		"another secret": {header("evil.example", "Bearer ${e2b.secrets.other}"), "allow"},
		"a proxy":        {tartarus.Spec{Network: tartarus.Network{Proxy: &tartarus.EgressProxy{Address: "p.example:1", Password: "hunter2"}}}, "deny"},
		"name servers":   {tartarus.Spec{Network: tartarus.Network{DNS: []string{"9.9.9.9", "8.8.8.8"}}}, "deny"},
		"a token":        {tartarus.Spec{Identity: map[string]tartarus.IdentityToken{"a": {Audience: "sts"}}}, "deny"},
		"a volume":       {tartarus.Spec{Volumes: []tartarus.VolumeMount{{Name: "data"}}}, "deny"},
	} {
		in := Input(t.Context(), Request{Action: Create, Spec: tt.spec})
		if got := c.Try(*in).Verdict(); got != tt.want {
			t.Errorf("%s: %s", name, got)
		}
		if raw, err := json.Marshal(in); err != nil || strings.Contains(string(raw), "hunter2") || strings.Contains(string(raw), "Bearer") {
			t.Errorf("%s: it is told %s, %v", name, raw, err)
		}
	}
}

// A judge that changes its copy changes nothing.
func TestCloneIsDeep(t *testing.T) {
	r := Request{Spec: tartarus.Spec{
		Identity: map[string]tartarus.IdentityToken{"a": {}}, Volumes: []tartarus.VolumeMount{{Name: "v"}},
		Network: tartarus.Network{DNS: []string{"9.9.9.9"}, Proxy: &tartarus.EgressProxy{Address: "p"}, Transforms: map[string]map[string]string{"a": {"b": "c"}}},
	}}
	c := r.clone().Spec
	c.Identity["x"], c.Volumes[0].Name, c.Network.DNS[0], c.Network.Proxy.Address, c.Network.Transforms["a"]["b"] = tartarus.IdentityToken{}, "x", "x", "x", "x"
	s := r.Spec
	if len(s.Identity) != 1 || s.Volumes[0].Name != "v" || s.Network.DNS[0] != "9.9.9.9" || s.Network.Proxy.Address != "p" || s.Network.Transforms["a"]["b"] != "c" {
		t.Errorf("changed: %+v", s)
	}
}
