// Package olympustest is a node for tests of the control plane and the edge: it leases jobs, reports, keeps time and forwards to
// listeners on loopback that stand for a guest's ports. It runs nothing, and it is never part of a product.
package olympustest

import (
	"context"
	"encoding/json"
	"hash/fnv"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
)

// Node is an agent without machines. Set its fields before Run.
type Node struct {
	Self     hades.Node
	Registry hades.Registry
	Queue    acheron.Queue
	// Start is called for each create; an error fails the job, and it may take its time. Nil starts everything at once.
	Start func(ctx context.Context, spec tartarus.Spec) error
	// Hands is how many jobs are worked on at once. 0 is 64.
	Hands int

	mu    sync.Mutex
	held  map[string]tartarus.Sandbox
	snaps []kept
	lost  map[string]bool // whose agent does not answer
	// evidence of those that were quarantined
	evidence map[string]tartarus.Evidence
	first    time.Time      // no deadline is before it
	ports    map[int]string // guest port to an address on loopback
	logs     map[string][]tartarus.LogEntry
	data     map[string][]tartarus.Sample

	// told makes changes of one sandbox known in the order in which they happened.
	told [64]sync.Mutex
}

// NewNode makes a node with one runtime and room for everything.
func NewNode(name string, registry hades.Registry, queue acheron.Queue) *Node {
	return &Node{
		Self:     hades.Node{Name: name, Runtimes: map[string]hades.Runtime{"fake": {Tier: tartarus.TierNone}}, Version: "test"},
		Registry: registry, Queue: queue,
		held: map[string]tartarus.Sandbox{}, ports: map[int]string{}, logs: map[string][]tartarus.LogEntry{}, data: map[string][]tartarus.Sample{},
	}
}

// Register tells the registry that the node lives, for a minute: longer than a test.
func (n *Node) Register(ctx context.Context) error {
	return n.Registry.PutNode(ctx, n.Self, time.Minute)
}

// Run takes work and keeps time until ctx ends.
func (n *Node) Run(ctx context.Context) error {
	hands := n.Hands
	if hands == 0 {
		hands = 64
	}
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { n.keepTime(ctx) })
	free := make(chan struct{}, hands)
	for {
		leases, err := n.Queue.Lease(ctx, n.Self.Name, hands, 15*time.Second)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		for _, l := range leases {
			free <- struct{}{}
			group.Go(func() {
				defer func() { <-free }()
				n.work(context.WithoutCancel(ctx), l)
			})
		}
	}
}

func (n *Node) work(ctx context.Context, l acheron.Lease) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var spec tartarus.Spec
	err := json.Unmarshal(l.Job.Payload, &spec)
	if err == nil && l.Job.Kind == acheron.Resume {
		n.unpause(ctx, l, spec)
		return
	}
	if err == nil && spec.SnapshotID != "" {
		err = n.has(spec.SnapshotID)
	}
	if err == nil && n.Start != nil {
		err = n.Start(ctx, spec)
	}
	if err != nil {
		_ = n.Queue.Fail(ctx, l, acheron.Reason(err), false)
		return
	}
	now := time.Now()
	sb := tartarus.Sandbox{
		Spec: spec, Node: n.Self.Name, Phase: tartarus.Running, Driver: "fake", Tier: tartarus.TierNone,
		CreatedAt: l.Job.EnqueuedAt, StartedAt: now, Deadline: now.Add(spec.Timeout), Revision: 1,
	}
	n.tell(sb.ID, func() {
		n.mu.Lock()
		n.keep(sb)
		n.mu.Unlock()
		n.report(ctx, sb)
	})
	body, _ := json.Marshal(sb)
	if err := n.Queue.Complete(ctx, l, body); err != nil {
		_ = n.Stop(ctx, sb.ID, tartarus.ReasonUser) // nobody waits for it any more
	}
}

// unpause brings a paused sandbox back.
func (n *Node) unpause(ctx context.Context, l acheron.Lease, spec tartarus.Spec) {
	sb, err := n.change(ctx, spec.ID, func(sb *tartarus.Sandbox) {
		if sb.Phase == tartarus.Paused {
			sb.Phase, sb.Deadline, sb.DiskOnly, sb.AgentLost = tartarus.Running, time.Now().Add(spec.Timeout), false, false
			delete(n.lost, spec.ID)
		}
	})
	if err != nil {
		_ = n.Queue.Fail(ctx, l, acheron.Reason(err), false)
		return
	}
	body, _ := json.Marshal(sb)
	_ = n.Queue.Complete(ctx, l, body)
}

// Pause implements olympus.Pauser.
func (n *Node) Pause(ctx context.Context, id string, how tartarus.PauseHow) (tartarus.Sandbox, error) {
	n.mu.Lock()
	lost := n.lost[id]
	n.mu.Unlock()
	if lost && (how.Healthy || how.Disk) {
		return tartarus.Sandbox{}, tartarus.Errorf(tartarus.Unavailable, "the agent of sandbox %s does not answer", id)
	}
	return n.change(ctx, id, func(sb *tartarus.Sandbox) {
		sb.Phase, sb.Deadline, sb.DiskOnly, sb.AgentLost = tartarus.Paused, time.Now().Add(time.Hour), how.Disk, lost
	})
}

// Quarantine implements olympus.Quarantiner.
func (n *Node) Quarantine(ctx context.Context, id string, q tartarus.Quarantine) (tartarus.Sandbox, error) {
	q.Since = time.Now()
	sb, err := n.change(ctx, id, func(sb *tartarus.Sandbox) {
		q.Paused = sb.Phase == tartarus.Paused
		sb.Phase, sb.Quarantine = tartarus.Quarantined, &q
	})
	if err == nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.evidence == nil {
			n.evidence = map[string]tartarus.Evidence{}
		}
		n.evidence[id] = tartarus.Evidence{TakenAt: q.Since}
	}
	return sb, err
}

// Release implements olympus.Quarantiner.
func (n *Node) Release(ctx context.Context, id string) (tartarus.Sandbox, error) {
	return n.change(ctx, id, func(sb *tartarus.Sandbox) {
		if sb.Phase = tartarus.Running; sb.Quarantine != nil && sb.Quarantine.Paused {
			sb.Phase = tartarus.Paused
		}
		sb.Quarantine = nil
	})
}

// Examine implements olympus.Quarantiner.
func (n *Node) Examine(_ context.Context, id string) (tartarus.Inspection, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if sb, ok := n.held[id]; !ok || sb.Phase != tartarus.Quarantined {
		return tartarus.Inspection{}, tartarus.Errorf(tartarus.Conflict, "sandbox %s is not quarantined", id)
	}
	return tartarus.Inspection{}, nil
}

// Evidence implements olympus.Quarantiner.
func (n *Node) Evidence(_ context.Context, id string) (tartarus.Evidence, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e, ok := n.evidence[id]
	if !ok {
		return e, tartarus.Errorf(tartarus.NotFound, "there is no evidence of sandbox %s", id)
	}
	return e, nil
}

// LoseAgent has the guest agent of a sandbox stop answering, until it is rebooted.
func (n *Node) LoseAgent(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lost == nil {
		n.lost = map[string]bool{}
	}
	n.lost[id] = true
}

// tell runs f, which changes a sandbox and reports it, when no other does the same.
func (n *Node) tell(id string, f func()) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	mu := &n.told[h.Sum32()%uint32(len(n.told))]
	mu.Lock()
	defer mu.Unlock()
	f()
}

// report writes sb over whatever the registry has.
func (n *Node) report(ctx context.Context, sb tartarus.Sandbox) {
	for range 8 {
		if _, err := n.Registry.PutSandbox(ctx, sb); !tartarus.Is(err, tartarus.Conflict) {
			return
		}
		stored, err := n.Registry.Sandbox(ctx, hades.AnyTenant, sb.ID)
		sb.Revision = stored.Revision
		if err != nil {
			sb.Revision = 0
		}
	}
}

func (n *Node) keepTime(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, id := range n.due(now) {
				_ = n.Stop(context.WithoutCancel(ctx), id, tartarus.ReasonTimeout)
			}
		}
	}
}

// due lists whose time is up. It looks at all of them only when the first one's is.
func (n *Node) due(now time.Time) (ids []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now.Before(n.first) {
		return nil
	}
	n.first = now.Add(time.Hour)
	for id, sb := range n.held {
		if !now.Before(sb.Deadline) {
			ids = append(ids, id)
		} else if sb.Deadline.Before(n.first) {
			n.first = sb.Deadline
		}
	}
	return ids
}

// keep notes a sandbox as held. The caller has the lock.
func (n *Node) keep(sb tartarus.Sandbox) {
	n.held[sb.ID] = sb
	if sb.Deadline.Before(n.first) {
		n.first = sb.Deadline
	}
}

// Held lists what the node has.
func (n *Node) Held() []tartarus.Sandbox {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Values(n.held))
}

// Forward makes a guest port of every sandbox lead to an address.
func (n *Node) Forward(port int, addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports[port] = addr
}

// Log adds to a sandbox's log.
func (n *Node) Log(id string, entries ...tartarus.LogEntry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.logs[id] = append(n.logs[id], entries...)
}

// Measure adds to a sandbox's measurements.
func (n *Node) Measure(id string, samples ...tartarus.Sample) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.data[id] = append(n.data[id], samples...)
}

func (n *Node) change(ctx context.Context, id string, f func(*tartarus.Sandbox)) (sb tartarus.Sandbox, err error) {
	n.tell(id, func() {
		n.mu.Lock()
		var ok bool
		if sb, ok = n.held[id]; ok {
			f(&sb)
			n.keep(sb)
		}
		n.mu.Unlock()
		if !ok {
			err = tartarus.Errorf(tartarus.NotFound, "sandbox %s is not here", id)
			return
		}
		n.report(ctx, sb)
	})
	return sb, err
}

// Stop implements olympus.Node.
func (n *Node) Stop(ctx context.Context, id string, reason tartarus.Reason) (err error) {
	n.tell(id, func() {
		n.mu.Lock()
		sb, ok := n.held[id]
		delete(n.held, id)
		n.mu.Unlock()
		if !ok {
			err = tartarus.Errorf(tartarus.NotFound, "sandbox %s is not here", id)
			return
		}
		sb.Phase, sb.Reason, sb.EndedAt = tartarus.Stopped, reason, time.Now()
		n.report(ctx, sb)
	})
	return err
}

// Terminate implements olympus.Terminator. Nothing takes time here, so that no termination is ever pending.
func (n *Node) Terminate(ctx context.Context, id string, t tartarus.Termination) error {
	return n.Stop(ctx, id, t.Reason)
}

// CancelTermination implements olympus.Terminator.
func (n *Node) CancelTermination(_ context.Context, id string) (tartarus.Sandbox, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	sb, ok := n.held[id]
	if !ok {
		return sb, tartarus.Errorf(tartarus.NotFound, "sandbox %s is not here", id)
	}
	return sb, tartarus.Errorf(tartarus.Conflict, "no termination of sandbox %s is pending", id)
}

// SetDeadline implements olympus.Node.
func (n *Node) SetDeadline(ctx context.Context, id string, deadline time.Time, extendOnly bool) (tartarus.Sandbox, error) {
	return n.change(ctx, id, func(sb *tartarus.Sandbox) {
		if !extendOnly || deadline.After(sb.Deadline) {
			sb.Deadline = deadline
		}
	})
}

// SetNetwork implements olympus.Node.
func (n *Node) SetNetwork(ctx context.Context, id string, network tartarus.Network) (tartarus.Sandbox, error) {
	return n.change(ctx, id, func(sb *tartarus.Sandbox) { sb.Network = network })
}

// Dial implements olympus.Node. A connection outlives its sandbox, as one into a network namespace that vanished does: whoever holds
// it must notice by other means.
func (n *Node) Dial(ctx context.Context, id string, port int) (net.Conn, error) {
	n.mu.Lock()
	_, ok := n.held[id]
	addr, open := n.ports[port]
	n.mu.Unlock()
	switch {
	case !ok:
		return nil, tartarus.Errorf(tartarus.GuestGone, "sandbox %s does not run here", id)
	case !open:
		return nil, tartarus.Errorf(tartarus.PortClosed, "nobody listens on port %d of sandbox %s", port, id)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

// Logs implements olympus.Node.
func (n *Node) Logs(_ context.Context, id string, q tartarus.LogQuery) ([]tartarus.LogEntry, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := []tartarus.LogEntry{}
	for _, e := range n.logs[id] {
		late := q.Cursor.IsZero() || !e.Time.Before(q.Cursor)
		if q.Descending {
			late = q.Cursor.IsZero() || !e.Time.After(q.Cursor)
		}
		if late && strings.Contains(e.Message, q.Search) && (q.Level == "" || q.Level == e.Level) {
			out = append(out, e)
		}
	}
	if q.Descending {
		slices.Reverse(out)
	}
	return out[:min(len(out), q.Limit)], nil
}

// Samples implements olympus.Node.
func (n *Node) Samples(_ context.Context, id string, start, end time.Time) ([]tartarus.Sample, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.held[id]; !ok {
		return nil, tartarus.Errorf(tartarus.NotFound, "sandbox %s is not here", id)
	}
	out := []tartarus.Sample{}
	for _, m := range n.data[id] {
		if (start.IsZero() || !m.Time.Before(start)) && (end.IsZero() || !m.Time.After(end)) {
			out = append(out, m)
		}
	}
	return out, nil
}

// Fleet is a set of nodes by name. One that is missing cannot be reached.
type Fleet map[string]*Node

// Node implements olympus.Fleet.
func (f Fleet) Node(_ context.Context, name string) (olympus.Node, error) {
	if n, ok := f[name]; ok {
		return n, nil
	}
	return nil, tartarus.Errorf(tartarus.Unavailable, "node %s cannot be reached", name)
}

// Templates is a fixed set by name.
type Templates map[string]olympus.Template

// Resolve implements olympus.Templates; the empty reference is base.
func (t Templates) Resolve(_ context.Context, _, ref string) (olympus.Template, error) {
	if ref == "" {
		ref = "base"
	}
	for name, tpl := range t {
		if name == ref || tpl.ID == ref {
			return tpl, nil
		}
	}
	return olympus.Template{}, tartarus.Errorf(tartarus.NotFound, "template %q not found", ref)
}

// Version implements olympus.Templates.
func (t Templates) Version(_ context.Context, id, build string) (olympus.Template, error) {
	for _, tpl := range t {
		if tpl.ID == id && tpl.BuildID == build {
			return tpl, nil
		}
	}
	return olympus.Template{}, tartarus.Errorf(tartarus.NotFound, "template %s has no version %s", id, build)
}

// List implements olympus.Templates.
func (t Templates) List(context.Context, string) ([]olympus.Template, error) {
	out := []olympus.Template{}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		out = append(out, t[name])
	}
	return out, nil
}
