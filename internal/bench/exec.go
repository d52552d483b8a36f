package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Exec measures one echo through API, edge and agent against the runtime's own exec call, in two sandboxes of the same image.
func Exec(ctx context.Context, cfg Config) (rep *Report, err error) {
	r, err := open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close(ctx)) }()
	rep = r.report("exec")
	rep.Concurrency = 1
	g, err := r.sandbox(ctx)
	if err != nil {
		return nil, err
	}
	byHand, err := r.place(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, byHand.end(ctx)) }()
	if err := byHand.start(ctx); err != nil {
		return nil, fmt.Errorf("floor: %w", err)
	}
	inside := agent(g)
	var ours, floor []time.Duration
	const warm = 5 // not counted
	for i := range cfg.N + warm {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		began := time.Now()
		if err := execEcho(ctx, inside); err != nil {
			rep.fail(err)
		}
		between := time.Now()
		if err := byHand.execEcho(ctx); err != nil {
			rep.fail(fmt.Errorf("floor: %w", err))
		}
		if i >= warm {
			ours, floor = append(ours, between.Sub(began)), append(floor, time.Since(between))
		}
	}
	rep.times(ours)
	rep.PerSecond = rate(len(ours), sum(ours))
	rep.Floor = &Floor{How: "runsc's own Execute of the same command and wait", P50: quantile(floor, 50), P99: quantile(floor, 99), PerSecond: rate(len(floor), sum(floor))}
	rep.Ratio = round(rep.P50 / rep.Floor.P50)
	return rep, nil
}

func sum(d []time.Duration) (total time.Duration) {
	for _, one := range d {
		total += one
	}
	return total
}
