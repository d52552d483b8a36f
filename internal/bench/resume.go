package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/gvisor"
)

// Resume measures from the request that brings a paused sandbox back to the output of the first command in it, against a container restored by
// hand from a checkpoint of the same guest. Both read local files that are in memory.
func Resume(ctx context.Context, cfg Config) (rep *Report, err error) {
	r, err := open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close(ctx)) }()
	m := &resumeRun{rig: r, rep: r.report("resume")}
	g, err := r.sandbox(ctx)
	if err != nil {
		return nil, err
	}
	if err := execEcho(ctx, agent(g)); err != nil {
		return nil, err
	}
	checkpoint, err := r.rawCheckpoint(ctx, nil)
	if err != nil {
		return nil, err
	}
	for i := range cfg.N + 1 {
		if i == 1 {
			m.all, m.back, m.first, m.pause, m.raw = nil, nil, nil, nil, nil // the first round brings files into memory
		}
		if err := m.ours(ctx, g); err != nil {
			m.rep.fail(err)
			break // the sandbox may be gone
		}
		if err := m.floor(ctx, checkpoint); err != nil {
			m.rep.fail(fmt.Errorf("floor: %w", err))
		}
		if i%10 == 9 {
			fmt.Fprintf(r.cfg.Progress, "resume: %d of %d\n", i+1, cfg.N)
		}
	}
	m.finish()
	return m.rep, nil
}

type resumeRun struct {
	*rig
	rep *Report

	all, back, first, pause []time.Duration // ours: in all, the request, the exec after it; and the pause before
	raw                     []time.Duration
}

func (m *resumeRun) ours(ctx context.Context, g *client.Guest) error {
	began := time.Now()
	if err := m.client.Pause(ctx, g.ID); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	paused := time.Now()
	if _, err := m.client.Connect(ctx, g.ID, 5*time.Minute); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	back := time.Now()
	if err := execEcho(ctx, agent(g)); err != nil {
		return fmt.Errorf("first exec: %w", err)
	}
	m.all, m.back, m.first = append(m.all, time.Since(paused)), append(m.back, back.Sub(paused)), append(m.first, time.Since(back))
	m.pause = append(m.pause, paused.Sub(began))
	return nil
}

// rawCheckpoint starts the same guest by hand, has it run a command, and checkpoints it into a folder.
func (r *rig) rawCheckpoint(ctx context.Context, argv []string) (dir string, err error) {
	b, err := r.place(ctx)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, b.end(ctx)) }()
	if err := b.start(ctx); err != nil {
		return "", err
	}
	if argv == nil {
		argv = echo
	}
	var out lastBytes
	if code, err := b.Exec(ctx, argv, &out); err != nil || code != 0 {
		return "", fmt.Errorf("%v by hand: code %d, %w", argv, code, err)
	}
	dir = filepath.Join(r.dir, fmt.Sprint("checkpoint", r.count.Add(1)))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	return dir, b.Checkpoint(dir)
}

func (m *resumeRun) floor(ctx context.Context, checkpoint string) (err error) {
	b, err := m.place(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.end(ctx)) }()
	began := time.Now()
	if b.Raw, err = gvisor.RawRestore(gvisor.RawConfig{
		Dir: b.dir, RootFS: m.rootfs, Args: []string{tartarus.AgentPath}, NetNS: b.slot.Interface().NetNS,
	}, checkpoint); err != nil {
		return err
	}
	if err := b.execEcho(ctx); err != nil {
		return err
	}
	m.raw = append(m.raw, time.Since(began))
	return nil
}

func (m *resumeRun) finish() {
	rep := m.rep
	rep.times(m.all)
	rep.PerSecond = perSecond(m.all)
	rep.Floor = &Floor{
		How: "runsc container New, Restore and first Execute of echo, from a checkpoint of the same guest, network namespace made before",
		P50: quantile(m.raw, 50), P99: quantile(m.raw, 99), PerSecond: perSecond(m.raw),
	}
	if rep.Floor.P50 > 0 {
		rep.Ratio = round(rep.P50 / rep.Floor.P50)
	}
	rep.Stages["resume"], rep.Stages["first_exec"], rep.Stages["pause"] = quantile(m.back, 50), quantile(m.first, 50), quantile(m.pause, 50)
}

// perSecond is how many there would be a second, one after the other.
func perSecond(d []time.Duration) float64 {
	var sum time.Duration
	for _, one := range d {
		sum += one
	}
	return rate(len(d), sum)
}
