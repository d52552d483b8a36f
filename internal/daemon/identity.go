package daemon

import (
	"context"
	"net"

	"github.com/tartarus-sandbox/tartarus/internal/identity"
	"github.com/tartarus-sandbox/tartarus/internal/network"
)

// issuer is the URL below which services outside find the keys of identity tokens: the API behind the edge, else its own address.
func (d *Daemon) issuer() string {
	if domain := d.domain(); domain != "" {
		return "https://api." + domain
	}
	return "http://" + d.cfg.APIAddr
}

// trustDomain is what identities belong to: the domain without its port.
func (d *Daemon) trustDomain() string {
	if host, _, err := net.SplitHostPort(d.cfg.Domain); err == nil {
		return host
	}
	return d.cfg.Domain
}

// fill puts values in the place of placeholders, where the secrets and the key of this process are at hand. A node by itself has none: requests that
// need some are not sent.
func (p *parts) fill() func(context.Context, network.Owner, string) (string, error) {
	if p.secrets == nil || p.identity == nil {
		return nil
	}
	source := &identity.Source{Signer: p.identity, Secret: p.secrets.Value}
	return func(ctx context.Context, o network.Owner, value string) (string, error) {
		return source.Fill(ctx, o.Tenant, o.Sandbox, o.Tokens, value)
	}
}
