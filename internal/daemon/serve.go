package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sync/errgroup"
)

// serve runs the parts. When ctx ends, the listeners stop first; the node agent outlives them, because requests under way need it.
func (d *Daemon) serve(ctx context.Context, p *parts) error {
	var api, nodes net.Listener
	if d.cfg.Part != Agent {
		var err error
		if api, err = net.Listen("tcp", d.cfg.APIAddr); err != nil {
			return fmt.Errorf("listen for the API: %w", err)
		}
		defer api.Close()
		d.about.URL = "http://" + api.Addr().String()
	}
	if p.hub != nil {
		var err error
		if nodes, err = net.Listen("tcp", d.cfg.Fleet.Addr); err != nil {
			return fmt.Errorf("listen for nodes: %w", err)
		}
		defer nodes.Close()
		d.about.FleetAddr = nodes.Addr().String()
	}
	if p.agent == nil {
		return d.serveParts(ctx, p, api, nodes, nil)
	}

	if p.api != nil && !p.kept.shared {
		if err := p.api.DropUnawaited(ctx); err != nil {
			d.log.Warn("not everything queued before the restart could be called off", "error", err)
		}
	}
	node, stopNode := context.WithCancel(context.WithoutCancel(ctx))
	defer stopNode()
	nodeEnded := make(chan struct{})
	var nodeErr error
	go func() {
		defer close(nodeEnded)
		nodeErr = d.runNode(node, p)
	}()
	select {
	case <-nodeEnded:
		return nodeErr
	case <-ctx.Done():
		stopNode()
		<-nodeEnded
		return nodeErr
	case <-p.agent.Ready():
	}
	d.about.Driver, d.about.Tier = p.agent.Preferred()
	d.agent = p.agent
	err := d.serveParts(ctx, p, api, nodes, nodeEnded)
	if d.cfg.PauseOnExit && !d.cfg.Ephemeral && ctx.Err() != nil {
		d.pauseAll(ctx, p)
	}
	stopNode()
	<-nodeEnded
	return errors.Join(err, nodeErr)
}

// serveParts serves everything but the node until ctx ends, or the node does.
func (d *Daemon) serveParts(ctx context.Context, p *parts, api, nodes net.Listener, nodeEnded <-chan struct{}) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case <-nodeEnded:
			return errors.New("the node agent ended")
		case <-gctx.Done():
			return nil
		}
	})
	if p.hub != nil {
		g.Go(func() error { return p.hub.Run(gctx, nodes) })
	}
	if d.cfg.MetricsAddr != "" {
		g.Go(func() error { return d.serveMetrics(gctx, p) })
	}
	if p.kept.shared {
		g.Go(func() error { return d.keepKey(gctx, p) })
	}
	var err error
	if p.api != nil {
		err = d.serveControl(gctx, g, p, api)
	} else {
		g.Go(func() error { return d.serveLocal(gctx, p) })
	}
	if err != nil {
		g.Go(func() error { return err }) // ends the others
	} else {
		close(d.ready)
	}
	return g.Wait()
}

// runNode runs what the agent needs for as long as the agent runs.
func (d *Daemon) runNode(ctx context.Context, p *parts) error {
	outer, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	agent, stopAgent := context.WithCancel(ctx)
	defer stopAgent()
	g := errgroup.Group{}
	g.Go(func() error { return p.slots.Run(outer) })
	if p.uplink != nil {
		g.Go(func() error {
			defer stopAgent() // a node that nobody can reach says so by ending
			return d.runUplink(outer, p)
		})
	}
	err := p.agent.Run(agent)
	stop()
	return errors.Join(err, g.Wait())
}
