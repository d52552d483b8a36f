// Package login lets people in with ID tokens of an OpenID Connect issuer that they have logged in to. A token is taken only when that issuer
// signed it, for this client, and it has not expired; what it says of groups becomes a tenant and a role by rules of the operator's, and whoever
// no rule is about has no role.
package login

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// Config says whose tokens are taken, and what they are worth.
type Config struct {
	// Issuer is the URL of the issuer, as it stands in tokens. It is https, or on this machine.
	Issuer string
	// ClientID is for whom tokens must be made.
	ClientID string
	// Roots are the authorities that the issuer's certificate may be from; nil are those of the host.
	Roots *x509.CertPool

	// RoleClaim holds a text or a list of texts, such as groups; dots lead into objects. Roles are what they are worth; the strongest counts.
	RoleClaim string
	Roles     map[string]tenant.Role
	// TenantClaim likewise names the tenant: by Tenants, or, where that is empty, itself. Without a claim all people are of Tenant.
	TenantClaim string
	Tenants     map[string]string
	Tenant      string
}

// Validate reports the first thing that is wrong with c.
func (c Config) Validate() error {
	u, err := url.Parse(c.Issuer)
	switch {
	case err != nil || !safe(u) || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return tartarus.Errorf(tartarus.Invalid, "oidc.issuer %q must be an https URL, or an http one of this machine", c.Issuer)
	case c.ClientID == "":
		return tartarus.Errorf(tartarus.Invalid, "oidc.clientID is needed: it is whom the issuer makes tokens for")
	case c.RoleClaim == "" || len(c.Roles) == 0:
		return tartarus.Errorf(tartarus.Invalid, "oidc.roleClaim and oidc.roles are needed: without them nobody has a role")
	case c.TenantClaim == "" && !tenant.ValidName(c.Tenant):
		return tartarus.Errorf(tartarus.Invalid, "oidc.tenant %q must be 1 to 63 lower-case letters, digits and dashes", c.Tenant)
	case c.TenantClaim == "" && len(c.Tenants) > 0:
		return tartarus.Errorf(tartarus.Invalid, "oidc.tenants is set and oidc.tenantClaim is not")
	}
	for value, role := range c.Roles {
		if !role.Covers(tenant.Reader) {
			return tartarus.Errorf(tartarus.Invalid, "oidc.roles: %q of %q is none of admin, operator, developer, reader", role, value)
		}
	}
	for value, name := range c.Tenants {
		if !tenant.ValidName(name) {
			return tartarus.Errorf(tartarus.Invalid, "oidc.tenants: %q of %q must be 1 to 63 lower-case letters, digits and dashes", name, value)
		}
	}
	return nil
}

// safe reports whether what comes from u can be trusted to come from there.
func safe(u *url.URL) bool {
	if u.Scheme == "https" {
		return u.Host != ""
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Scheme == "http" && (err == nil && ip.IsLoopback() || u.Hostname() == "localhost")
}

// Issuer verifies the tokens of one issuer. It may be used concurrently.
type Issuer struct {
	cfg    Config
	client *http.Client
	keys   *keys
}

// New makes a verifier. It asks the issuer for nothing before the first token comes: a server starts while its issuer is away.
func New(cfg Config) (*Issuer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:           http.ProxyFromEnvironment,
		DialContext:     (&net.Dialer{Timeout: askTime}).DialContext,
		TLSClientConfig: &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12},
		IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
	}
	client := &http.Client{Transport: &careful{next: transport}, Timeout: askTime}
	return &Issuer{cfg: cfg, client: client, keys: newKeys(cfg.Issuer, client)}, nil
}

// Close drops idle connections.
func (i *Issuer) Close() error {
	i.client.CloseIdleConnections()
	return nil
}

// maxToken bounds a token; those with hundreds of groups have some kilobytes.
const maxToken = 16 << 10

// Shaped reports whether s looks like a token, which no API key does.
func Shaped(s string) bool {
	return len(s) <= maxToken && strings.HasPrefix(s, "eyJ") && strings.Count(s, ".") == 2
}

// algorithms are those by which nobody can sign who can only verify.
var algorithms = []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA}

// Verify says who holds a token, as a key that is good until the token expires. A token that is not good is tartarus.Unauthenticated, one that is
// and gives its holder no role or tenant tartarus.Forbidden; tartarus.Unavailable means that the issuer's keys cannot be had.
func (i *Issuer) Verify(ctx context.Context, raw string) (tenant.Key, error) {
	seen := &watched{keys: i.keys}
	verifier := oidc.NewVerifier(i.cfg.Issuer, seen, &oidc.Config{ClientID: i.cfg.ClientID, SupportedSigningAlgs: algorithms})
	token, err := verifier.Verify(ctx, raw)
	if err != nil {
		return tenant.Key{}, refusal(err, seen.err)
	}
	var claims map[string]any
	if err := token.Claims(&claims); err != nil {
		return tenant.Key{}, refusal(err, nil)
	}
	// OpenID Connect Core 1.0, 3.1.3.7: one for several parties says which of them it was made for.
	if azp, there := claims["azp"]; len(token.Audience) > 1 && there && azp != i.cfg.ClientID {
		return tenant.Key{}, refusal(errors.New("it was made for another client"), nil)
	}
	if !validSubject(token.Subject) {
		return tenant.Key{}, refusal(errors.New("it names nobody"), nil)
	}
	k := tenant.Key{ID: "oidc:" + token.Subject, Name: nameOf(claims), Person: true, CreatedAt: token.IssuedAt, ExpiresAt: token.Expiry}
	if k.Role = i.role(claims); k.Role == "" {
		return tenant.Key{}, i.nothing(k, "no_role", "role")
	}
	if k.Tenant = i.tenant(claims); k.Tenant == "" {
		return tenant.Key{}, i.nothing(k, "no_tenant", "single tenant")
	}
	k.Exec = k.Role.Covers(tenant.Developer)
	return k, nil
}

// refusal is the error for a token that is not good. keys is what became of the look at the issuer's keys.
func refusal(err, keys error) error {
	if errors.Is(keys, errAway) || errors.Is(keys, context.Canceled) || errors.Is(keys, context.DeadlineExceeded) {
		return &tartarus.Error{Kind: tartarus.Unavailable, Code: "issuer_away", RetryAfter: askAgain, Err: keys, Message: "the ID token cannot be verified, because its issuer does not answer"}
	}
	if _, ok := errors.AsType[*oidc.TokenExpiredError](err); ok {
		return &tartarus.Error{Kind: tartarus.Unauthenticated, Code: "token_expired", Message: "the ID token has expired: log in again"}
	}
	if keys != nil {
		err = errors.New("no key of its issuer signed it")
	}
	const longest = 200 // what a token says of itself may be long
	why := strings.TrimPrefix(err.Error(), "oidc: ")
	return &tartarus.Error{Kind: tartarus.Unauthenticated, Code: "token_invalid", Message: "the ID token is not valid: " + why[:min(len(why), longest)]}
}

func (i *Issuer) nothing(k tenant.Key, code, what string) error {
	return &tartarus.Error{Kind: tartarus.Forbidden, Code: code, Message: k.ID + " (" + k.Name + ") is given no " + what + " by the ID token's claims"}
}
