package bench

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/phlegethon"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/fake"
)

// writersAtOnce fills the store's groups of commits.
const writersAtOnce = 256

// size fills the registry and measures what the API then costs: placing on all nodes, a page of a listing through HTTP, and the memory
// that each sandbox takes.
func (p *plane) size(ctx context.Context, cfg ControlConfig) (*Report, error) {
	rep := &Report{What: "control", Runtime: fake.Name, N: cfg.N, Concurrency: 1, Host: thisHost(), Extra: map[string]float64{
		"nodes": float64(cfg.Nodes), "sandboxes": float64(cfg.Sandboxes),
	}}
	before, err := p.resident()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	err = many(ctx, cfg.Nodes, func(i int) error {
		return p.registry.PutNode(ctx, hades.Node{
			Name: fmt.Sprintf("n%05d", i), Version: "bench", Runtimes: map[string]hades.Runtime{"gvisor": {Tier: tartarus.TierUserKernel}},
			Capacity: tartarus.Resources{VCPU: 256, MemoryMB: 1 << 20, DiskMB: 10 << 20}, Allocated: tartarus.Resources{VCPU: i % 200}, Sandboxes: i % 200,
		}, 24*time.Hour)
	})
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(cfg.Progress, "%d nodes registered in %s\n", cfg.Nodes, time.Since(began).Round(time.Millisecond))
	began = time.Now()
	start := began.Add(-time.Duration(cfg.Sandboxes) * time.Millisecond)
	err = many(ctx, cfg.Sandboxes, func(i int) error {
		at := start.Add(time.Duration(i) * time.Millisecond)
		_, err := p.registry.PutSandbox(ctx, tartarus.Sandbox{
			Spec: tartarus.Spec{
				ID: tartarus.NewID(), Tenant: []string{tenant.Default, "other"}[i%2], TemplateID: "benchtemplate0000000", Template: "bench",
				Resources: tartarus.Resources{VCPU: 1, MemoryMB: 128, DiskMB: 1024}, Timeout: time.Hour,
			},
			Node: fmt.Sprintf("n%05d", i%cfg.Nodes), Phase: tartarus.Running, Driver: "gvisor", Tier: tartarus.TierUserKernel, CreatedAt: at, StartedAt: at, Deadline: at.Add(24 * time.Hour),
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	fill := time.Since(began)
	fmt.Fprintf(cfg.Progress, "%d sandboxes registered in %s\n", cfg.Sandboxes, fill.Round(time.Millisecond))
	rep.Extra["registered_per_second"] = rate(cfg.Sandboxes, fill)

	placed, err := p.placements(ctx, cfg, rep)
	if err != nil {
		return nil, err
	}
	pages, err := p.pages(ctx, cfg, rep)
	if err != nil {
		return nil, err
	}
	rep.times(placed)
	rep.Extra["placement_p99_ms"] = quantile(placed, 99)
	rep.Extra["list_page_ms"] = quantile(pages, 50)
	rep.Extra["list_page_p99_ms"] = quantile(pages, 99)
	if cfg.Sandboxes > 0 {
		after, err := p.resident()
		if err != nil {
			return nil, err
		}
		rep.Extra["bytes_per_sandbox"] = round(float64(max(0, after-before)) / float64(cfg.Sandboxes))
	}
	return rep, nil
}

// many calls f for 0 to n-1, some at once, until one fails.
func many(ctx context.Context, n int, f func(i int) error) error {
	var next atomic.Int64
	var once sync.Once
	var first error
	var wg sync.WaitGroup
	for range min(writersAtOnce, n) {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(n) || ctx.Err() != nil {
					return
				}
				if err := f(int(i)); err != nil {
					once.Do(func() { first = err; next.Store(int64(n)) })
					return
				}
			}
		})
	}
	wg.Wait()
	if first == nil {
		first = ctx.Err()
	}
	return first
}

// placements places N sandboxes one after the other as the API does: on the nodes as the registry has them, read in the background there, with what was placed
// since counted.
func (p *plane) placements(ctx context.Context, cfg ControlConfig, rep *Report) ([]time.Duration, error) {
	began := time.Now()
	nodes, err := p.registry.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	fleet := phlegethon.NewFleet(nodes)
	rep.Extra["nodes_read_ms"] = quantile([]time.Duration{time.Since(began)}, 50)
	rnd := rand.New(rand.NewPCG(1, 2))
	want := phlegethon.Want{Resources: tartarus.Resources{VCPU: 1, MemoryMB: 128, DiskMB: 1024}, Runtime: "gvisor"}
	var took []time.Duration
	for range cfg.N {
		at := time.Now()
		got, err := fleet.Place(want, at, rnd)
		if err == nil {
			fleet.Take(got.Node, want)
		}
		took = append(took, time.Since(at))
		if err != nil {
			rep.fail(err)
		}
	}
	return took, nil
}

// maxPages bounds how many pages are asked for.
const maxPages = 500

// pages asks for page after page of a tenant's sandboxes.
func (p *plane) pages(ctx context.Context, cfg ControlConfig, rep *Report) ([]time.Duration, error) {
	c := &http.Client{Transport: &http.Transport{}, Timeout: answerTime}
	defer c.CloseIdleConnections()
	var took []time.Duration
	next := ""
	for range min(cfg.N, maxPages) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/v2/sandboxes?limit=100&nextToken="+next, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("X-API-KEY", p.secret)
		at := time.Now()
		res, err := c.Do(req)
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(res.Body)
		took = append(took, time.Since(at))
		_ = res.Body.Close()
		if err == nil && res.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %d: %.200s", res.StatusCode, body)
		}
		if err != nil {
			rep.fail(fmt.Errorf("list: %w", err))
			break
		}
		if next = res.Header.Get("X-Next-Token"); next == "" {
			break
		}
	}
	return took, nil
}

// resident is the memory of this process after a collection, and of the redis-server where that is the store. Files that are mapped do not count.
func (p *plane) resident() (bytes int64, err error) {
	debug.FreeOSMemory()
	pids := []int{os.Getpid()}
	if p.redis != 0 {
		pids = append(pids, p.redis)
	}
	for _, pid := range pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, fmt.Errorf("measure memory: %w", err)
		}
		_, rest, _ := strings.Cut(string(status), "\nRssAnon:")
		line, _, _ := strings.Cut(rest, "kB")
		kb, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("measure memory: %w", err)
		}
		bytes += kb << 10
	}
	return bytes, nil
}
