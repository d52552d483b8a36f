package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/edge"
	"github.com/tartarus-sandbox/tartarus/internal/hecatoncheir"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/secret"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
)

// Daemon is a whole stack in one process: API, edge, node agent and stores.
type Daemon struct {
	cfg     Config
	version string
	log     *slog.Logger
	ready   chan struct{}
	about   About               // set before ready is closed
	agent   *hecatoncheir.Agent // set before ready is closed
}

// About is what a running stack says of itself.
type About struct {
	URL     string        // where the API listens
	EdgeURL string        // where the TLS edge listens; empty without one
	CAFile  string        // certificate that signs the edge's own; empty without an edge
	APIKey  string        // the admin key
	Driver  string        // the runtime that is used unless another is demanded
	Tier    tartarus.Tier // how strongly it isolates
}

// closeTime bounds taking one part down.
const closeTime = 30 * time.Second

// New checks the configuration and starts nothing. version is what this build calls itself.
func New(cfg Config, version string) (*Daemon, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Daemon{cfg: cfg, version: version, log: log, ready: make(chan struct{})}, nil
}

// Ready is closed once sandboxes can be created.
func (d *Daemon) Ready() <-chan struct{} { return d.ready }

// About describes the stack once Ready is closed.
func (d *Daemon) About() About { return d.about }

// URL is where the API listens, known once Ready is closed.
func (d *Daemon) URL() string { return d.about.URL }

// APIKey is the admin key, known once Ready is closed.
func (d *Daemon) APIKey() string { return d.about.APIKey }

// parts are what a stack is made of, in the order in which they are opened. They close in reverse.
type parts struct {
	state     string // folder of this process's store
	db        *sqlite.DB
	secrets   *secret.Vault
	templates *templates
	slots     *network.Pool
	agent     *hecatoncheir.Agent
	edge      *edge.Edge
	api       *olympus.Server

	closers []func(context.Context) error
}

func (p *parts) onClose(f func(context.Context) error) { p.closers = append(p.closers, f) }

func (p *parts) close(ctx context.Context) error {
	var errs []error
	for i := len(p.closers) - 1; i >= 0; i-- {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
		errs = append(errs, p.closers[i](last))
		cancel()
	}
	return errors.Join(errs...)
}

func closer(c io.Closer) func(context.Context) error {
	return func(context.Context) error { return c.Close() }
}

// Run opens the parts in order, serves until ctx ends, and closes them in reverse.
func (d *Daemon) Run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return tartarus.Errorf(tartarus.Unsupported, "running sandboxes needs root, for network namespaces and control groups")
	}
	p := &parts{}
	defer func() { err = errors.Join(err, p.close(ctx)) }()
	if err := d.open(ctx, p); err != nil {
		return err
	}
	return d.serve(ctx, p)
}

// open makes the parts and starts none of them.
func (d *Daemon) open(ctx context.Context, p *parts) error {
	state, removeState, err := d.stateDir()
	if err != nil {
		return err
	}
	p.state = state
	p.onClose(func(context.Context) error { return removeState() })
	if left, err := abandonedLeaks(ctx, d.cfg, d.log, true); err != nil {
		return err
	} else if len(left) > 0 {
		d.log.Warn("removed what killed one-shot stacks had left", "things", len(left))
	}

	if p.db, err = sqlite.Open(ctx, sqlite.Default(filepath.Join(state, storeFile))); err != nil {
		return err
	}
	p.onClose(closer(p.db))
	if d.about.APIKey, err = adminKey(ctx, p.db.Keys(), filepath.Join(state, AdminKeyFile)); err != nil {
		return err
	}
	key, err := secret.LoadKey(filepath.Join(state, secretKeyFile))
	if err != nil {
		return err
	}
	p.secrets = secret.NewVault(p.db.Secrets(), key)
	if p.templates, err = openTemplates(ctx, d.cfg); err != nil {
		return err
	}
	p.slots, err = network.Open(ctx, network.Config{
		StateDir: state, Ephemeral: d.cfg.Ephemeral, Base: d.cfg.Network.Base, Slots: d.cfg.Network.Slots, Log: d.log,
	})
	if err != nil {
		return err
	}
	p.onClose(p.slots.Close)
	if p.agent, err = d.openAgent(p); err != nil {
		return err
	}
	return d.openControl(p)
}

// openAgent makes the node agent with every runtime that this build has.
func (d *Daemon) openAgent(p *parts) (*hecatoncheir.Agent, error) {
	drivers, err := openDrivers(d.cfg, p.state, d.log)
	if err != nil {
		return nil, err
	}
	return hecatoncheir.New(hecatoncheir.Config{
		Name: d.cfg.NodeName, Version: d.version, Labels: d.cfg.Labels, Dir: filepath.Join(p.state, "node"),
		Control: announced{hecatoncheir.Direct{Queue: p.db.Queue(), Registry: p.db.Registry()}, p}, Journal: p.db.Journal(),
		Templates: p.templates, Drivers: drivers, Slots: p.slots,
		Capacity: capacity(d.cfg.Limits), MaxLive: d.cfg.Limits.MaxSandboxes, Starts: startsAtOnce(),
		StartTime: startTime, Ephemeral: d.cfg.Ephemeral, Log: d.log,
		Prepare: !d.cfg.Ephemeral || d.cfg.Warm.MemoryMB > 0,
		Warm:    hecatoncheir.Warm{Memory: d.cfg.Warm.MemoryMB << 20, Keep: d.cfg.Warm.Keep, Most: d.cfg.Warm.Most},
	})
}

// openControl makes the API and the edge.
func (d *Daemon) openControl(p *parts) (err error) {
	fleet := localFleet{name: d.cfg.NodeName, node: p.agent}
	if p.edge, err = edge.New(edge.Config{
		Registry: p.db.Registry(), Fleet: fleet, Domain: d.cfg.Domain, Log: d.log,
		Wake: func(ctx context.Context, sb tartarus.Sandbox) (tartarus.Sandbox, error) { return p.api.Wake(ctx, sb) },
	}); err != nil {
		return err
	}
	chain, err := judges.New(judges.Config{Limits: d.cfg.limits()})
	if err != nil {
		return err
	}
	p.api, err = olympus.New(olympus.Config{
		Registry: p.db.Registry(), Queue: p.db.Queue(), Keys: p.db.Keys(), Fleet: fleet, Templates: p.templates, Judges: chain,
		Log: d.log, Domain: d.domain(), Version: d.version, Changed: p.edge.Changed, CanPause: true,
		Secrets: p.secrets,
	})
	return err
}

// serve runs the parts. When ctx ends, the listeners stop first; the node agent outlives them, because requests under way need it.
func (d *Daemon) serve(ctx context.Context, p *parts) error {
	listener, err := net.Listen("tcp", d.cfg.APIAddr)
	if err != nil {
		return fmt.Errorf("listen for the API: %w", err)
	}
	defer listener.Close()
	d.about.URL = "http://" + listener.Addr().String()

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

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case <-nodeEnded:
			return errors.New("the node agent ended")
		case <-gctx.Done():
			return nil
		}
	})
	if err := d.serveControl(gctx, g, p, listener); err != nil {
		stopNode()
		<-nodeEnded
		return errors.Join(err, nodeErr)
	}
	d.about.Driver, d.about.Tier = p.agent.Preferred()
	d.agent = p.agent
	close(d.ready)
	err = g.Wait()
	stopNode()
	<-nodeEnded
	return errors.Join(err, nodeErr)
}

// runNode runs the network pool for as long as the agent runs.
func (d *Daemon) runNode(ctx context.Context, p *parts) error {
	pool, stopPool := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPool()
	g := errgroup.Group{}
	g.Go(func() error { return p.slots.Run(pool) })
	err := p.agent.Run(ctx)
	stopPool()
	return errors.Join(err, g.Wait())
}

// Node is the node agent of the stack, known once Ready is closed. Benchmarks reach guests through it without any proxy.
func (d *Daemon) Node() olympus.Node { return d.agent }

// Agent is the node agent itself, known once Ready is closed.
func (d *Daemon) Agent() *hecatoncheir.Agent { return d.agent }
