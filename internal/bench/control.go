package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/audit"
	"github.com/tartarus-sandbox/tartarus/internal/edge"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/hecatoncheir"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/store/redis"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/fake"
)

// ControlConfig says what of the control plane is measured. Its machines are fake, so that what is measured is the control plane.
type ControlConfig struct {
	N           int    // creates
	Concurrency int    // at once
	Store       string // embedded, or redis: a redis-server of its own that syncs before it answers
	Nodes       int    // registered nodes, for the size of things; 0 measures creates instead
	Sandboxes   int    // registered sandboxes
	Progress    io.Writer
}

// Control measures creates through HTTP, authentication, judges, audit, queue and registry to a node with fake machines and back, all
// durable; or, with Nodes, placement and listings in a registry of that size.
func Control(ctx context.Context, cfg ControlConfig) (rep *Report, err error) {
	if cfg.N < 1 || cfg.N > 1_000_000 || cfg.Concurrency < 1 || cfg.Concurrency > 4096 {
		return nil, tartarus.Errorf(tartarus.Invalid, "n must be 1 to 1000000 and concurrency 1 to 4096, not %d and %d", cfg.N, cfg.Concurrency)
	}
	if cfg.Nodes < 0 || cfg.Nodes > 100_000 || cfg.Sandboxes < 0 || cfg.Sandboxes > 10_000_000 {
		return nil, tartarus.Errorf(tartarus.Invalid, "at most 100000 nodes and 10000000 sandboxes")
	}
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	dir, err := os.MkdirTemp("", "tartarus-bench-")
	if err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	p, err := openPlane(ctx, cfg, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if cfg.Nodes > 0 {
		return p.size(ctx, cfg)
	}
	return p.creates(ctx, cfg)
}

// plane is a control plane with its store, and a node.
type plane struct {
	dir      string
	db       *sqlite.DB // the journal of the node, and the embedded store
	redis    int        // the process, where that is the store
	registry hades.Registry
	queue    acheron.Queue
	api      *olympus.Server
	agent    *hecatoncheir.Agent
	url      string
	secret   string
	closers  []func() error
}

func (p *plane) close() error {
	var errs []error
	for i := len(p.closers) - 1; i >= 0; i-- {
		errs = append(errs, p.closers[i]())
	}
	return errors.Join(errs...)
}

func openPlane(ctx context.Context, cfg ControlConfig, dir string) (p *plane, err error) {
	p = &plane{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.db, err = sqlite.Open(ctx, sqlite.Default(filepath.Join(dir, "store.db"))); err != nil {
		return p, err
	}
	p.closers = append(p.closers, p.db.Close)
	var keys tenant.Store
	switch cfg.Store {
	case "embedded":
		p.registry, p.queue, keys = p.db.Registry(), p.db.Queue(), p.db.Keys()
	case "redis":
		addr, err := p.startRedis(ctx)
		if err != nil {
			return p, err
		}
		c := redis.Default(addr)
		c.Timeout = answerTime // a busy machine is slow, and not to be taken for one that is gone
		db, err := redis.Open(ctx, c)
		if err != nil {
			return p, err
		}
		p.closers = append(p.closers, db.Close)
		p.registry, p.queue, keys = db.Registry(), db.Queue(), db.Keys()
	default:
		return p, tartarus.Errorf(tartarus.Invalid, "store %q must be embedded or redis", cfg.Store)
	}
	p.secret = tenant.NewSecret()
	err = keys.PutKey(ctx, tenant.Key{ID: "bench", Hash: tenant.HashSecret(p.secret), Tenant: tenant.Default, Role: tenant.Admin, CreatedAt: time.Now()})
	if err != nil {
		return p, err
	}
	if err := p.startNode(ctx, cfg); err != nil {
		return p, err
	}
	return p, p.startAPI(ctx, keys)
}

// startRedis runs a redis-server that has a change on the disk before it answers.
func (p *plane) startRedis(ctx context.Context) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	addr := l.Addr().String()
	_ = l.Close()
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", p.dir, "--save", "", "--appendonly", "yes", "--appendfsync", "always")
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start redis-server: %w", err)
	}
	p.redis = cmd.Process.Pid
	p.closers = append(p.closers, func() error {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // how it ended is known
		return nil
	})
	for end := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			return addr, c.Close()
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return "", fmt.Errorf("redis-server does not answer: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// benchTemplate is the one template there is.
type benchTemplate struct{}

func (benchTemplate) Template(_ context.Context, id, _ string) (hecatoncheir.Template, error) {
	return hecatoncheir.Template{ID: id, RootFS: "/dev/null"}, nil
}

func (benchTemplate) Resolve(context.Context, string, string) (olympus.Template, error) {
	return olympus.Template{ID: "benchtemplate0000000", BuildID: "build", Names: []string{"bench"}, VCPU: 1, MemoryMB: 128, DiskMB: 1024, Public: true}, nil
}

func (b benchTemplate) Version(ctx context.Context, _, _ string) (olympus.Template, error) {
	return b.Resolve(ctx, "", "")
}

func (b benchTemplate) List(ctx context.Context, _ string) ([]olympus.Template, error) {
	t, err := b.Resolve(ctx, "", "")
	return []olympus.Template{t}, err
}

// startNode runs an agent whose machines are fake.
func (p *plane) startNode(ctx context.Context, cfg ControlConfig) error {
	driver, err := fake.New(fake.Config{Benchmark: true})
	if err != nil {
		return err
	}
	var atOnce hecatoncheir.Arrivals
	if p.redis == 0 {
		atOnce = p.db
	}
	p.agent, err = hecatoncheir.New(hecatoncheir.Config{
		Arrivals: atOnce, Name: "bench", Version: "bench", Dir: filepath.Join(p.dir, "node"),
		Control: hecatoncheir.Direct{Queue: p.queue, Registry: p.registry}, Journal: p.db.Journal(), Templates: benchTemplate{},
		Drivers: []vmm.Driver{driver}, MaxLive: cfg.N + warmUp(cfg) + cfg.Concurrency, Starts: max(64, cfg.Concurrency),
		StartTime: time.Minute, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- p.agent.Run(running) }()
	p.closers = append(p.closers, func() error { cancel(); return <-ended })
	select {
	case <-p.agent.Ready():
		return nil
	case err := <-ended:
		ended <- nil
		return errors.Join(err, errors.New("the node ended before it was ready"))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// benchFleet is a fleet of the one agent.
type benchFleet struct{ node olympus.Node }

func (f benchFleet) Node(context.Context, string) (olympus.Node, error) { return f.node, nil }

// startAPI serves the API on loopback, with its audit log, as a server does.
func (p *plane) startAPI(ctx context.Context, keys tenant.Store) error {
	chain, err := judges.New(judges.Config{Limits: judges.DefaultLimits()})
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	record, err := audit.Open(audit.Config{Dir: filepath.Join(p.dir, "audit"), Chain: "bench", Log: log})
	if err != nil {
		return err
	}
	p.closers = append(p.closers, record.Close)
	var entrance olympus.Entrance
	if p.redis == 0 {
		entrance = p.db
	}
	p.api, err = olympus.New(olympus.Config{
		Registry: p.registry, Queue: p.queue, Entrance: entrance, Keys: keys, Fleet: benchFleet{p.agent}, Templates: benchTemplate{}, Judges: chain,
		Log: log, Version: "bench", Rate: -1, Audit: record,
	})
	if err != nil {
		return err
	}
	p.url, err = p.listen(ctx, p.api.Handler(), log)
	return err
}

// listen serves a handler on loopback.
func (p *plane) listen(ctx context.Context, h http.Handler, log *slog.Logger) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- edge.Serve(running, l, edge.NewServer(h, log)) }()
	p.closers = append(p.closers, func() error { cancel(); return <-ended })
	return "http://" + l.Addr().String(), nil
}

// createBody is what the SDKs send for a sandbox with nothing special about it.
const createBody = `{"templateID":"bench","timeout":3600,"secure":true,"allow_internet_access":true}`

// warmUp is how many creates come before those that are measured.
func warmUp(cfg ControlConfig) int { return min(cfg.N, 10*cfg.Concurrency) }

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// redisTime is what the redis-server has used, 0 where it is not the store.
func (p *plane) redisTime() time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.redis))
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if p.redis == 0 || err != nil || len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 for every program
}

func sandboxID(body []byte) string {
	_, rest, ok := strings.Cut(string(body), `"sandboxID":"`)
	id, _, end := strings.Cut(rest, `"`)
	if !ok || !end || !tartarus.ValidID(id) {
		return ""
	}
	return id
}

// lost forgets all of ids that the registry has running, and so leaves those that are missing.
func lost(ctx context.Context, r hades.Registry, ids map[string]bool) error {
	q := hades.Query{Tenant: tenant.Default, Phases: []tartarus.Phase{tartarus.Running}, Limit: hades.MaxLimit}
	for {
		page, err := r.ListSandboxes(ctx, q)
		if err != nil {
			return err
		}
		for _, sb := range page.Sandboxes {
			delete(ids, sb.ID)
		}
		if page.Next == (hades.Cursor{}) {
			return nil
		}
		q.After = page.Next
	}
}
