package daemon

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"github.com/tartarus-sandbox/tartarus/internal/edge"
)

// serveMetrics answers scrapes on an address of their own until ctx ends.
func (d *Daemon) serveMetrics(ctx context.Context, p *parts) error {
	l, err := net.Listen("tcp", d.cfg.MetricsAddr)
	if err != nil {
		return fmt.Errorf("listen for metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", p.metrics.Handler())
	return edge.Serve(ctx, l, edge.NewServer(mux, d.log))
}
