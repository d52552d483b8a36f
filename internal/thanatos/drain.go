package thanatos

import (
	"context"
	"sync"
	"time"
)

// Drain empties a node, so many sandboxes at a time, before a deadline.
type Drain struct {
	AtOnce   int
	Until    time.Time      // what is not done by then stays
	Progress func(Progress) // called after each sandbox, one call at a time; may be nil
}

// Progress is how far a drain has come.
type Progress struct {
	Total, Done, Failed int
	ID                  string // the sandbox that this is about
	Err                 error  // why it could not be dealt with
}

// Run deals with every sandbox that left lists by calling each, and asks left again until it names nobody who was not tried, because a start under way
// may have come up meanwhile. It returns how it went when nothing is left to try, when the deadline has passed, or when ctx ends.
func (d Drain) Run(ctx context.Context, left func() []string, each func(ctx context.Context, id string) error) Progress {
	ctx, cancel := context.WithDeadline(ctx, d.Until)
	defer cancel()
	var mu sync.Mutex
	var p Progress
	tried := map[string]bool{}
	hands := make(chan struct{}, max(1, d.AtOnce))
	for {
		var fresh []string
		for _, id := range left() {
			if !tried[id] {
				tried[id] = true
				fresh = append(fresh, id)
			}
		}
		if len(fresh) == 0 {
			return p
		}
		mu.Lock()
		p.Total += len(fresh)
		mu.Unlock()
		var group sync.WaitGroup
		for _, id := range fresh {
			select {
			case hands <- struct{}{}:
			case <-ctx.Done():
			}
			if ctx.Err() != nil {
				break
			}
			group.Go(func() {
				defer func() { <-hands }()
				err := each(ctx, id)
				mu.Lock()
				defer mu.Unlock()
				if p.ID, p.Err = id, err; err == nil {
					p.Done++
				} else {
					p.Failed++
				}
				if d.Progress != nil {
					d.Progress(p)
				}
			})
		}
		group.Wait()
		if ctx.Err() != nil {
			p.Failed = p.Total - p.Done
			return p
		}
	}
}
