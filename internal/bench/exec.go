package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

// Exec measures one echo through API, edge and agent against the runtime's own exec call, in two sandboxes of the same image: the bare program, whose
// own time is so short that little but the way to it is left, and, in the extra figures, a shell's, which is how the SDKs run a command.
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
	shell := pair{argv: []string{"/bin/sh", "-c", "echo hi"}, ours: inside, floor: byHand}
	bare := pair{argv: echo, ours: inside, floor: byHand}
	const warm = 5 // not counted
	for i := range cfg.N + warm {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		for _, p := range []*pair{&bare, &shell} {
			if err := p.run(ctx, i >= warm); err != nil {
				rep.fail(err)
			}
		}
	}
	rep.times(bare.took)
	rep.PerSecond = rate(len(bare.took), sum(bare.took))
	rep.Floor = &Floor{
		How: "runsc's own Execute of the same command and wait",
		P50: quantile(bare.raw, 50), P99: quantile(bare.raw, 99), PerSecond: rate(len(bare.raw), sum(bare.raw)),
	}
	rep.Ratio = round(rep.P50 / rep.Floor.P50)
	rep.Extra["shell_p50_ms"], rep.Extra["shell_floor_p50_ms"] = quantile(shell.took, 50), quantile(shell.raw, 50)
	rep.Extra["shell_ratio"] = round(rep.Extra["shell_p50_ms"] / rep.Extra["shell_floor_p50_ms"])
	return rep, nil
}

// pair is one command run in turn through us and by hand.
type pair struct {
	argv      []string
	ours      *guestclient.Client
	floor     *byHand
	took, raw []time.Duration
}

func (p *pair) run(ctx context.Context, counts bool) error {
	began := time.Now()
	err := execHi(ctx, p.ours, p.argv)
	between := time.Now()
	if e := p.floor.execHi(ctx, p.argv); e != nil {
		err = errors.Join(err, fmt.Errorf("floor: %w", e))
	}
	if counts {
		p.took, p.raw = append(p.took, between.Sub(began)), append(p.raw, time.Since(between))
	}
	return err
}

func sum(d []time.Duration) (total time.Duration) {
	for _, one := range d {
		total += one
	}
	return total
}
