package link

import (
	"context"
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/typhon"
)

// callTime bounds a call that is no long poll.
const callTime = 10 * time.Second

// patience is how long a call waits for a session when there is none.
const patience = 2 * time.Second

var errNoReplica = &tartarus.Error{Kind: tartarus.Unavailable, Message: "no replica of the control plane can be reached"}

// pick returns the sessions there are, another one first each time.
func (u *Uplink) pick() (all []*session, changed <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := len(u.sessions)
	for i := range n {
		all = append(all, u.sessions[(u.turn+i)%n])
	}
	u.turn++
	return all, u.changed
}

// ask calls a replica. All calls may be repeated, so one whose replica went away goes to the next.
func (u *Uplink) ask(ctx context.Context, name string, in, out any) error {
	all, changed := u.pick()
	if len(all) == 0 {
		select {
		case <-changed:
			all, _ = u.pick()
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(patience):
		}
	}
	err := error(errNoReplica)
	for _, s := range all {
		err = call(ctx, s.client, name, in, out)
		if err == nil || ctx.Err() != nil || s.alive() {
			return err
		}
	}
	return err
}

// brief is ask for everything that is answered at once.
func (u *Uplink) brief(ctx context.Context, name string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return u.ask(ctx, name, in, out)
}

// Lease implements hecatoncheir.Control. A poll that found nothing is repeated; what a lease has left is counted from its being handed out,
// the time on the way included.
func (u *Uplink) Lease(ctx context.Context, _ string, max int, ttl time.Duration) ([]acheron.Lease, error) {
	for {
		var out leaseAnswer
		began := time.Now()
		poll, cancel := context.WithTimeout(ctx, leasePoll+callTime)
		err := u.ask(poll, "lease", leaseArgs{max, ttl}, &out)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			return nil, err
		case len(out.Leases) == 0:
			continue
		case len(out.Left) != len(out.Leases):
			return nil, tartarus.Errorf(tartarus.Internal, "a replica answered %d leases with %d spans", len(out.Leases), len(out.Left))
		}
		now := time.Now()
		onTheWay := now.Sub(began) - out.Waited
		for i := range out.Leases {
			out.Leases[i].Until = now.Add(out.Left[i] - onTheWay)
		}
		return out.Leases, nil
	}
}

// shown is what a replica needs to see of a lease.
func shown(l acheron.Lease) acheron.Lease {
	l.Job.Payload, l.Job.Result = nil, nil
	return l
}

// Renew implements hecatoncheir.Control.
func (u *Uplink) Renew(ctx context.Context, l acheron.Lease, ttl time.Duration) error {
	return u.brief(ctx, "renew", renewArgs{shown(l), ttl}, nil)
}

// Complete implements hecatoncheir.Control.
func (u *Uplink) Complete(ctx context.Context, l acheron.Lease, result []byte) error {
	return u.brief(ctx, "complete", completeArgs{shown(l), result}, nil)
}

// Fail implements hecatoncheir.Control.
func (u *Uplink) Fail(ctx context.Context, l acheron.Lease, reason string, retry bool) error {
	return u.brief(ctx, "fail", failArgs{shown(l), reason, retry}, nil)
}

// reportStep bounds the sandboxes of one report: 500 of 4 KB fill a quarter of what a call may carry.
const reportStep = 500

// Report implements hecatoncheir.Control.
func (u *Uplink) Report(ctx context.Context, sandboxes ...tartarus.Sandbox) error {
	for step := range slices.Chunk(sandboxes, reportStep) {
		var out reportAnswer
		if err := u.brief(ctx, "report", reportArgs{step}, &out); err != nil {
			return err
		}
		if len(out.Disowned) > 0 {
			u.mu.Lock()
			disown := u.disown
			u.mu.Unlock()
			if disown != nil {
				disown(out.Disowned)
			}
		}
	}
	return nil
}

// Heartbeat implements hecatoncheir.Control.
func (u *Uplink) Heartbeat(ctx context.Context, n hades.Node, ttl time.Duration) error {
	var out news
	if err := u.brief(ctx, "heartbeat", heartbeatArgs{n, ttl}, &out); err != nil {
		return err
	}
	u.hear(out)
	return nil
}

// Strike tells what a sandbox did, and asks why it has to go into quarantine for it; empty when it need not.
func (u *Uplink) Strike(ctx context.Context, s typhon.Strike) (quarantine string, err error) {
	var out strikeAnswer
	err = u.brief(ctx, "strike", strikeArgs{s}, &out)
	return out.Quarantine, err
}

// Fill asks what a header of a sandbox says, with secrets and tokens in the place of their placeholders. The answer is for one request, and kept nowhere.
func (u *Uplink) Fill(ctx context.Context, sandbox, value string) (string, error) {
	var out fillAnswer
	err := u.brief(ctx, "fill", fillArgs{sandbox, value}, &out)
	return out.Value, err
}

// hear takes in what a replica told. A registry under a new name knows nothing of what runs here.
func (u *Uplink) hear(n news) {
	u.mu.Lock()
	if len(n.Replicas) > 0 {
		u.named = n.Replicas
	}
	lost := n.Epoch != "" && u.epoch != "" && n.Epoch != u.epoch
	if n.Epoch != "" {
		u.epoch = n.Epoch
	}
	refill := u.refill
	u.mu.Unlock()
	if lost && refill != nil {
		u.log.Warn("the registry has lost what it knew; reporting all sandboxes again")
		refill()
	}
}
