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

// source is where placeholders get their values from, in a process that has the secrets and the key.
func (p *parts) source() *identity.Source {
	return &identity.Source{Signer: p.identity, Secret: p.secrets.Value}
}

// fill puts values in the place of placeholders. A node by itself has neither secrets nor the key, and asks a replica, each time.
func (p *parts) fill(ctx context.Context, o network.Owner, value string) (string, error) {
	if p.uplink != nil {
		return p.uplink.Fill(ctx, o.Sandbox, value)
	}
	return p.source().Fill(ctx, o.Tenant, o.Sandbox, o.Tokens, value)
}
