package hades

import (
	"context"
	"sync"
	"time"
)

const (
	// RosterEvery is how old a roster's list becomes before it is read again: a fifth of a heartbeat, so that it is hardly older than what the nodes last said.
	RosterEvery = time.Second
	// rosterIdle is the same while nobody has asked for rosterUsed: with ten thousand nodes a read takes a tenth of a second of a processor.
	rosterIdle, rosterUsed = 5 * time.Second, time.Minute
	// rosterMost is how old a list may be that is given away while a newer one is on its way. Run keeps it younger; it is reached where nobody runs the
	// roster, or the store does not answer.
	rosterMost = 6 * time.Second
	// rosterRead bounds one read.
	rosterRead = 30 * time.Second
)

// Roster is the nodes as they were read a moment ago. Whoever asks is given what there is; a newer list is read in the background, by one at a time.
// All methods may be called concurrently.
type Roster struct {
	registry Registry

	mu      sync.Mutex
	list    List
	err     error         // of the read that ended last
	begun   uint64        // reads that were begun
	ended   uint64        // reads that have ended: those up to this number
	least   uint64        // reads before this one do not count any more
	reading chan struct{} // closed when the read under way has ended; nil while none is
	used    time.Time     // when somebody asked last
	tell    []func(List)
}

// List is the nodes by name as they were at Read. It belongs to all who have it: nobody changes it.
type List struct {
	Nodes []Node
	Read  time.Time // zero when they never were
}

// NewRoster makes a roster that has read nothing yet.
func NewRoster(r Registry) *Roster { return &Roster{registry: r} }

// Tell has f called with every list, before anybody is given it. It must be called before the roster is used.
func (r *Roster) Tell(f func(List)) { r.tell = append(r.tell, f) }

// Run keeps the list new until ctx ends, so that nobody waits for it.
func (r *Roster) Run(ctx context.Context) error {
	tick := time.NewTicker(RosterEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			r.mu.Lock()
			reading := r.reading
			r.mu.Unlock()
			if reading != nil {
				<-reading // bounded by rosterRead
			}
			return nil
		case now := <-tick.C:
			r.mu.Lock()
			if now.Sub(r.used) < rosterUsed || now.Sub(r.list.Read) >= rosterIdle {
				r.read(ctx, now)
			}
			r.mu.Unlock()
		}
	}
}

// List gives what there is, and waits only where that is nothing, too old, or was called off by Forget. While the store fails it gives an old list,
// whose leases run out by themselves; an error means that there never was one, or ctx's end.
func (r *Roster) List(ctx context.Context, now time.Time) (List, error) {
	r.mu.Lock()
	r.used = now
	age := now.Sub(r.list.Read)
	need := r.least
	switch {
	case r.list.Read.IsZero():
		need = max(need, r.ended+1)
	case age >= rosterMost:
		need = max(need, r.begun+1) // one that is under way may be of any age
	}
	if r.ended < need {
		r.mu.Unlock()
		return r.await(ctx, need, now)
	}
	if age >= RosterEvery {
		r.read(ctx, now)
	}
	list := r.list
	r.mu.Unlock()
	return list, nil
}

// Fresh gives a list whose read began after the call, or an older one where the store fails.
func (r *Roster) Fresh(ctx context.Context, now time.Time) (List, error) {
	r.mu.Lock()
	r.used = now
	need := r.begun + 1
	r.mu.Unlock()
	return r.await(ctx, need, now)
}

// Check reports whether the store answers to a read that begins now.
func (r *Roster) Check(ctx context.Context, now time.Time) (List, error) {
	list, err := r.Fresh(ctx, now)
	if err != nil {
		return list, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return list, r.err
}

// Forget has the next list be read anew: somebody has just decided something about a node.
func (r *Roster) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.least = r.begun + 1
}

// await returns once read number need has ended.
func (r *Roster) await(ctx context.Context, need uint64, now time.Time) (List, error) {
	for {
		r.mu.Lock()
		if r.ended >= need {
			defer r.mu.Unlock()
			if r.list.Read.IsZero() {
				return r.list, r.err
			}
			return r.list, nil
		}
		r.read(ctx, now)
		reading := r.reading
		r.mu.Unlock()
		select {
		case <-reading:
		case <-ctx.Done():
			return List{}, ctx.Err()
		}
	}
}

// read begins a read unless one is under way. It goes on when ctx ends, because others wait for it too. The lock is held.
func (r *Roster) read(ctx context.Context, now time.Time) {
	if r.reading != nil {
		return
	}
	r.begun++
	done := make(chan struct{})
	r.reading = done
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rosterRead)
		defer cancel()
		nodes, err := r.registry.Nodes(ctx)
		list := List{nodes, now}
		if err == nil {
			for _, f := range r.tell {
				f(list)
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended, r.err, r.reading = r.begun, err, nil
		if err == nil {
			r.list = list
		}
		close(done)
	}()
}
