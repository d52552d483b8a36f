package olympus

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/identity"
)

// Bounds of the wire protocol. The node looks at the rest: it knows what a header, a proxy and an address can be.
const (
	maxDomains    = 10
	maxTransforms = 1
	maxHeaders    = 20
	maxDNSServers = 10
)

// addServices reads what is asked for beside allowing and denying.
func addServices(n *tartarus.Network, in api.NetworkConfig) error {
	if len(in.DNSServers) > maxDNSServers {
		return tartarus.Errorf(tartarus.Invalid, "dnsServers may have %d entries, not %d", maxDNSServers, len(in.DNSServers))
	}
	for _, s := range in.DNSServers {
		if a, err := netip.ParseAddr(s); err != nil || !a.Is4() {
			return tartarus.Errorf(tartarus.Invalid, "dnsServers %.80q must be an IPv4 address", s)
		}
	}
	n.DNS = in.DNSServers
	if p := in.EgressProxy; p != nil {
		n.Proxy = &tartarus.EgressProxy{Address: p.Address, Username: p.Username, Password: p.Password}
		if p.TLS != nil {
			n.Proxy.TLS, n.Proxy.ServerName, n.Proxy.CACert = p.TLS.Enabled, strings.ToLower(p.TLS.ServerName), p.TLS.CACert
		}
	}
	if len(in.Rules) > maxDomains {
		return tartarus.Errorf(tartarus.Invalid, "rules may name %d domains, not %d", maxDomains, len(in.Rules))
	}
	for host, rules := range in.Rules {
		if len(rules) > maxTransforms {
			return tartarus.Errorf(tartarus.Invalid, "rules: %.80q may have one rule, not %d", host, len(rules))
		}
		if err := addTransform(n, strings.ToLower(host), rules); err != nil {
			return err
		}
	}
	return nil
}

func addTransform(n *tartarus.Network, host string, rules []api.NetworkRule) error {
	if !validDomainRule(host) && !validDomainRule("x."+strings.TrimPrefix(host, "*.")) || !strings.Contains(host, ".") {
		return tartarus.Errorf(tartarus.Invalid, "rules: %.80q must be a domain or *.domain", host)
	}
	if _, twice := n.Transforms[host]; twice {
		return tartarus.Errorf(tartarus.Invalid, "rules: %s is there twice", host)
	}
	for _, r := range rules {
		if r.Transform == nil || len(r.Transform.Headers) == 0 {
			continue
		}
		if len(r.Transform.Headers) > maxHeaders {
			return tartarus.Errorf(tartarus.Invalid, "rules: %s may have %d headers, not %d", host, maxHeaders, len(r.Transform.Headers))
		}
		if n.Transforms == nil {
			n.Transforms = map[string]map[string]string{}
		}
		n.Transforms[host] = r.Transform.Headers
	}
	return nil
}

// checkPlaceholders refuses headers that can never be filled.
func checkPlaceholders(n tartarus.Network, tokens map[string]tartarus.IdentityToken) error {
	for host, headers := range n.Transforms {
		for header, value := range headers {
			if err := identity.Check(tokens, value); err != nil {
				return tartarus.Errorf(tartarus.Invalid, "rules: %s: %.80s: %w", host, header, err)
			}
		}
	}
	return nil
}

// redacted stands for a value that the caller's key may not see.
const redacted = "[redacted]"

// answerServices describes the same. Passwords are never returned, and values of headers, which may be somebody's credentials, only
// to keys that may exec.
func answerServices(out *api.NetworkConfig, n tartarus.Network, exec bool) {
	out.DNSServers = n.DNS
	if p := n.Proxy; p != nil {
		out.EgressProxy = &api.EgressProxy{Address: p.Address, Username: p.Username}
		if p.TLS {
			out.EgressProxy.TLS = &api.ProxyTLS{Enabled: true, ServerName: p.ServerName, CACert: p.CACert}
		}
	}
	for host, headers := range n.Transforms {
		shown := make(map[string]string, len(headers))
		for name, value := range headers {
			if !exec {
				value = redacted
			}
			shown[name] = value
		}
		if out.Rules == nil {
			out.Rules = map[string][]api.NetworkRule{}
		}
		out.Rules[host] = []api.NetworkRule{{Transform: &api.Transform{Headers: shown}}}
	}
}

// identityTokens reads which tokens a sandbox may have.
func (s *Server) identityTokens(in *api.IAM) (map[string]tartarus.IdentityToken, error) {
	if in == nil || len(in.Tokens) == 0 {
		return nil, nil
	}
	if s.cfg.Identity == nil {
		return nil, unsupported("iam")
	}
	out := make(map[string]tartarus.IdentityToken, len(in.Tokens))
	for name, t := range in.Tokens {
		out[name] = tartarus.IdentityToken{Audience: t.Audience, Type: t.TokenType}
	}
	return out, identity.CheckTokens(out)
}

// keySet publishes what checks identity tokens.
func (s *Server) keySet(w http.ResponseWriter, _ *http.Request, _ caller) error {
	keys := []identity.Key{}
	if s.cfg.Identity != nil {
		k, err := s.cfg.Identity.Key()
		if err != nil {
			return err
		}
		keys = append(keys, k)
	}
	w.Header().Set("Cache-Control", "public, max-age=300")
	writeJSON(w, http.StatusOK, map[string][]identity.Key{"keys": keys})
	return nil
}

// discovery tells services that know the issuer where its keys are.
func (s *Server) discovery(w http.ResponseWriter, _ *http.Request, _ caller) error {
	issuer := ""
	if s.cfg.Identity != nil {
		issuer = s.cfg.Identity.Issuer()
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer": issuer, "jwks_uri": issuer + "/.well-known/jwks.json", "response_types_supported": []string{"id_token"},
		"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
	})
	return nil
}
