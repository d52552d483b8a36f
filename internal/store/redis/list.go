package redis

import (
	"context"
	"fmt"
	"maps"
	"slices"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// ListSandboxes implements hades.Registry. The page is a merge of sorted sets, one per shard and phase, of the kind that
// selects most: a metadata pair, the node, the tenant. What the set does not say is tested on the sandboxes themselves.
func (r *Registry) ListSandboxes(ctx context.Context, q hades.Query) (hades.Page, error) {
	q, err := q.Checked()
	if err != nil {
		return hades.Page{}, err
	}
	shards, err := r.db.registryShards(ctx)
	if err != nil {
		return hades.Page{}, fmt.Errorf("list sandboxes: %w", err)
	}
	m := newMerge(r.db, q, shards)
	page := hades.Page{Sandboxes: []tartarus.Sandbox{}}
	for n := q.Limit + 1; ; n = min(2*n, maxStep) { // a filter that keeps little is fed in larger steps
		members, err := m.next(ctx, n)
		if err != nil {
			return hades.Page{}, fmt.Errorf("list sandboxes: %w", err)
		}
		found, err := r.fetch(ctx, members)
		if err != nil {
			return hades.Page{}, fmt.Errorf("list sandboxes: %w", err)
		}
		for i, sb := range found {
			// A sandbox that moved since its member was read stands elsewhere now.
			if sb.ID == "" || !q.Selects(sb) || member(hades.ListedAt(sb), sb.ID) != members[i] {
				continue
			}
			if len(page.Sandboxes) == q.Limit {
				last := page.Sandboxes[q.Limit-1]
				page.Next = cursor(member(hades.ListedAt(last), last.ID))
				return page, nil
			}
			page.Sandboxes = append(page.Sandboxes, sb)
		}
		if len(members) == 0 {
			return page, nil
		}
	}
}

// fetch reads sandboxes by their members; one that is gone is empty.
func (r *Registry) fetch(ctx context.Context, members []string) ([]tartarus.Sandbox, error) {
	byShard := map[string][]int{}
	for i, m := range members {
		shard, err := r.shard(ctx, m[placeLen:])
		if err != nil {
			return nil, err
		}
		byShard[shard] = append(byShard[shard], i)
	}
	found := make([]tartarus.Sandbox, len(members))
	err := together(byShard, func(shard string, indices []int) error {
		return r.db.at(ctx, shard, func(ctx context.Context, c *goredis.Client) error {
			pipe := c.Pipeline()
			cmds := make([]*goredis.StringCmd, len(indices))
			for i, at := range indices {
				cmds[i] = pipe.HGet(ctx, shard+"sbs", members[at][placeLen:])
			}
			if _, err := pipe.Exec(ctx); err != nil && err != goredis.Nil {
				return err
			}
			for i, at := range indices {
				body, err := cmds[i].Result()
				if err == goredis.Nil {
					continue
				}
				if err == nil {
					found[at], err = unpackSandbox(body)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
	return found, err
}

// maxStep is how many sandboxes are read at once: about 1 MB.
const maxStep = 1001

// merge walks several sorted sets as if they were one.
type merge struct {
	db       *DB
	from, to string // bounds as ZRANGE BYLEX writes them
	reverse  bool
	step     int64
	sources  []*source
}

// source is one of the sets.
type source struct {
	shard, key string
	buf        []string
	after      string // the last member read
	done       bool   // nothing follows what is in buf
}

func newMerge(db *DB, q hades.Query, shards int) *merge {
	m := &merge{db: db, from: "-", to: "+", reverse: !q.Ascending}
	if !q.StartedAfter.IsZero() {
		m.from = "[" + place(q.StartedAfter.Add(1))
	}
	if !q.EndedBefore.IsZero() { // nothing ends before it starts
		m.to = "(" + place(q.EndedBefore)
	}
	if q.After != (hades.Cursor{}) {
		at := member(q.After.StartedAt, q.After.ID)
		if m.reverse && (m.to == "+" || at < m.to[1:]) {
			m.to = "(" + at
		} else if !m.reverse && (m.from == "-" || at >= m.from[1:]) {
			m.from = "(" + at
		}
	}
	name := everySet()
	switch {
	case q.Tenant != hades.AnyTenant && len(q.Metadata) > 0:
		key := slices.Min(slices.Collect(maps.Keys(q.Metadata)))
		name = labelSet(q.Tenant, key, q.Metadata[key])
	case q.Node != "":
		name = nodeSet(q.Node)
	case q.Tenant != hades.AnyTenant:
		name = tenantSet(q.Tenant)
	}
	phases := slices.Clone(q.Phases)
	if len(phases) == 0 {
		phases = slices.Clone(tartarus.Phases)
	}
	slices.Sort(phases)
	for i := range shards {
		shard := db.shardTag(i)
		for _, p := range slices.Compact(phases) {
			m.sources = append(m.sources, &source{shard: shard, key: shard + name + string(p)})
		}
	}
	// Each shard has about its part of a page; whoever has more is asked again.
	m.step = int64(2*q.Limit/shards + 10)
	if shards == 1 {
		m.step = int64(q.Limit + 1)
	}
	return m
}

// next returns the next n members, fewer only at the end.
func (m *merge) next(ctx context.Context, n int) ([]string, error) {
	out := make([]string, 0, n)
	for len(out) < n {
		if err := m.fill(ctx); err != nil {
			return nil, err
		}
		var first *source
		for _, s := range m.sources {
			if len(s.buf) > 0 && (first == nil || m.before(s.buf[0], first.buf[0])) {
				first = s
			}
		}
		if first == nil {
			break
		}
		out = append(out, first.buf[0])
		first.buf = first.buf[1:]
	}
	return out, nil
}

func (m *merge) before(a, b string) bool {
	if m.reverse {
		return a > b
	}
	return a < b
}

// fill sees to it that every source which may have more has something to compare.
func (m *merge) fill(ctx context.Context) error {
	empty := map[string][]*source{}
	for _, s := range m.sources {
		if len(s.buf) == 0 && !s.done {
			empty[s.shard] = append(empty[s.shard], s)
		}
	}
	return together(empty, func(shard string, sources []*source) error {
		return m.db.at(ctx, shard, func(ctx context.Context, c *goredis.Client) error {
			pipe := c.Pipeline()
			cmds := make([]*goredis.StringSliceCmd, len(sources))
			for i, s := range sources {
				cmds[i] = pipe.ZRangeArgs(ctx, m.rangeOf(s))
			}
			if _, err := pipe.Exec(ctx); err != nil {
				return err
			}
			for i, s := range sources {
				s.buf = cmds[i].Val()
				s.done = int64(len(s.buf)) < m.step
				if len(s.buf) > 0 {
					s.after = s.buf[len(s.buf)-1]
				}
			}
			return nil
		})
	})
}

// together runs fn for every shard at once and returns one of the errors.
func together[T any](shards map[string]T, fn func(shard string, v T) error) error {
	errs := make(chan error, len(shards))
	for shard, v := range shards {
		go func() { errs <- fn(shard, v) }()
	}
	var err error
	for range shards {
		if e := <-errs; e != nil {
			err = e
		}
	}
	return err
}

func (m *merge) rangeOf(s *source) goredis.ZRangeArgs {
	from, to := m.from, m.to
	if s.after != "" && m.reverse {
		to = "(" + s.after
	} else if s.after != "" {
		from = "(" + s.after
	}
	if m.reverse {
		from, to = to, from
	}
	return goredis.ZRangeArgs{Key: s.key, Start: from, Stop: to, ByLex: true, Rev: m.reverse, Count: m.step}
}
