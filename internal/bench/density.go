package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// A new sandbox settles for a while; then it is watched for idleTime.
const (
	settleTime = 5 * time.Second
	idleTime   = 20 * time.Second
)

// Density measures what idle sandboxes cost: the memory that the kernel charges to each one's processes, and their processor time while
// nobody asks anything of them. At the end each must answer.
func Density(ctx context.Context, cfg Config) (rep *Report, err error) {
	cfg.Warm = true // so that sandboxes come the way they come to users: most are restored
	r, err := open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close(ctx)) }()
	rep = r.report("density")
	guests, err := r.crowd(ctx, rep)
	if err != nil || rep.Failed > 0 {
		return rep, err
	}
	if err := wait(ctx, settleTime); err != nil {
		return nil, err
	}
	before, err := r.usages(ctx, guests)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	fmt.Fprintf(r.cfg.Progress, "density: watching %d idle sandboxes for %s\n", len(guests), idleTime)
	if err := wait(ctx, idleTime); err != nil {
		return nil, err
	}
	watched := time.Since(began)
	after, err := r.usages(ctx, guests)
	if err != nil {
		return nil, err
	}
	var memory []float64
	var cpu time.Duration
	for i := range after {
		memory = append(memory, float64(after[i].MemoryBytes)/(1<<20))
		cpu += after[i].CPU - before[i].CPU
	}
	var times []time.Duration
	for _, g := range guests {
		asked := time.Now()
		if err := execEcho(ctx, agent(g)); err != nil {
			rep.fail(fmt.Errorf("sandbox %s after idling: %w", g.ID, err))
			continue
		}
		times = append(times, time.Since(asked))
	}
	rep.times(times)
	slices.Sort(memory)
	total := 0.0
	for _, mb := range memory {
		total += mb
	}
	rep.Extra["mem_mb_per_sandbox"], rep.Extra["mem_mb_most"] = round(total/float64(len(memory))), round(memory[len(memory)-1])
	rep.Extra["idle_cpu_percent"] = round(100 * cpu.Seconds() / watched.Seconds() / float64(len(guests)))
	rep.Extra["answering"] = float64(len(times))
	return rep, nil
}

// crowd makes as many sandboxes as asked for, two at a time.
func (r *rig) crowd(ctx context.Context, rep *Report) ([]*client.Guest, error) {
	guests := make([]*client.Guest, r.cfg.N)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	began := time.Now()
	for i := range guests {
		g.Go(func() (err error) {
			if guests[i], err = r.sandbox(gctx); err != nil {
				return fmt.Errorf("create: %w", err)
			}
			return execEcho(gctx, agent(guests[i]))
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	rep.PerSecond = rate(len(guests), time.Since(began))
	return guests, nil
}

func (r *rig) usages(ctx context.Context, guests []*client.Guest) ([]vmm.Usage, error) {
	out := make([]vmm.Usage, len(guests))
	for i, g := range guests {
		var err error
		if out[i], err = r.stack.Agent().Usage(ctx, g.ID); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
