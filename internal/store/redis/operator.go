package redis

import (
	"context"
	"fmt"
	"slices"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// maxList bounds what one List holds in memory, listStep what one command of it costs Redis.
const (
	maxList  = 10_000
	listStep = 500
)

// List implements acheron.Operator. It walks in steps, so that Redis is never held up by it; a job that changes its
// state meanwhile may be missed.
func (q *Queue) List(ctx context.Context, state acheron.State, limit int) ([]acheron.Job, error) {
	set := "state:" + string(state)
	switch state {
	case acheron.Waiting, acheron.Leased:
		set = "open"
	case acheron.Dead, acheron.Cancelled, acheron.Done:
	default:
		return nil, tartarus.Errorf(tartarus.Invalid, "list jobs: no state %q", state)
	}
	if limit < 1 || limit > maxList {
		return nil, tartarus.Errorf(tartarus.Invalid, "list jobs: limit must be 1 to %d, not %d", maxList, limit)
	}
	jobs := []acheron.Job{}
	for p := (&spot{set: set, score: "-inf"}); !p.last && len(jobs) < limit; {
		step, err := q.next(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("list %s jobs: %w", state, err)
		}
		for _, j := range step {
			if j.State == state {
				jobs = append(jobs, j)
			}
		}
	}
	return slices.Clip(jobs[:min(limit, len(jobs))]), nil
}

// spot is how far a walk through a sorted set has come. Several members may share a score, though never a whole step of
// them: one script ends at most 200 jobs at once.
type spot struct {
	set, score string
	seen       map[string]bool // of that score
	last       bool
}

// next reads the jobs behind p and moves it on.
func (q *Queue) next(ctx context.Context, p *spot) (jobs []acheron.Job, err error) {
	prefix := q.db.tag("q")
	err = q.db.at(ctx, prefix, func(ctx context.Context, c *goredis.Client) error {
		found, err := c.ZRangeByScoreWithScores(ctx, prefix+p.set, &goredis.ZRangeBy{Min: p.score, Max: "+inf", Count: listStep}).Result()
		if err != nil || len(found) == 0 {
			p.last = true
			return err
		}
		pipe := c.Pipeline()
		var cmds []*goredis.MapStringStringCmd
		seen := map[string]bool{}
		end := found[len(found)-1].Score
		for _, z := range found {
			id := z.Member.(string)
			if z.Score == end {
				seen[id] = true
			}
			if !p.seen[id] {
				cmds = append(cmds, pipe.HGetAll(ctx, prefix+"job:"+id))
			}
		}
		if len(cmds) > 0 {
			if _, err := pipe.Exec(ctx); err != nil {
				return err
			}
		}
		for _, cmd := range cmds {
			if len(cmd.Val()) == 0 {
				continue // purged in between
			}
			j, err := decodeJob(cmd.Val())
			if err != nil {
				return err
			}
			jobs = append(jobs, j)
		}
		p.score, p.seen, p.last = fmt.Sprintf("%.0f", end), seen, len(found) < listStep
		return nil
	})
	return jobs, err
}

// Requeue implements acheron.Operator.
func (q *Queue) Requeue(ctx context.Context, id, node string) error {
	var body []byte // says which node it is for; nothing else of it ever changes
	if node != "" {
		j, err := q.Job(ctx, id)
		if err != nil {
			return err
		}
		j.Node = node
		if body, err = encodeBody(j); err != nil {
			return err
		}
	}
	v, err := q.run(ctx, requeueScript, id, node, body)
	return outcome("requeue", id, v, err)
}

// Purge implements acheron.Operator.
func (q *Queue) Purge(ctx context.Context, before time.Time) (int, error) {
	const step = 200
	total := 0
	for _, state := range []acheron.State{acheron.Done, acheron.Dead, acheron.Cancelled} {
		for n := step; n == step; total += n {
			v, err := q.run(ctx, purgeScript, string(state), micros(before), step)
			if err != nil {
				return total, fmt.Errorf("purge jobs: %w", err)
			}
			n = int(v.number(0))
		}
	}
	return total, nil
}
