// Package quota counts what tenants hold, for all replicas together. A claim is granted only against a record that nobody has changed since
// it was read, and a refusal is given only after the record was held against the registry: what has ended is let go exactly once, however
// it ended, and what a crashed replica claimed for nothing is let go when its time is over.
package quota

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// Act is what a claim is for.
type Act string

// The acts.
const (
	Start Act = "start" // a new sandbox
	Wake  Act = "wake"  // a paused one comes back
	Sleep Act = "sleep" // a running one is paused
	Keep  Act = "keep"  // a snapshot is taken that stays
)

// Claim is what a tenant wants to hold.
type Claim struct {
	Act       Act
	Tenant    string
	Quota     tenant.Quota
	ID        string // of the sandbox
	Revision  int64  // of the sandbox in the registry when it was claimed; 0 for a new one
	Resources tartarus.Resources
	KeptMB    int64 // what the tenant's snapshots have already; of Keep
	Now       time.Time
}

// Refusal is why a claim was not granted.
type Refusal struct {
	Rule    string // field of the quota
	Message string
	After   time.Duration // when it may be granted; 0 when unknown
}

// Usage is what a tenant holds.
type Usage struct {
	Sandboxes        int64 `json:"sandboxes"`
	VCPU             int64 `json:"vcpu"`
	MemoryMB         int64 `json:"memoryMB"`
	DiskMB           int64 `json:"diskMB"`
	SnapshotMB       int64 `json:"snapshotMB"`
	CreatesPerMinute int64 `json:"createsPerMinute"`
	Queue            int64 `json:"queue"`
}

// Config says where things are.
type Config struct {
	Store    shelf.Store
	Registry hades.Registry
	// Grace is how long what was claimed may take to stand in the registry. Default two minutes: twice the time of a create.
	Grace time.Duration
	Log   *slog.Logger
}

// Ledger grants claims. It may be used concurrently, and by many replicas on the same store.
type Ledger struct {
	cfg    Config
	mu     sync.Mutex
	clerks map[string]*clerk // of tenants with claims that wait
}

// Bounds of a ledger.
const (
	ledgerShelf = "quota"
	maxWaiting  = 10_000           // claims of one tenant that wait on one replica
	batchTime   = 5 * time.Second  // for one round of a clerk
	maxTries    = 64               // each lost one means that another replica got something done
	checkEvery  = time.Minute      // a record is held against the registry at least that often
	youth       = 15 * time.Second // after a quota was set, replicas may not know it yet: what they let in unclaimed is looked for
)

// New makes a ledger.
func New(cfg Config) *Ledger {
	if cfg.Grace <= 0 {
		cfg.Grace = 2 * time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Ledger{cfg: cfg, clerks: map[string]*clerk{}}
}

// Claim grants what fits into the quota, and says why what does not fit is refused. An error means that nothing was granted, or that it is
// not known whether it was: then it is let go when its grace is over.
func (l *Ledger) Claim(ctx context.Context, c Claim) (*Refusal, error) {
	if c.Quota.Unbounded() {
		return nil, nil
	}
	return l.hand(ctx, c.Tenant, &errand{ctx: ctx, claim: c})
}

// Doubt says that a claim may have come to nothing: from now on the registry alone says whether it is held. It does not wait.
func (l *Ledger) Doubt(ctx context.Context, tenantName, id string) {
	l.put(ctx, tenantName, &errand{ctx: context.WithoutCancel(ctx), doubt: id, said: make(chan answer, 1)})
}

// Changed says that a tenant's quota is another now: sandboxes that were let in without a claim are looked for.
func (l *Ledger) Changed(ctx context.Context, tenantName string) error {
	_, err := l.hand(ctx, tenantName, &errand{ctx: ctx, changed: true})
	return err
}

// Usage is what a tenant holds now, by the registry and by claims that are not there yet.
func (l *Ledger) Usage(ctx context.Context, tenantName string, now time.Time) (Usage, error) {
	b, _, err := l.read(ctx, tenantName)
	if err != nil {
		return Usage{}, err
	}
	if err := l.check(ctx, tenantName, b, now); err != nil {
		return Usage{}, err
	}
	return b.usage(now), nil
}

// hand gives an errand to the tenant's clerk and waits.
func (l *Ledger) hand(ctx context.Context, tenantName string, e *errand) (*Refusal, error) {
	e.said = make(chan answer, 1)
	if !l.put(ctx, tenantName, e) {
		return nil, tartarus.Errorf(tartarus.Exhausted, "too many requests of tenant %s wait for its quota", tenantName)
	}
	select {
	case a := <-e.said:
		return a.refusal, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
