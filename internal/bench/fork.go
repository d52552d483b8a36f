package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
)

// forkRounds is how often a fork, a snapshot and a checkpoint by hand take turns.
const forkRounds = 7

// Fork measures how long a sandbox with so much touched memory stands still for a snapshot of it, against a checkpoint of the same by hand, and
// how long a fork of n takes. How long it stands still is the longest time for which its agent does not answer somebody who asks it all the time.
func Fork(ctx context.Context, cfg Config) (rep *Report, err error) {
	if cfg.MemoryMB < 1 || cfg.MemoryMB > 8192 || cfg.N > 100 {
		return nil, tartarus.Errorf(tartarus.Invalid, "memory must be 1 to 8192 MB and n at most 100")
	}
	r, err := open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close(ctx)) }()
	m := &forkRun{rig: r, rep: r.report("fork")}
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.byHand.end(ctx)) }()
	for i := range forkRounds + 1 {
		if i == 1 {
			m.still, m.took, m.raw = nil, nil, nil // the first round brings programs into memory
		}
		if err := m.round(ctx); err != nil {
			m.rep.fail(err)
			break
		}
		fmt.Fprintf(r.cfg.Progress, "fork: %d of %d\n", i, forkRounds)
	}
	m.finish()
	return m.rep, nil
}

type forkRun struct {
	*rig
	rep    *Report
	source *client.Guest
	byHand *byHand

	still, took, raw []time.Duration // the source stands still, a fork in all, a checkpoint by hand
}

// touch fills memory with what cannot be shared or left out.
func (m *forkRun) touch() []string {
	return []string{"dd", "if=/dev/urandom", "of=/dev/shm/touched", "bs=1M", "count=" + strconv.FormatInt(m.cfg.MemoryMB, 10)}
}

// begin makes the two sandboxes, each with the memory touched.
func (m *forkRun) begin(ctx context.Context) error {
	memory := max(512, 4*m.cfg.MemoryMB)
	sb, err := m.client.Create(ctx, api.NewSandbox{TemplateID: m.cfg.Template, MemoryMB: &memory}, client.CreateOptions{})
	if err != nil {
		return err
	}
	m.source = m.client.Guest(sb)
	var out lastBytes
	exit, err := agent(m.source).Run(ctx, guestclient.Command{Argv: m.touch()}, nil, &out, &out)
	if err != nil || exit.ShellCode() != 0 {
		return fmt.Errorf("touch memory: code %d, %s, %w", exit.ShellCode(), out, err)
	}
	b, err := m.place(ctx)
	if err != nil {
		return err
	}
	m.byHand = b
	if err := b.start(ctx); err != nil {
		return err
	}
	out = nil
	if code, err := b.Exec(ctx, []string{"sh", "-c", "mkdir -p /dev/shm && " + join(m.touch())}, &out); err != nil || code != 0 {
		return fmt.Errorf("touch memory by hand: code %d, %s, %w", code, out, err)
	}
	return nil
}

func join(argv []string) (s string) {
	for _, a := range argv {
		s += a + " "
	}
	return s
}

func (m *forkRun) round(ctx context.Context) error {
	still, err := m.standstill(ctx)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	dir := filepath.Join(m.dir, fmt.Sprint("checkpoint", m.count.Add(1)))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	began := time.Now()
	if err := m.byHand.Checkpoint(dir); err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	m.raw, m.still = append(m.raw, time.Since(began)), append(m.still, still)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	began = time.Now()
	results, err := m.client.Fork(ctx, m.source.ID, m.cfg.N, time.Minute)
	if err != nil {
		return fmt.Errorf("fork: %w", err)
	}
	m.took = append(m.took, time.Since(began))
	for _, one := range results { // not part of what is measured
		if one.Sandbox == nil {
			m.rep.fail(fmt.Errorf("clone: %s", one.Error.Message))
			continue
		}
		if err := execEcho(ctx, agent(m.client.Guest(one.Sandbox))); err != nil {
			m.rep.fail(fmt.Errorf("clone: %w", err))
		}
		if err := m.client.Terminate(ctx, one.Sandbox.SandboxID, client.KillOptions{Grace: new(time.Duration)}); err != nil {
			m.rep.fail(fmt.Errorf("kill: %w", err))
		}
	}
	return nil
}

// standstill takes the snapshot that a fork takes, and returns the longest time between two answers of the source's agent meanwhile.
func (m *forkRun) standstill(ctx context.Context) (time.Duration, error) {
	asking, stop := context.WithCancel(ctx)
	defer stop()
	longest := make(chan time.Duration, 1)
	up := make(chan struct{})
	go func() { longest <- longestGap(asking, agent(m.source), up) }()
	<-up
	node, ok := m.stack.Node().(olympus.Snapshotter)
	if !ok {
		return 0, errors.New("the node takes no snapshots")
	}
	snap, err := node.Snapshot(ctx, m.source.ID, tartarus.SnapshotHow{Scratch: true})
	stop()
	gap := <-longest
	if err != nil {
		return 0, err
	}
	return gap, node.RemoveSnapshot(ctx, snap.ID)
}

// longestGap asks the agent until ctx ends. up is closed once it has answered.
func longestGap(ctx context.Context, guest *guestclient.Client, up chan<- struct{}) (longest time.Duration) {
	defer guest.Close()
	var last time.Time
	for ctx.Err() == nil {
		err := guest.Health(ctx)
		now := time.Now()
		switch {
		case err != nil:
			continue
		case last.IsZero():
			close(up)
		default:
			longest = max(longest, now.Sub(last))
		}
		last = now
	}
	if last.IsZero() {
		close(up)
	}
	return longest
}

func (m *forkRun) finish() {
	rep := m.rep
	rep.times(m.took)
	rep.PerSecond = round(perSecond(m.took) * float64(m.cfg.N))
	rep.Floor = &Floor{How: "runsc container Checkpoint of the same guest with the same memory touched, leaving it running", P50: quantile(m.raw, 50), P99: quantile(m.raw, 99), PerSecond: perSecond(m.raw)}
	rep.Extra["source_pause_ms"], rep.Extra["source_pause_p99_ms"] = quantile(m.still, 50), quantile(m.still, 99)
	rep.Extra["memory_mb"], rep.Extra["clones"] = float64(m.cfg.MemoryMB), float64(m.cfg.N)
	if rep.Floor.P50 > 0 {
		rep.Ratio = round(rep.Extra["source_pause_ms"] / rep.Floor.P50)
	}
}
