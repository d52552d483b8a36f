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
	after := "-inf"
	for len(jobs) < limit {
		step, next, err := q.page(ctx, set, after)
		if err != nil {
			return nil, fmt.Errorf("list %s jobs: %w", state, err)
		}
		for _, j := range step {
			if j.State == state {
				jobs = append(jobs, j)
			}
		}
		if next == "" {
			break
		}
		after = "(" + next
	}
	return slices.Clip(jobs[:min(limit, len(jobs))]), nil
}

// page reads the jobs behind a place in a set, and the place of the last one; none when nothing follows.
func (q *Queue) page(ctx context.Context, set, after string) (jobs []acheron.Job, next string, err error) {
	prefix := q.db.tag("q")
	err = q.db.at(ctx, prefix, func(ctx context.Context, c *goredis.Client) error {
		found, err := c.ZRangeByScoreWithScores(ctx, prefix+set, &goredis.ZRangeBy{Min: after, Max: "+inf", Count: listStep}).Result()
		if err != nil || len(found) == 0 {
			return err
		}
		if len(found) == listStep {
			next = fmt.Sprintf("%.0f", found[len(found)-1].Score)
		}
		pipe := c.Pipeline()
		cmds := make([]*goredis.MapStringStringCmd, len(found))
		for i, z := range found {
			cmds[i] = pipe.HGetAll(ctx, prefix+"job:"+z.Member.(string))
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return err
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
		return nil
	})
	return jobs, next, err
}

// Requeue implements acheron.Operator.
func (q *Queue) Requeue(ctx context.Context, id string) error {
	v, err := q.run(ctx, requeueScript, id)
	return outcome("requeue", id, v, err)
}

// Purge implements acheron.Operator.
func (q *Queue) Purge(ctx context.Context, before time.Time) (int, error) {
	const step = 200
	total := 0
	for {
		v, err := q.db.run(ctx, purgeScript, q.db.tag("q"), micros(before), step)
		if err != nil {
			return total, fmt.Errorf("purge jobs: %w", err)
		}
		n := int(answer{v}.number(0))
		total += n
		if n < step {
			return total, nil
		}
	}
}
