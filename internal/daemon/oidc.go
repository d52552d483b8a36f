package daemon

import (
	"crypto/x509"
	"fmt"
	"os"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/login"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// OIDC says whose ID tokens let people in, besides API keys, and what they are worth.
type OIDC struct {
	// Issuer is the URL of an OpenID Connect issuer: https, or http on this machine. Empty lets nobody in by tokens.
	Issuer string `key:"issuer" env:"TARTARUS_OIDC_ISSUER"`
	// ClientID is for whom the issuer must have made a token.
	ClientID string `key:"clientID" env:"TARTARUS_OIDC_CLIENT_ID"`
	// CAFile signs the issuer's certificate, in PEM; without it the host's own authorities count.
	CAFile string `key:"caFile" env:"TARTARUS_OIDC_CA_FILE"`
	// RoleClaim is the claim that Roles are about; dots lead into objects. Roles maps its values to roles; the strongest counts, and who has none is
	// refused.
	RoleClaim string            `key:"roleClaim" env:"TARTARUS_OIDC_ROLE_CLAIM"`
	Roles     map[string]string `key:"roles" env:"TARTARUS_OIDC_ROLES"`
	// TenantClaim is the claim that names the tenant; empty makes everybody one of Tenant. Tenants maps its values to tenants; empty takes them as
	// they are. A tenant must be known here.
	TenantClaim string            `key:"tenantClaim" env:"TARTARUS_OIDC_TENANT_CLAIM"`
	Tenants     map[string]string `key:"tenants" env:"TARTARUS_OIDC_TENANTS"`
	Tenant      string            `key:"tenant" env:"TARTARUS_OIDC_TENANT"`
}

// config is o in the words of package login, without what is in files.
func (o OIDC) config() login.Config {
	c := login.Config{
		Issuer: o.Issuer, ClientID: o.ClientID, RoleClaim: o.RoleClaim, Roles: make(map[string]tenant.Role, len(o.Roles)),
		TenantClaim: o.TenantClaim, Tenants: o.Tenants, Tenant: o.Tenant,
	}
	for value, role := range o.Roles {
		c.Roles[value] = tenant.Role(role)
	}
	return c
}

func (o OIDC) validate() error {
	if o.Issuer == "" {
		return nil
	}
	return o.config().Validate()
}

// openPeople makes what lets people in, nil when only keys do.
func (d *Daemon) openPeople(p *parts) (*login.Issuer, error) {
	if d.cfg.OIDC.Issuer == "" || d.cfg.Ephemeral {
		return nil, nil
	}
	c := d.cfg.OIDC.config()
	if file := d.cfg.OIDC.CAFile; file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read oidc.caFile: %w", err)
		}
		c.Roots = x509.NewCertPool()
		if !c.Roots.AppendCertsFromPEM(pem) {
			return nil, tartarus.Errorf(tartarus.Invalid, "oidc.caFile %s holds no certificate", file)
		}
	}
	people, err := login.New(c)
	if err == nil {
		p.onClose(closer(people))
	}
	return people, err
}
