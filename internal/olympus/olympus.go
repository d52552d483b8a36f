// Package olympus is the control-plane API: it authenticates, judges, places and queues what clients ask for, and
// forwards to the nodes what concerns a running sandbox. It keeps nothing in memory that another replica would miss.
//
// It is larger than other packages because a third of it reads and checks what clients send, route by route.
package olympus

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/audit"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/identity"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
	"github.com/tartarus-sandbox/tartarus/internal/login"
	"github.com/tartarus-sandbox/tartarus/internal/phlegethon"
	"github.com/tartarus-sandbox/tartarus/internal/quota"
	"github.com/tartarus-sandbox/tartarus/internal/secret"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

// Config says what the API works on. Everything without a default is needed.
type Config struct {
	Registry  hades.Registry
	Roster    *hades.Roster // of Registry, where others look at it too; nil makes one
	Queue     acheron.Queue
	Entrance  Entrance // nil where Registry and Queue are apart
	Keys      tenant.Store
	Fleet     Fleet
	Templates Templates
	Judges    *judges.Chain
	Log       *slog.Logger

	// People lets in who has an ID token of this issuer; nil takes API keys only.
	People *login.Issuer
	// Signers are the names, for policies, of the keys by which container images may be signed, by the keys' ids.
	Signers map[string]string
	// Secrets holds what tenants keep for use in what leaves their sandboxes; nil keeps none.
	Secrets *secret.Vault
	// Volumes is storage that outlives sandboxes; nil keeps none.
	Volumes *Volumes
	// Identity signs the tokens by which sandboxes prove who they are; nil signs none.
	Identity *identity.Signer

	// Policies are the documents that the judges hold requests against, and Themis runs them; nil has none.
	Policies themis.Store
	Themis   *themis.Engine
	// Strikes counts what sandboxes of a tenant, and of one of its templates, did that looks like breaking out; nil counts none.
	Strikes func(ctx context.Context, tenant, template string) (ofTenant, ofTemplate int64, err error)
	// Shelf keeps tenants and when keys were used; nil keeps neither.
	Shelf shelf.Store
	// Quotas counts what tenants hold, for the judges; nil counts nothing.
	Quotas *quota.Ledger
	// Audit is told of every decision and act before it takes effect, and Sealer signs what it wrote. Nil records nothing.
	Audit  *audit.Log
	Sealer *audit.Sealer

	// Metrics answers with the counters of this process. May be nil.
	Metrics http.Handler
	// Domain is the wildcard domain of the edge, with its port where that is not 443. Clients are told it, so that they find
	// {port}-{sandbox}.{domain}; empty leaves them to their own setting.
	Domain string
	// Version is told in /health.
	Version string
	// Changed is called with every sandbox that this server has seen change, so that the edge need not wait for its cache. May be nil.
	Changed func(tartarus.Sandbox)
	// CanPause says that the nodes can pause: sandboxes may ask to be paused when their time is up.
	CanPause bool

	// Heat are the thresholds of heat. The zero value has the defaults.
	Heat phlegethon.Thresholds
	// Values is where replicas tell each other what templates' sandboxes do. Nil: each knows what it has seen itself.
	Values hades.Values
	// Joins lets nodes into the fleet. Nil where the node is in this process.
	Joins Joins
	// Marks keeps what operators decide about nodes; Registry's nodes must show it. Nil: nothing can be decided.
	Marks hades.Marks

	// CreateTime is how long a create may take, waiting in the queue included. Default 60 s: what the SDKs wait by default.
	CreateTime time.Duration
	// Rate and Burst bound each key's requests per second. Default 500 and 1000; a negative Rate sets no bound.
	Rate  float64
	Burst int
	// Retention is how long ended sandboxes are remembered. Default 24 h.
	Retention time.Duration
	// JobRetention is how long ended jobs, and with them idempotency keys, are remembered. Default 1 h.
	JobRetention time.Duration
	// NodeLost is how long a node may be silent before its sandboxes are counted as lost. Default 10 min. A node that comes
	// back corrects it.
	NodeLost time.Duration
}

// Entrance is a store that is both the queue and the registry, so that a new sandbox needs one write.
type Entrance interface {
	// Enter is acheron.Queue's Enqueue, and where that stores the job, the sandbox becomes the registry's first entry with it: both or neither. An
	// entry that is there already stays.
	Enter(ctx context.Context, j acheron.Job, sb tartarus.Sandbox) (acheron.Job, error)
}

func (c *Config) setDefaults() error {
	switch {
	case c.Registry == nil, c.Queue == nil, c.Keys == nil:
		return errors.New("olympus: registry, queue and key store are needed")
	case c.Fleet == nil, c.Templates == nil, c.Judges == nil, c.Log == nil:
		return errors.New("olympus: fleet, templates, judges and log are needed")
	}
	c.Heat = cmp.Or(c.Heat, phlegethon.DefaultThresholds())
	if err := c.Heat.Validate(); err != nil {
		return err
	}
	set := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	set(&c.CreateTime, 60*time.Second)
	set(&c.Retention, 24*time.Hour)
	set(&c.JobRetention, time.Hour)
	set(&c.NodeLost, 10*time.Minute)
	if c.Rate == 0 {
		c.Rate = 500
	}
	if c.Burst <= 0 {
		c.Burst = 1000
	}
	if c.Roster == nil {
		c.Roster = hades.NewRoster(c.Registry)
	}
	if c.Changed == nil {
		c.Changed = func(tartarus.Sandbox) {}
	}
	return nil
}

// Server is one replica of the API.
type Server struct {
	cfg       Config
	log       *slog.Logger
	gate      *gate
	tenants   *tenants
	usage     *tenant.Usage // nil without a shelf
	roster    *hades.Roster
	placer    *placer
	pasts     pasts
	self      string // names this process among all replicas
	templates *templateCache
	totals    *totals
	recorder  *recorder
	handler   http.Handler
}

// New makes a server that does nothing until it is asked.
func New(cfg Config) (*Server, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg:       cfg,
		log:       cfg.Log,
		self:      tartarus.NewID(),
		roster:    cfg.Roster,
		placer:    newPlacer(cfg.Roster),
		templates: newTemplateCache(cfg.Templates),
		totals:    newTotals(cfg.Registry),
		recorder:  newRecorder(cfg.Audit),
	}
	s.tenants = newTenants(cfg.Shelf)
	if cfg.Shelf != nil {
		s.usage = tenant.NewUsage(cfg.Shelf)
	}
	s.gate = newGate(cfg, s.tenants, s.usage)
	s.handler = s.router()
	return s, nil
}

// Handler serves the API.
func (s *Server) Handler() http.Handler { return s.handler }

// cleanupTime bounds work that must be done although the request it belongs to is over.
const cleanupTime = 10 * time.Second

// after gives the context of such work.
func after(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
}
