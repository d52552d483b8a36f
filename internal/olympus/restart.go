package olympus

import (
	"context"
	"errors"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// maxUnawaited is how many jobs of one state are looked at; the queue's own limit of a list.
const maxUnawaited = 10_000

// DropUnawaited calls off what an earlier process of the same store had queued and nobody can be waiting for: the connection of each
// request ended with that process. What came with an idempotency key stays, because its client will ask for it again.
//
// It is for a process that has the store to itself, before its node takes work. Where replicas share a queue, another one
// may be waiting.
func (s *Server) DropUnawaited(ctx context.Context) error {
	q, ok := s.cfg.Queue.(acheron.Operator)
	if !ok {
		return nil
	}
	var errs []error
	dropped := 0
	for _, state := range []acheron.State{acheron.Waiting, acheron.Leased} {
		jobs, err := q.List(ctx, state, maxUnawaited)
		errs = append(errs, err)
		for _, j := range jobs {
			if j.Key != "" {
				continue
			}
			if err := s.drop(ctx, j); err != nil {
				errs = append(errs, err)
				continue
			}
			dropped++
		}
	}
	if dropped > 0 {
		s.log.Info("called off what was queued before the restart", "jobs", dropped)
	}
	return errors.Join(errs...)
}

// drop calls one job off. A sandbox that was to be made is recorded as failed; one that was to be resumed stays paused.
func (s *Server) drop(ctx context.Context, j acheron.Job) error {
	if err := s.cfg.Queue.Cancel(ctx, j.ID); err != nil && !tartarus.Is(err, tartarus.Conflict) { // a conflict: it ended by itself
		return err
	}
	if j.Kind != acheron.Create {
		return nil
	}
	sb, err := s.cfg.Registry.Sandbox(ctx, j.Tenant, j.ID)
	if tartarus.Is(err, tartarus.NotFound) {
		return nil
	}
	if err == nil && sb.Phase == tartarus.Queued {
		s.giveUp(ctx, sb, tartarus.Errorf(tartarus.Unavailable, "the server was restarted before it ran"))
	}
	return err
}
