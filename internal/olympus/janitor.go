package olympus

import (
	"context"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// sweepEvery is the janitor's rhythm. What it removes is hours old; what it mends, minutes, or a node's silence where that counts sooner.
const sweepEvery = time.Minute

// Run keeps the list of nodes and what is known of templates new, and the registry and the queue free of what is over, until ctx ends. Several replicas may do it at once.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.roster.Run(ctx) })
	g.Go(func() error { return s.exchanges(ctx) })
	g.Go(func() error { return s.sweeps(ctx) })
	return g.Wait()
}

func (s *Server) sweeps(ctx context.Context) error {
	every := min(sweepEvery, s.cfg.NodeLost)
	for {
		// Spread out, so that replicas started together do not sweep together.
		wait := every/2 + time.Duration(rand.Int64N(int64(every)))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		if err := s.sweep(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.log.Warn("sweep not finished", "error", err)
		}
	}
}

// sweep does one round of the janitor's work.
func (s *Server) sweep(ctx context.Context, now time.Time) error {
	for _, step := range []func(context.Context, time.Time) error{s.flushUsage, s.forgetEnded, s.endStranded, s.endLost, s.purgeJobs} {
		if err := step(ctx, now); err != nil {
			return err
		}
	}
	return nil
}

// each calls f for all sandboxes of a query.
func (s *Server) each(ctx context.Context, q hades.Query, f func(tartarus.Sandbox) error) error {
	q.Tenant, q.Limit, q.Ascending = hades.AnyTenant, maxListV1, true
	for {
		page, err := s.cfg.Registry.ListSandboxes(ctx, q)
		if err != nil {
			return err
		}
		for _, sb := range page.Sandboxes {
			if err := f(sb); err != nil {
				return err
			}
		}
		if page.Next == (hades.Cursor{}) {
			return nil
		}
		q.After = page.Next
	}
}

// forgetEnded removes sandboxes that ended long ago.
func (s *Server) forgetEnded(ctx context.Context, now time.Time) error {
	q := hades.Query{Phases: []tartarus.Phase{tartarus.Stopped, tartarus.Failed, tartarus.Rejected}, EndedBefore: now.Add(-s.cfg.Retention)}
	return s.each(ctx, q, func(sb tartarus.Sandbox) error { return s.cfg.Registry.RemoveSandbox(ctx, sb.ID) })
}

// endStranded ends entries whose request died between entering them and queueing them, or before it could record their failure.
func (s *Server) endStranded(ctx context.Context, now time.Time) error {
	return s.each(ctx, hades.Query{Phases: []tartarus.Phase{tartarus.Queued}}, func(sb tartarus.Sandbox) error {
		if now.Sub(sb.CreatedAt) < 2*s.cfg.CreateTime {
			return nil
		}
		j, err := s.cfg.Queue.Job(ctx, sb.ID)
		switch {
		case tartarus.Is(err, tartarus.NotFound):
			s.giveUp(ctx, sb, tartarus.Errorf(tartarus.Internal, "its request was lost"))
		case err != nil:
			return err
		case j.State == acheron.Dead || j.State == acheron.Cancelled:
			s.giveUp(ctx, sb, whyNot(j))
		}
		return nil
	})
}

// endLost counts the sandboxes of nodes that have been silent for long as lost. A node that comes back says what it still holds.
func (s *Server) endLost(ctx context.Context, now time.Time) error {
	nodes, err := s.cfg.Registry.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if !s.lost(n, now) {
			continue
		}
		if err := s.loseNode(ctx, n.Name, "its node "+n.Name+" stopped answering", now, false); err != nil {
			return err
		}
	}
	return nil
}

// loseNode counts what runs on a node as lost. What is paused there is lost only with the node itself.
func (s *Server) loseNode(ctx context.Context, node, why string, now time.Time, paused bool) error {
	q := hades.Query{Node: node, Phases: []tartarus.Phase{
		tartarus.Starting, tartarus.Running, tartarus.Pausing, tartarus.Snapshotting, tartarus.Quarantined, tartarus.Stopping,
	}}
	if paused {
		q.Phases = append(q.Phases, tartarus.Paused)
	}
	return s.each(ctx, q, func(sb tartarus.Sandbox) error {
		if err := sb.Transition(tartarus.Failed, tartarus.ReasonNodeLost, why); err != nil {
			return nil // it changed since it was listed
		}
		sb.EndedAt = now
		switch _, err := s.cfg.Registry.PutSandbox(ctx, sb); {
		case tartarus.Is(err, tartarus.Conflict):
			return nil // another replica was quicker, or its node is back
		case err != nil:
			return err
		}
		s.cfg.Changed(sb)
		s.recorder.noticed("sandbox.lost", sb, map[string]string{"node": node, "reason": string(sb.Reason), "message": why})
		s.log.Warn("sandbox lost", "sandbox", sb.ID, "tenant", sb.Tenant, "node", node)
		return nil
	})
}

// purgeJobs forgets old jobs, and the idempotency keys with them.
func (s *Server) purgeJobs(ctx context.Context, now time.Time) error {
	q, ok := s.cfg.Queue.(acheron.Operator)
	if !ok {
		return nil
	}
	_, err := q.Purge(ctx, now.Add(-s.cfg.JobRetention))
	return err
}
