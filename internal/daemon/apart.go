package daemon

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/link"
	"github.com/tartarus-sandbox/tartarus/internal/typhon"
)

// openHub makes the side of a replica that nodes come to.
func (d *Daemon) openHub(p *parts) (*link.Hub, error) {
	name, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("name this replica: %w", err)
	}
	return link.NewHub(link.HubConfig{
		Vault: p.kept.vault, Queue: p.kept.queue, Registry: p.kept.registry,
		AuthorityFile: filepath.Join(p.state, "fleet.pem"), Replica: cmp.Or(d.cfg.Fleet.Advertise, name), Advertise: d.cfg.Fleet.Advertise,
		Version: d.version, Changed: func(sb tartarus.Sandbox) { p.edge.Changed(sb); p.api.Observe(sb) },
		Returned: func(sb tartarus.Sandbox) { p.api.Returned(sb) }, Log: d.log,
		Strike: func(ctx context.Context, s typhon.Strike) (string, error) { return d.strike(ctx, p, s) },
		Fill: func(ctx context.Context, sb tartarus.Sandbox, value string) (string, error) {
			return p.source().Fill(ctx, sb.Tenant, sb.ID, sb.Identity, value)
		},
	})
}

// openUplink makes the side of a node that goes to replicas. A node that is not in the fleet yet joins it here.
func (d *Daemon) openUplink(ctx context.Context, p *parts) (*link.Uplink, error) {
	address := ""
	if d.cfg.Fleet.NodeAddr != "" {
		address = cmp.Or(d.cfg.Fleet.NodeAdvertise, d.cfg.Fleet.NodeAddr)
	}
	return link.NewUplink(ctx, link.UplinkConfig{
		Node: d.cfg.NodeName, Version: d.version, Replicas: d.cfg.Fleet.Olympus, Dir: filepath.Join(p.state, "fleet"),
		TokenFile: d.cfg.Fleet.TokenFile, Address: address, Log: d.log,
	})
}

// runUplink keeps the sessions of a node, and its own listener, until ctx ends.
func (d *Daemon) runUplink(ctx context.Context, p *parts) error {
	var own net.Listener
	if d.cfg.Fleet.NodeAddr != "" {
		var err error
		if own, err = net.Listen("tcp", d.cfg.Fleet.NodeAddr); err != nil {
			return fmt.Errorf("listen for the edge's traffic: %w", err)
		}
		defer own.Close()
	}
	return p.uplink.Run(ctx, link.Duties{
		Node: p.agent, Refill: p.agent.Refill, Disown: func(ids []string) { p.agent.Disown(ctx, ids) },
	}, own)
}

// keepKey registers the admin key again when the shared store has lost it, or was away at the start.
func (d *Daemon) keepKey(ctx context.Context, p *parts) error {
	for {
		if err := registerKey(ctx, p.kept.keys, d.about.APIKey); err != nil && ctx.Err() == nil {
			d.log.Warn("admin key not registered", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(keepKeyEvery):
		}
	}
}

// keepKeyEvery is how long a store that lost everything may go without the admin key.
const keepKeyEvery = 5 * time.Second
