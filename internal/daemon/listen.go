package daemon

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/edge"
)

// caDir holds the edge's certificate authority, in the data folder.
const caDir = "ca"

// CAFile is the certificate that clients of the edge trust, unless the operator brought one.
func CAFile(dataDir string) string { return filepath.Join(dataDir, caDir, edge.CAFile) }

// serveControl starts the API, the control socket and, when configured, the edge's TLS listeners. The API's handler is behind the edge on all of
// them, so that api.{domain} leads to it too.
func (d *Daemon) serveControl(ctx context.Context, g *errgroup.Group, p *parts, api net.Listener) error {
	handler := p.edge.Wrap(p.api.Handler())
	listeners, certificate, err := d.listenEdge()
	if err != nil {
		return err
	}
	for _, l := range listeners {
		g.Go(func() error { return p.edge.ServeTLS(ctx, l, handler, certificate) })
	}
	g.Go(func() error { return p.api.Run(ctx) })
	g.Go(func() error { return p.law.run(ctx) })
	g.Go(func() error { return p.edge.Run(ctx) })
	g.Go(func() error { return d.serveLocal(ctx, p) })
	g.Go(func() error { return edge.Serve(ctx, api, edge.NewServer(handler, d.log)) })
	return nil
}

// listenEdge opens the TLS listeners and finds their certificate. On loopback both families are listened on, because *.localhost resolves to either.
func (d *Daemon) listenEdge() ([]net.Listener, func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	if d.cfg.EdgeAddr == "" || d.cfg.EdgeAddr == EdgeOff {
		return nil, nil, nil
	}
	certificate, err := d.certificate()
	if err != nil {
		return nil, nil, err
	}
	first, err := net.Listen("tcp", d.cfg.EdgeAddr)
	if err != nil {
		return nil, nil, fmt.Errorf("listen for the edge: %w", err)
	}
	d.about.EdgeURL = "https://" + first.Addr().String()
	listeners := []net.Listener{first}
	if at := first.Addr().(*net.TCPAddr); at.IP.IsLoopback() && at.IP.To4() != nil {
		// A host without IPv6 has no second one, and names that resolve to it fail over to the first.
		if second, err := net.Listen("tcp6", net.JoinHostPort("::1", fmt.Sprint(at.Port))); err == nil {
			listeners = append(listeners, second)
		}
	}
	return listeners, certificate, nil
}

// certificate is the operator's own, or comes from an authority made at the first start.
func (d *Daemon) certificate() (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	if d.cfg.EdgeCertFile != "" {
		files, err := edge.LoadCertFiles(d.cfg.EdgeCertFile, d.cfg.EdgeKeyFile, d.log)
		if err != nil {
			return nil, err
		}
		return files.GetCertificate, nil
	}
	ca, err := edge.LoadOrCreateCA(filepath.Join(d.cfg.DataDir, caDir), d.cfg.Domain)
	if err != nil {
		return nil, err
	}
	d.about.CAFile = ca.File()
	return ca.GetCertificate, nil
}

// domain is what clients append to {port}-{sandbox}: the edge's domain, with its port where that is not the one of https. Without an edge they are
// told nothing and use the API's own port.
func (d *Daemon) domain() string {
	_, port, err := net.SplitHostPort(d.cfg.EdgeAddr)
	switch {
	case err != nil:
		return ""
	case port == "443" || strings.Contains(d.cfg.Domain, ":"):
		return d.cfg.Domain
	}
	return d.cfg.Domain + ":" + port
}

// hostMemoryMB is the memory of this machine.
func hostMemoryMB() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 1024
	}
	return int64(uint64(info.Totalram) * uint64(info.Unit) >> 20)
}
