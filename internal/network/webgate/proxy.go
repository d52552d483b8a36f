package webgate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/proxy"
)

// Proxy is a SOCKS5 server that a sandbox's connections go through. There is no way around it: where it cannot be reached, nothing can.
type Proxy struct {
	Address            string // host:port
	Username, Password string
	TLS                bool
	ServerName         string         // that its certificate is for; empty is Address' host
	Roots              *x509.CertPool // that its certificate leads to; nil is the host's
}

// dial connects to a target through the proxy. guard judges the addresses that the proxy's own name stands for.
func (p *Proxy) dial(ctx context.Context, target string, guard func(netip.Addr) error) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	hop := &hop{proxy: p, guard: guard}
	var auth *proxy.Auth
	if p.Username != "" || p.Password != "" {
		auth = &proxy.Auth{User: p.Username, Password: p.Password}
	}
	d, err := proxy.SOCKS5("tcp", p.Address, auth, hop)
	if err != nil {
		return nil, fmt.Errorf("use egress proxy: %w", err)
	}
	c, err := d.(proxy.ContextDialer).DialContext(ctx, "tcp", target)
	if err != nil {
		if hop.conn != nil {
			hop.conn.Close()
		}
		return nil, fmt.Errorf("through egress proxy: %w", err)
	}
	_ = c
	return hop.conn, nil // itself, so that one direction can be closed
}

// hop connects to the proxy.
type hop struct {
	proxy *Proxy
	guard func(netip.Addr) error
	conn  net.Conn
}

// Dial implements proxy.Dialer; the library calls DialContext.
func (h *hop) Dial(network, addr string) (net.Conn, error) {
	return nil, fmt.Errorf("dial %s %s without a context", network, addr)
}

// DialContext implements proxy.ContextDialer.
func (h *hop) DialContext(ctx context.Context, _, addr string) (net.Conn, error) {
	d := net.Dialer{Control: func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err == nil && h.guard != nil {
			err = h.guard(to.Addr().Unmap())
		}
		return err
	}}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if h.proxy.TLS {
		name := h.proxy.ServerName
		if name == "" {
			if name, _, err = net.SplitHostPort(addr); err != nil {
				c.Close()
				return nil, err
			}
		}
		secure := tls.Client(c, &tls.Config{ServerName: name, RootCAs: h.proxy.Roots, MinVersion: tls.VersionTLS12})
		if err := secure.HandshakeContext(ctx); err != nil {
			c.Close()
			return nil, err
		}
		c = secure
	}
	h.conn = c
	return c, nil
}
