package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/edge"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/hecatoncheir"
	"github.com/tartarus-sandbox/tartarus/internal/hypnos"
	"github.com/tartarus-sandbox/tartarus/internal/identity"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
	"github.com/tartarus-sandbox/tartarus/internal/link"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/quota"
	"github.com/tartarus-sandbox/tartarus/internal/secret"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
	"github.com/tartarus-sandbox/tartarus/internal/telemetry"
	"github.com/tartarus-sandbox/tartarus/internal/thanatos"
)

// Daemon is a stack in one process, or one part of it: API, edge, node agent and stores.
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
	URL       string        // where the API listens
	EdgeURL   string        // where the TLS edge listens; empty without one
	CAFile    string        // certificate that signs the edge's own; empty without an edge
	APIKey    string        // the admin key
	FleetAddr string        // where nodes come to; empty where the node is in this process
	Driver    string        // the runtime that is used unless another is demanded
	Tier      tartarus.Tier // how strongly it isolates
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
	state     string       // folder of this process's store
	db        *sqlite.DB   // the journal of a node, and the stores where there is no Redis
	kept      stores       // of the control plane
	hub       *link.Hub    // of a replica whose nodes are elsewhere
	uplink    *link.Uplink // of a node whose control plane is elsewhere
	secrets   *secret.Vault
	volumes   *olympus.Volumes
	metrics   *telemetry.Registry
	identity  *identity.Signer
	templates *templates
	slots     *network.Pool
	agent     *hecatoncheir.Agent
	law       law
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
	if d.cfg.Part != Control && os.Geteuid() != 0 {
		return tartarus.Errorf(tartarus.Unsupported, "running sandboxes needs root, for network namespaces and control groups")
	}
	p := &parts{metrics: telemetry.New(d.version)}
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
	if err := d.openStores(ctx, p); err != nil {
		return err
	}
	if d.cfg.Part != Agent {
		if err := d.openKeys(ctx, p); err != nil {
			return err
		}
	}
	if d.cfg.Part == Control {
		return d.openControl(ctx, p)
	}
	if err := d.openNode(ctx, p); err != nil || d.cfg.Part == Agent {
		return err
	}
	return d.openControl(ctx, p)
}

// openStores opens what this part keeps: a node its journal, a control plane everything else.
func (d *Daemon) openStores(ctx context.Context, p *parts) (err error) {
	if d.cfg.Part != Control || d.cfg.Redis.URL == "" {
		if p.db, err = sqlite.Open(ctx, sqlite.Default(filepath.Join(p.state, storeFile))); err != nil {
			return err
		}
		p.onClose(closer(p.db))
	}
	if d.cfg.Part == Agent {
		return nil
	}
	if d.cfg.Redis.URL == "" {
		p.kept = embedded(p.db)
		return nil
	}
	kept, db, err := openShared(ctx, d.cfg.Redis, d.log)
	if err == nil {
		p.kept = kept
		p.onClose(closer(db))
	}
	return err
}

// openKeys finds the admin key and the key of the tenants' secrets. A shared store that is away gets the admin key when it is back.
func (d *Daemon) openKeys(ctx context.Context, p *parts) (err error) {
	if d.about.APIKey, err = adminSecret(filepath.Join(p.state, AdminKeyFile)); err != nil {
		return err
	}
	if err := registerKey(ctx, p.kept.keys, d.about.APIKey); err != nil && !(p.kept.shared && tartarus.Is(err, tartarus.Unavailable)) {
		return err
	}
	key, err := secret.LoadKey(filepath.Join(p.state, secretKeyFile))
	if err != nil {
		return err
	}
	p.secrets = secret.NewVault(p.kept.secrets, key)
	if p.identity, err = identity.New(key.Derive, d.issuer(), d.trustDomain()); err != nil {
		return err
	}
	if p.volumes, err = d.openVolumes(p.kept.volumes, key, p.state); err != nil {
		return err
	}
	p.onClose(closer(p.volumes.Files))
	return nil
}

// openNode makes what runs sandboxes on this machine.
func (d *Daemon) openNode(ctx context.Context, p *parts) (err error) {
	if left, err := abandonedLeaks(ctx, d.cfg, d.log, true); err != nil {
		return err
	} else if len(left) > 0 {
		d.log.Warn("removed what killed one-shot stacks had left", "things", len(left))
	}

	if p.templates, err = openTemplates(ctx, d.cfg); err != nil {
		return err
	}
	p.slots, err = network.Open(ctx, network.Config{
		StateDir: p.state, Ephemeral: d.cfg.Ephemeral, Base: d.cfg.Network.Base, Slots: d.cfg.Network.Slots, Log: d.log,
		Fill: p.fill,
	})
	if err != nil {
		return err
	}
	p.onClose(p.slots.Close)
	if d.cfg.Part == Agent {
		if p.uplink, err = d.openUplink(ctx, p); err != nil {
			return err
		}
	}
	if p.agent, err = d.openAgent(p); err != nil {
		return err
	}
	p.metrics.Watch(func() telemetry.State { return telemetry.State(p.agent.Stats()) })
	return nil
}

// openAgent makes the node agent with every runtime that this build has.
func (d *Daemon) openAgent(p *parts) (*hecatoncheir.Agent, error) {
	var snapshots *snapshot.Store
	drivers, err := openDrivers(d.cfg, p.state, d.remoteMemory(func() *snapshot.Store { return snapshots }), d.log)
	if err != nil {
		return nil, err
	}
	var control hecatoncheir.Control = announced{hecatoncheir.Direct{Queue: p.kept.queue, Registry: p.kept.registry}, p}
	var known hecatoncheir.Templates = p.templates
	var catalog func() []hades.Template
	if p.uplink != nil {
		shared := fleetTemplates{p.templates}
		control, known, catalog = p.uplink, shared, shared.catalog
	}
	var atOnce hecatoncheir.Arrivals
	if p.uplink == nil && !p.kept.shared {
		atOnce = arrivals{p.db, p}
	}
	var idle *hypnos.Config
	if d.cfg.EnableHypnos {
		c := d.cfg.Hypnos.config()
		idle = &c
	}
	if snapshots, err = d.openSnapshots(p, drivers); err != nil {
		return nil, err
	}
	volumes, err := d.nodeVolumes(p)
	if err != nil {
		return nil, err
	}
	return hecatoncheir.New(hecatoncheir.Config{
		Snapshots: snapshots, Hypnos: idle, Meter: p.metrics.Node(), Strikes: d.strikes(p), Suspicion: d.cfg.Typhon.limits(),
		Name: d.cfg.NodeName, Version: d.version, Labels: d.cfg.Labels, Dir: filepath.Join(p.state, "node"),
		Control: control, Journal: p.db.Journal(), Arrivals: atOnce, Catalog: catalog,
		Templates: known, Drivers: drivers, Slots: p.slots, Volumes: volumes,
		Capacity: capacity(d.cfg.Limits), MaxLive: d.cfg.Limits.MaxSandboxes, Starts: startsAtOnce(),
		StartTime: startTime, Ephemeral: d.cfg.Ephemeral, Log: d.log,
		Prepare: !d.cfg.Ephemeral || d.cfg.Warm.MemoryMB > 0,
		Warm:    hecatoncheir.Warm{Memory: d.cfg.Warm.MemoryMB << 20, Keep: d.cfg.Warm.Keep, Most: d.cfg.Warm.Most},
		Ends:    thanatos.Limits{Unattended: d.cfg.Limits.EndGrace, Max: d.cfg.Limits.MaxGrace},
	})
}

// openControl makes the API and the edge.
func (d *Daemon) openControl(ctx context.Context, p *parts) (err error) {
	var fleet olympus.Fleet = localFleet{name: d.cfg.NodeName, node: p.agent}
	var known olympus.Templates = p.templates
	var joins olympus.Joins
	roster := hades.NewRoster(p.kept.registry)
	if d.cfg.Part == Control {
		if p.hub, err = d.openHub(p); err != nil {
			return err
		}
		fleet, known, joins = p.hub, advertised{roster: roster, fallback: d.cfg.DefaultTemplate}, p.hub
	}
	if p.law, err = d.openLaw(ctx, p); err != nil {
		return err
	}
	if p.edge, err = edge.New(edge.Config{
		Registry: p.kept.registry, Fleet: fleet, Domain: d.cfg.Domain, Log: d.log, Audit: p.law.log,
		Wake: func(ctx context.Context, sb tartarus.Sandbox) (tartarus.Sandbox, error) { return p.api.Wake(ctx, sb) },
	}); err != nil {
		return err
	}
	quotas := quota.New(quota.Config{Store: p.kept.shelf, Registry: p.kept.registry, Log: d.log})
	chain, err := judges.New(judges.Config{Limits: d.cfg.limits(), Policies: p.law.themis, Ledger: quotas})
	if err != nil {
		return err
	}
	_, signers, err := d.cfg.signers()
	if err != nil {
		return err
	}
	people, err := d.openPeople(p)
	if err != nil {
		return err
	}
	var entrance olympus.Entrance
	if !p.kept.shared {
		entrance = p.db
	}
	p.api, err = olympus.New(olympus.Config{
		Metrics: p.metrics.Handler(), Heat: d.cfg.Heat.thresholds(), Values: p.kept.vault,
		Audit: p.law.log, Sealer: p.law.sealer, Shelf: p.kept.shelf, Policies: p.kept.policies, Themis: p.law.themis, Quotas: quotas, Strikes: d.strikeCount(p),
		Registry: p.kept.registry, Roster: roster, Queue: p.kept.queue, Entrance: entrance, Keys: p.kept.keys, Fleet: fleet, Templates: known, Judges: chain,
		Log: d.log, Domain: d.domain(), Version: d.version, Changed: p.edge.Changed, CanPause: true,
		People: people, Signers: signers, Secrets: p.secrets, Volumes: p.volumes, Identity: p.identity, Joins: joins, Marks: p.kept.marks, NodeLost: d.cfg.Fleet.NodeLost,
	})
	return err
}

// Node is the node agent of the stack, known once Ready is closed. Benchmarks reach guests through it without any proxy.
func (d *Daemon) Node() olympus.Node { return d.agent }

// Agent is the node agent itself, known once Ready is closed.
func (d *Daemon) Agent() *hecatoncheir.Agent { return d.agent }
