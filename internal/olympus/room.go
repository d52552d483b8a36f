package olympus

import (
	"context"
	"errors"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/phlegethon"
)

// A node judges for itself whether it has room, because replicas place side by side on what nodes said of themselves seconds ago. A create that it
// refuses for want of room goes on at once on a node that has some; where none has, it waits in the queue of the one that refused it
// for as long as its request does.

// elsewhere places a sandbox again, away from a node that has refused it.
type elsewhere func(ctx context.Context, refused string) (phlegethon.Placement, error)

const (
	// roomPause keeps a create that finds no room from going round faster than nodes can change.
	roomPause = 100 * time.Millisecond
	// abandoned is how long a create that was refused for want of room belongs to the request that placed it; that one goes on within two pauses
	// and a few store writes, or never.
	abandoned = 10 * time.Second
)

// refusedRoom returns why a job ended, if that was want of room.
func refusedRoom(j acheron.Job) (*tartarus.Error, bool) {
	if j.State != acheron.Dead {
		return nil, false
	}
	e := acheron.FromReason(j.Reason)
	return e, e.Code == hades.CodeNoRoom
}

// placing is the elsewhere of a sandbox that has been judged and placed.
func (s *Server) placing(spec tartarus.Spec, tier tartarus.Tier) elsewhere {
	return func(ctx context.Context, refused string) (got phlegethon.Placement, err error) {
		needs, err := s.needs(ctx, spec, tier)
		if err != nil {
			return got, err
		}
		for _, need := range needs {
			need.Apart = refused
			if got, err = s.placer.replace(ctx, need, time.Now()); err == nil {
				break
			}
		}
		return got, err
	}
}

// goOn lets a create go on that a node had no room for, and returns its job as it then waits.
func (s *Server) goOn(ctx context.Context, q acheron.Operator, refused acheron.Job, entry *tartarus.Sandbox, next elsewhere) (acheron.Job, error) {
	to := refused.Node
	if where, err := next(ctx, refused.Node); err == nil && !where.Full {
		to = where.Node
	} else if ctx.Err() != nil {
		return refused, ctx.Err()
	}
	if err := s.reroute(ctx, entry, to); err != nil {
		return refused, err
	}
	if err := q.Requeue(ctx, refused.ID, to); err != nil && !tartarus.Is(err, tartarus.Conflict) { // a conflict: an operator was quicker
		return refused, err
	}
	refused.Node, refused.State = to, acheron.Waiting
	return refused, nil
}

// reroute has the registry know which node a queued sandbox goes to now: nodes are only believed about their own. One that has ended meanwhile, because
// somebody killed it, is tartarus.Conflict.
func (s *Server) reroute(ctx context.Context, entry *tartarus.Sandbox, node string) error {
	for range registryTries {
		stored, err := s.cfg.Registry.Sandbox(ctx, entry.Tenant, entry.ID)
		switch {
		case tartarus.Is(err, tartarus.NotFound): // the registry was wiped: whoever starts it enters it
			entry.Node = node
			return nil
		case err != nil:
			return err
		case stored.Phase != tartarus.Queued:
			return tartarus.Errorf(tartarus.Conflict, "the start was called off")
		}
		*entry = stored
		if stored.Node == node {
			return nil
		}
		entry.Node = node
		entry.Revision, err = s.cfg.Registry.PutSandbox(ctx, *entry)
		if !tartarus.Is(err, tartarus.Conflict) {
			return err
		}
	}
	return tartarus.Errorf(tartarus.Unavailable, "sandbox %s changes too often", entry.ID)
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// awaitStart waits for the end of a job. A create that a node had no room for goes on as long as ctx does: next says where else there is room, and where
// it is nil the job is another request's, which does the same. The last refusal is then part of the error.
func (s *Server) awaitStart(ctx context.Context, job acheron.Job, entry *tartarus.Sandbox, next elsewhere) (acheron.Job, error) {
	q, operated := s.cfg.Queue.(acheron.Operator)
	var refusal error
	for round := 0; ; round++ {
		var err error
		if !job.State.Ended() {
			id := job.ID
			if job, err = s.cfg.Queue.Await(ctx, id); err != nil {
				return acheron.Job{ID: id}, errors.Join(err, refusal)
			}
		}
		why, refused := refusedRoom(job)
		if !refused || !operated || job.Kind != acheron.Create || next == nil && time.Since(job.EndedAt) > abandoned {
			return job, nil
		}
		refusal = why
		if round > 0 || next == nil {
			err = sleep(ctx, roomPause)
		}
		switch {
		case err != nil:
		case next == nil:
			job, err = s.cfg.Queue.Job(ctx, job.ID)
		default:
			job, err = s.goOn(ctx, q, job, entry, next)
		}
		if err != nil {
			return job, errors.Join(err, refusal)
		}
	}
}

// stay is the elsewhere of what can be made on one node alone.
func stay(_ context.Context, refused string) (phlegethon.Placement, error) {
	return phlegethon.Placement{Node: refused, Full: true}, nil
}
