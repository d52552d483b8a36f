package quota

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// clerk does the errands of one tenant on one replica, all that wait in one round: a thousand claims at once cost a few writes, and only
// replicas race for the record.
type clerk struct {
	waiting []*errand
}

// errand is one thing to do to a record: a claim, a doubt, or a look at everything.
type errand struct {
	ctx     context.Context // of who waits; whoever is gone gets nothing. It lives as long as the errand.
	claim   Claim
	doubt   string
	changed bool
	said    chan answer // room for one
}

type answer struct {
	refusal *Refusal
	err     error
}

// put queues an errand, and sets a clerk to work where none is. It reports whether there was room.
func (l *Ledger) put(ctx context.Context, tenantName string, e *errand) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.clerks[tenantName]
	if c == nil {
		c = &clerk{}
		l.clerks[tenantName] = c
		// The round may be for many callers, and outlives the one that began it.
		go l.work(context.WithoutCancel(ctx), tenantName, c)
	}
	if len(c.waiting) >= maxWaiting {
		return false
	}
	c.waiting = append(c.waiting, e)
	return true
}

// work does errands until none wait.
func (l *Ledger) work(ctx context.Context, tenantName string, c *clerk) {
	for {
		l.mu.Lock()
		batch := c.waiting
		c.waiting = nil
		if len(batch) == 0 {
			delete(l.clerks, tenantName)
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		l.round(ctx, tenantName, batch)
	}
}

// round does a batch of errands and answers each, whatever happens.
func (l *Ledger) round(ctx context.Context, tenantName string, batch []*errand) {
	ctx, cancel := context.WithTimeout(ctx, batchTime)
	defer cancel()
	answers := make([]answer, len(batch))
	err := error(tartarus.Errorf(tartarus.Internal, "the quota of tenant %s could not be told", tenantName))
	defer func() {
		if p := recover(); p != nil {
			l.cfg.Log.Error("quota failed", "tenant", tenantName, "panic", p)
		}
		for i, e := range batch {
			if err != nil {
				answers[i] = answer{err: err}
			}
			e.said <- answers[i]
		}
	}()
	for try := range maxTries {
		if err = l.try(ctx, tenantName, batch, answers); !tartarus.Is(err, tartarus.Conflict) {
			return
		}
		select {
		case <-ctx.Done():
			err = tartarus.Errorf(tartarus.Unavailable, "the quota of tenant %s is changed by too many at once: %w", tenantName, ctx.Err())
			return
		case <-time.After(rand.N(time.Duration(1+min(try, 20)) * time.Millisecond)):
		}
	}
	err = tartarus.Errorf(tartarus.Unavailable, "the quota of tenant %s is changed by too many at once", tenantName)
}

// try does a batch against the record as it is now. Another change meanwhile is tartarus.Conflict, and nothing was done.
func (l *Ledger) try(ctx context.Context, tenantName string, batch []*errand, answers []answer) error {
	b, revision, err := l.read(ctx, tenantName)
	if err != nil {
		return err
	}
	now := time.Now()
	checked, changed := false, false
	check := func() error {
		if checked {
			return nil
		}
		checked = true
		return l.check(ctx, tenantName, b, now)
	}
	if b.due(now) {
		if err := check(); err != nil {
			return err
		}
		changed = true
	}
	for i, e := range batch {
		answers[i] = answer{}
		switch {
		case e.ctx.Err() != nil:
			answers[i].err = e.ctx.Err()
		case e.changed:
			b.Young, changed = now.Add(youth).UnixMilli(), true
		case e.doubt != "":
			changed = b.doubt(e.doubt) || changed
		default:
			if e.claim.Quota.Queue > 0 {
				// Nobody says when a sandbox leaves the queue, so it is looked up.
				if err := check(); err != nil {
					return err
				}
			}
			refusal := b.fits(e.claim, now)
			if refusal != nil && !checked {
				if err := check(); err != nil {
					return err
				}
				refusal = b.fits(e.claim, now)
			}
			if answers[i].refusal = refusal; refusal == nil {
				b.enter(e.claim, now, l.cfg.Grace)
				changed = true
			}
		}
	}
	if !changed {
		return nil
	}
	body, err := json.Marshal(b)
	if err != nil {
		return tartarus.Errorf(tartarus.Internal, "encode quota: %w", err)
	}
	_, err = l.cfg.Store.Put(ctx, ledgerShelf, tenantName, body, revision)
	return err
}

func (l *Ledger) read(ctx context.Context, tenantName string) (*book, int64, error) {
	b := &book{Holds: map[string]hold{}, Creates: map[int64]int64{}}
	rec, err := l.cfg.Store.Get(ctx, ledgerShelf, tenantName)
	if tartarus.Is(err, tartarus.NotFound) {
		return b, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	if err := json.Unmarshal(rec.Body, b); err != nil {
		return nil, 0, tartarus.Errorf(tartarus.Corrupt, "decode quota of tenant %s: %w", tenantName, err)
	}
	if b.Holds == nil {
		b.Holds = map[string]hold{}
	}
	if b.Creates == nil {
		b.Creates = map[int64]int64{}
	}
	return b, rec.Revision, nil
}

// living are the phases in which a sandbox holds anything.
var living = func() (out []tartarus.Phase) {
	for _, p := range tartarus.Phases {
		if !p.Ended() {
			out = append(out, p)
		}
	}
	return out
}()

// check makes a record agree with the registry.
func (l *Ledger) check(ctx context.Context, tenantName string, b *book, now time.Time) error {
	found := map[string]tartarus.Sandbox{}
	q := hades.Query{Tenant: tenantName, Phases: living, Limit: hades.MaxLimit}
	for {
		page, err := l.cfg.Registry.ListSandboxes(ctx, q)
		if err != nil {
			return err
		}
		for _, sb := range page.Sandboxes {
			found[sb.ID] = sb
		}
		if page.Next == (hades.Cursor{}) {
			break
		}
		q.After = page.Next
	}
	// What was claimed and is not there may be on its way, may have ended, and may have moved in the list while that was read.
	for id, h := range b.Holds {
		if _, ok := found[id]; ok || h.Snapshot {
			continue
		}
		sb, err := l.cfg.Registry.Sandbox(ctx, tenantName, id)
		switch {
		case err == nil:
			found[id] = sb
		case !tartarus.Is(err, tartarus.NotFound):
			return err
		}
	}
	b.agree(found, now)
	return nil
}
