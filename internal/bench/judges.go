package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

// Judges measures what admission costs with many policies in force: a fifth of them global, the others of forty tenants and forty templates, as a
// fleet has them; and, beside it, with all of them global, so that each request is held against each. In the same run it measures what the
// audit log costs creates: one stack with it and one without take turns.
func Judges(ctx context.Context, cfg Config) (rep *Report, err error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	rep = &Report{What: "judges", N: judged, Concurrency: 1, Stages: map[string]float64{}, Extra: map[string]float64{}, Host: thisHost()}
	dir, err := os.MkdirTemp("", "tartarus-bench-")
	if err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	whole := &Report{Extra: map[string]float64{}}
	if err := judge(ctx, filepath.Join(dir, "all"), cfg.Policies, judged/10, allGlobal, whole); err != nil {
		return nil, err
	}
	if err := judge(ctx, filepath.Join(dir, "mixed"), cfg.Policies, judged, mixed, rep); err != nil {
		return nil, err
	}
	rep.Extra["all_global_p50_ms"], rep.Extra["all_global_p99_ms"] = whole.P50, whole.P99
	fmt.Fprintf(cfg.Progress, "judges: %d admissions measured, now %d creates with and without the audit log\n", judged, cfg.N)
	return rep, auditCost(ctx, cfg, rep)
}

// judged is how many admissions are measured, after as many that are not: the quantile of a hundredth needs some hundreds beyond it.
const judged = 20_000

// rulesToAsk are what real policies ask, one after the other over the documents.
var rulesToAsk = []string{
	`template.image != "" && !template.pinned`,
	`request.internet && !template.names.exists(n, n.startsWith("m"))`,
	`(now.getHours() >= 20 || now.getHours() < 6) && request.vcpu > 64`,
	`request.timeout > duration("24h") && tenant.labels[?"batch"].orValue("") != "yes"`,
	`size(request.secrets) > 0 && request.allEgress`,
	`request.metadata[?"owner"].orValue("") == ""`,
	`!(template.registry in ["", "docker.io", "ghcr.io"])`,
	`request.egressProxy != "" || size(request.nameServers) > 3`,
}

// allGlobal and mixed say whose requests the i-th policy is about.
func allGlobal(int) string { return "global" }

func mixed(i int) string {
	switch i % 5 {
	case 0:
		return "global"
	case 1, 2:
		return fmt.Sprintf("tenant\ntenant: t%d", i/5%40)
	}
	return fmt.Sprintf("template\ntemplate: m%d", i/5%40)
}

// judge loads policies and measures the whole chain, quotas apart: they are a write to the store, which a create has anyway.
func judge(ctx context.Context, path string, policies, runs int, scope func(int) string, rep *Report) (err error) {
	db, err := sqlite.Open(ctx, sqlite.Default(path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	engine, err := loadPolicies(ctx, db.Policies(), policies, scope, rep)
	if err != nil {
		return err
	}
	chain, err := judges.New(judges.Config{Limits: judges.DefaultLimits(), Policies: engine})
	if err != nil {
		return err
	}
	request := judges.Request{
		Action: judges.Create, Key: tenant.Key{ID: "key", Role: tenant.Developer, Tenant: "t1"}, TenantLabels: map[string]string{"batch": "no"},
		Template: judges.Template{ID: "tpl", Names: []string{"m1", "base"}, Recipe: "oci:debian@sha256:0123"},
		Spec: tartarus.Spec{
			ID: "i1", Tenant: "t1", TemplateID: "tpl", Timeout: time.Minute, Metadata: map[string]string{"owner": "ada"},
			Env: map[string]string{"A": "1"}, Network: tartarus.Network{Internet: true},
		},
	}
	asked, err := engine.Rule(ctx, judges.Input(ctx, request))
	if err != nil {
		return err
	}
	rep.Extra["asked"] = float64(asked.Policies)
	var took []time.Duration
	began := time.Now()
	for i := range 2 * runs {
		if i == runs {
			began = time.Now()
		}
		start := time.Now()
		request.Now = start
		out, err := chain.Try(ctx, request)
		d := time.Since(start)
		if err != nil || out.Verdicts[1].Policy == "" {
			return fmt.Errorf("a request that every policy allows was refused: %w", err)
		}
		if i >= runs {
			took = append(took, d)
		}
	}
	rep.times(took)
	rep.PerSecond = rate(len(took), time.Since(began))
	return ctx.Err()
}

func loadPolicies(ctx context.Context, store themis.Store, n int, scope func(int) string, rep *Report) (*themis.Engine, error) {
	for i := range n {
		body := fmt.Sprintf("apiVersion: tartarus.io/v1\nname: p%d\nscope: %s\nrules:\n  - {name: r, on: [create], effect: deny, message: no, when: '%s'}\n", i, scope(i), rulesToAsk[i%len(rulesToAsk)])
		if _, err := store.Put(ctx, fmt.Sprintf("p%d", i), []byte(body), "bench", 0); err != nil {
			return nil, err
		}
	}
	engine, err := themis.NewEngine(themis.EngineConfig{Store: store})
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := engine.Load(ctx); err != nil {
		return nil, err
	}
	rep.Extra["policies"], rep.Extra["load_ms"] = float64(engine.Count()), ms(time.Since(began))
	return engine, nil
}

// auditCost is what the audit log takes of the throughput of creates. Turns are short, so that what else the machine does meets both alike, and
// the median of their ratios leaves out the turns that it did not.
func auditCost(ctx context.Context, cfg Config, rep *Report) (err error) {
	var rigs [2]*rig // with, without
	for i := range rigs {
		c := cfg
		c.Daemon.Recorded = i == 0
		if rigs[i], err = open(ctx, c); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, rigs[i].close(ctx)) }()
	}
	rep.Runtime = rigs[0].stack.About().Driver
	var all [2][]time.Duration
	var ratios []float64
	for turn := range cfg.N + 1 {
		var took [2]time.Duration
		for k := range rigs {
			which := (k + turn) % 2 // neither is always the first
			d, err := oneCreate(ctx, rigs[which])
			if err != nil {
				rep.fail(err)
				return nil
			}
			took[which] = d
		}
		if turn == 0 {
			continue // files come into memory
		}
		for k := range rigs {
			all[k] = append(all[k], took[k])
		}
		ratios = append(ratios, float64(took[0])/float64(took[1]))
	}
	slices.Sort(ratios)
	rep.Stages["create_with_audit"], rep.Stages["create_without_audit"] = quantile(all[0], 50), quantile(all[1], 50)
	rep.Extra["overhead_percent"] = round(max(0, ratios[len(ratios)/2]-1) * 100)
	rep.Extra["creates"] = float64(cfg.N)
	return nil
}

// oneCreate makes a sandbox and removes it, and says how long the making took.
func oneCreate(ctx context.Context, r *rig) (time.Duration, error) {
	began := time.Now()
	g, err := r.sandbox(ctx)
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("create: %w", err)
	}
	if err := r.client.Kill(ctx, g.ID); err != nil {
		return 0, fmt.Errorf("kill: %w", err)
	}
	return took, nil
}
