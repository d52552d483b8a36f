package olympustest

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/audit"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/identity"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/quota"
	"github.com/tartarus-sandbox/tartarus/internal/secret"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
	"github.com/tartarus-sandbox/tartarus/internal/volume"
)

// Stack is the control plane on a real store with one node without machines.
type Stack struct {
	DB     *sqlite.DB
	Node   *Node
	Fleet  Fleet
	Server *olympus.Server
	Audit  *audit.Log
	Sealer *audit.Sealer
	Keys   map[string]string // secrets by name: admin, operator, developer, reader, noexec, other (another tenant), expired, revoked
}

// New starts a stack that ends with the test. change may alter the configuration before the server is made.
func New(t testing.TB, change func(*olympus.Config, *Node)) *Stack {
	t.Helper()
	db, err := sqlite.Open(context.WithoutCancel(t.Context()), sqlite.Default(filepath.Join(t.TempDir(), "db")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	engine, err := themis.NewEngine(themis.EngineConfig{Store: db.Policies()})
	if err == nil {
		err = engine.Load(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	quotas := quota.New(quota.Config{Store: db.Shelf(), Registry: db.Registry()})
	chain, err := judges.New(judges.Config{Limits: judges.DefaultLimits(), Policies: engine, Ledger: quotas})
	if err != nil {
		t.Fatal(err)
	}
	s := &Stack{DB: db, Node: NewNode("one", db.Registry(), db.Queue()), Keys: map[string]string{}}
	s.Fleet = Fleet{"one": s.Node}
	s.addKeys(t)
	key, err := secret.LoadKey(filepath.Join(t.TempDir(), "secrets.key"))
	if err != nil {
		t.Fatal(err)
	}
	volumes, err := newVolumes(db.Volumes(), key, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s.openAudit(t)
	registry, marks := hades.WithMarks(db.Registry(), db.Vault())
	signer, err := identity.New(key.Derive, "https://api.sb.test:8443", "sb.test")
	if err != nil {
		t.Fatal(err)
	}
	cfg := olympus.Config{
		Audit: s.Audit, Sealer: s.Sealer, Shelf: db.Shelf(), Policies: db.Policies(), Themis: engine, Quotas: quotas,
		Registry: registry, Marks: marks, Queue: db.Queue(), Entrance: db, Keys: db.Keys(), Fleet: s.Fleet, Judges: chain, Log: slog.New(slog.DiscardHandler),
		Templates: Templates{
			"base": {ID: "basetemplateid000000", BuildID: "b1", Names: []string{"base"}, VCPU: 2, MemoryMB: 512, DiskMB: 1024, Public: true},
			"tiny": {ID: "tinytemplateid000000", BuildID: "b2", Names: []string{"tiny"}},
		},
		Domain: "sb.test:8443", Version: "test", CanPause: true,
		Secrets: secret.NewVault(db.Secrets(), key), Volumes: volumes, Identity: signer,
	}
	if change != nil {
		change(&cfg, s.Node)
	}
	if s.Server, err = olympus.New(cfg); err != nil {
		t.Fatal(err)
	}
	s.run(t)
	return s
}

func newVolumes(store volume.Store, key *secret.Sealer, dir string) (*olympus.Volumes, error) {
	signing, err := key.Derive("volume tokens")
	if err != nil {
		return nil, err
	}
	tokens, err := volume.NewTokens(signing)
	if err != nil {
		return nil, err
	}
	files, err := volume.OpenLibrary(dir, 1<<20)
	return &olympus.Volumes{Store: store, Files: files, Tokens: tokens}, err
}

// openAudit begins an audit log as a server's first start does.
func (s *Stack) openAudit(t testing.TB) {
	var err error
	if s.Audit, err = audit.Open(audit.Config{Dir: t.TempDir(), Chain: "one"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Audit.Close() })
	if s.Sealer, err = audit.NewSealer(t.Context(), audit.SealerConfig{Log: s.Audit, Store: s.DB.Shelf()}); err != nil {
		t.Fatal(err)
	}
}

// run keeps the node working until the test ends.
func (s *Stack) run(t testing.TB) {
	if err := s.Node.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Node.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (s *Stack) addKeys(t testing.TB) {
	past := time.Now().Add(-time.Hour)
	for name, k := range map[string]tenant.Key{
		"admin":          {Role: tenant.Admin, Exec: true, Tenant: tenant.Default},
		"operator":       {Role: tenant.Operator, Exec: true, Tenant: tenant.Default},
		"developer":      {Role: tenant.Developer, Exec: true, Tenant: tenant.Default},
		"noexec":         {Role: tenant.Developer, Tenant: tenant.Default},
		"reader":         {Role: tenant.Reader, Tenant: tenant.Default},
		"other-admin":    {Role: tenant.Admin, Exec: true, Tenant: "other"},
		"other-operator": {Role: tenant.Operator, Exec: true, Tenant: "other"},
		"other-reader":   {Role: tenant.Reader, Tenant: "other"},
		"other":          {Role: tenant.Developer, Exec: true, Tenant: "other"},
		"expired":        {Role: tenant.Admin, Exec: true, Tenant: tenant.Default, ExpiresAt: past},
		"revoked":        {Role: tenant.Admin, Exec: true, Tenant: tenant.Default, RevokedAt: past},
	} {
		secret := tenant.NewSecret()
		k.ID, k.Name, k.Hash, k.CreatedAt = name, name, tenant.HashSecret(secret), past
		if err := s.DB.Keys().PutKey(t.Context(), k); err != nil {
			t.Fatal(err)
		}
		s.Keys[name] = secret
	}
}
