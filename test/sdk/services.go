package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	world "github.com/tartarus-sandbox/tartarus/test/outside"
)

// serve puts servers into the namespace that network options are about.
func (o *outside) serve(ctx context.Context) (err error) {
	for _, a := range world.Addresses {
		for _, args := range [][]string{{"-n", o.name, "addr", "add", a + "/32", "dev", "lo"}, {"route", "add", a + "/32", "via", farEnd, "dev", o.name}} {
			if err := ip(ctx, args...); err != nil {
				return err
			}
		}
	}
	o.services, err = world.Serve("/run/netns/" + o.name)
	return err
}

// hostTrust is where distributions keep what their programs trust.
var hostTrust = []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"}

// trustEnv has the server trust what its host trusts, and the web server outside.
func (st *stack) trustEnv() ([]string, error) {
	if st.outside == nil {
		return nil, nil
	}
	var host []byte
	for _, path := range hostTrust {
		if raw, err := os.ReadFile(path); err == nil {
			host = raw
			break
		}
	}
	file := filepath.Join(st.dir, "trust.pem")
	if err := os.WriteFile(file, slices.Concat(host, []byte("\n"), st.outside.services.Trust()), 0o600); err != nil {
		return nil, fmt.Errorf("write what the server trusts: %w", err)
	}
	return []string{"SSL_CERT_FILE=" + file}, nil
}

// serviceEnv tells a lane where the servers are.
func (st *stack) serviceEnv() []string {
	if st.outside == nil {
		return nil
	}
	return []string{
		"LANE_DNS=" + world.NameServer, "LANE_SITE=" + world.Domain, "LANE_WEB=" + world.WebServer, "LANE_SOCKS=" + world.SocksServer + ":1080",
		"LANE_SOCKS_USER=" + world.User, "LANE_SOCKS_PASSWORD=" + world.Password,
	}
}
