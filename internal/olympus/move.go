package olympus

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// Mover is a Node whose sandboxes can go on elsewhere.
type Mover interface {
	// Evict pauses a sandbox if it runs and sees that the object store has all of it. It stays the node's.
	Evict(ctx context.Context, id string) (tartarus.Move, error)
	// Holds reports whether the node has a sandbox.
	Holds(ctx context.Context, id string) (bool, error)
	// Leave gives up a paused sandbox that is another node's by now.
	Leave(ctx context.Context, id string) error
}

const (
	// moveTime bounds moving one sandbox: its memory goes to the object store and back.
	moveTime = 5 * time.Minute
	// movesAtOnce is how many of a node are moved side by side: each is bound by the node's disk and network.
	movesAtOnce = 4
)

// lost reports whether a node has been silent for so long that what it runs counts as lost.
func (s *Server) lost(n hades.Node, now time.Time) bool {
	return now.Sub(n.LeaseEnds) >= s.cfg.NodeLost
}

// moveAll moves the sandboxes of a node to others and says of each why it was not moved. Of a lost node, what is paused is moved from its copy.
func (s *Server) moveAll(r *http.Request, all []tartarus.Sandbox, lost bool) []error {
	move := s.move
	if lost {
		move = s.rescue
	}
	errs := make([]error, len(all))
	var g errgroup.Group
	g.SetLimit(movesAtOnce)
	for i, sb := range all {
		g.Go(func() error {
			if _, errs[i] = move(r.Context(), sb); errs[i] != nil {
				s.log.Warn("sandbox not moved", "sandbox", sb.ID, "tenant", sb.Tenant, "node", sb.Node, "error", errs[i])
			}
			return nil
		})
	}
	_ = g.Wait()
	return errs
}

// move brings a sandbox to another node of the same kind. Whatever fails on the way, one node has all of it: the old one until the registry says
// otherwise, and that one takes it back when the new one did not get it.
func (s *Server) move(ctx context.Context, sb tartarus.Sandbox) (moved tartarus.Sandbox, err error) {
	if sb.Phase != tartarus.Running && sb.Phase != tartarus.Paused {
		return sb, tartarus.Errorf(tartarus.Conflict, "it is %s: it can be moved while it runs or is paused", sb.Phase)
	}
	// Once begun it is finished or undone, whether or not the caller waits.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), moveTime)
	defer cancel()
	to, err := s.elsewhere(ctx, sb)
	if err != nil {
		return sb, err
	}
	at, err := s.cfg.Fleet.Node(ctx, sb.Node)
	if err != nil {
		return sb, err
	}
	from, ok := at.(Mover)
	if !ok {
		return sb, unsupported("moving")
	}
	m, err := from.Evict(ctx, sb.ID)
	if err != nil {
		return sb, err
	}
	if moved, err = s.handOver(ctx, m, sb.Node, to); err != nil {
		return sb, err
	}
	s.cfg.Changed(moved)
	return moved, from.Leave(ctx, sb.ID)
}

// ashore takes a paused sandbox that is wanted to another node, if its own takes nothing new, or counts as lost and the object store has all of the
// sandbox. It is returned as it then stands. On a cordoned node it comes back where it is if it cannot be moved; from a lost one it cannot.
func (s *Server) ashore(ctx context.Context, sb tartarus.Sandbox) (tartarus.Sandbox, error) {
	now := time.Now()
	n, known := s.placer.node(ctx, sb.Node, now, s.roster.List)
	if known && s.lost(n, now) { // unless it has just come back
		n, known = s.placer.node(ctx, sb.Node, now, s.roster.Fresh)
	}
	switch {
	case !known || sb.Hibernated():
		return sb, nil
	case n.Cordoned && n.Live(now):
		moved, err := s.move(ctx, sb)
		if err == nil {
			return moved, nil
		}
		s.log.Info("sandbox comes back on a cordoned node", "sandbox", sb.ID, "tenant", sb.Tenant, "node", sb.Node, "error", err)
		if stored, err := s.cfg.Registry.Sandbox(ctx, sb.Tenant, sb.ID); err == nil && stored.Phase == tartarus.Paused {
			return stored, nil // perhaps it got there after all
		}
		return sb, nil
	case !s.lost(n, now):
		return sb, nil
	}
	moved, err := s.rescue(ctx, sb)
	if err != nil {
		e := tartarus.Errorf(tartarus.Unavailable, "node %s, which has sandbox %s, stopped answering, and it cannot be brought back elsewhere: %w", sb.Node, sb.ID, err)
		e.RetryAfter = 10 * time.Second
		return sb, e
	}
	s.log.Warn("sandbox brought back from a lost node", "sandbox", sb.ID, "tenant", sb.Tenant, "node", sb.Node, "to", moved.Node)
	return moved, nil
}

// rescue gives a paused sandbox of a lost node to another one, which gets it from the object store. When the lost node returns, it learns that the sandbox
// is not its own any more, and leaves its copy.
func (s *Server) rescue(ctx context.Context, sb tartarus.Sandbox) (tartarus.Sandbox, error) {
	if sb.Phase != tartarus.Paused {
		return sb, tartarus.Errorf(tartarus.Conflict, "it is %s on a node that stopped answering: it can be brought back elsewhere if it was paused there", sb.Phase)
	}
	if sb.Saved == "" {
		return sb, tartarus.Errorf(tartarus.Unsupported, "its node was too old to say what it was saved as")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), moveTime)
	defer cancel()
	to, err := s.elsewhere(ctx, sb)
	if err != nil {
		return sb, err
	}
	moved, err := s.handOver(ctx, tartarus.Move{Sandbox: sb, Snapshot: sb.Saved}, sb.Node, to)
	if err == nil {
		s.cfg.Changed(moved)
	}
	return moved, err
}

// elsewhere picks the node that a sandbox is moved to: another one with its runtime and its model of processor.
func (s *Server) elsewhere(ctx context.Context, sb tartarus.Sandbox) (node string, err error) {
	nodes, err := s.cfg.Registry.Nodes(ctx)
	if err != nil {
		return "", err // another processor's memory image must not be tried for want of an answer
	}
	i := slices.IndexFunc(nodes, func(n hades.Node) bool { return n.Name == sb.Node })
	if i < 0 {
		return "", tartarus.Errorf(tartarus.Unavailable, "node %s is not registered: the model of its processor is not known", sb.Node)
	}
	w := want(sb.Spec, "")
	w.Runtime, w.Apart, w.CPU = sb.Driver, sb.Node, nodes[i].CPUModel
	to, err := s.placer.place(ctx, w, time.Now())
	if err != nil {
		return "", err
	}
	if to.Node == sb.Node {
		return "", tartarus.Errorf(tartarus.Unavailable, "no other node takes it")
	}
	return to.Node, nil
}

// handOver makes an evicted sandbox the new node's: first in the registry, so that no two nodes have it, then there.
func (s *Server) handOver(ctx context.Context, m tartarus.Move, from, to string) (tartarus.Sandbox, error) {
	sb, err := s.assign(ctx, m.Sandbox, to)
	if err != nil {
		return sb, err
	}
	m.Sandbox = sb
	payload, err := json.Marshal(tartarus.Resume{ID: sb.ID, Tenant: sb.Tenant, Timeout: m.Timeout, Move: &m})
	if err == nil {
		var job acheron.Job
		job, err = s.cfg.Queue.Enqueue(ctx, acheron.Job{
			ID: tartarus.NewID(), Tenant: sb.Tenant, Node: to, Kind: acheron.Resume, Payload: payload,
			MaxAttempts: createAttempts, Deadline: time.Now().Add(s.cfg.CreateTime),
		})
		if err == nil {
			var there tartarus.Sandbox
			if there, err = s.arrive(ctx, job, nil, nil); err == nil {
				return there, nil
			}
		}
	}
	// Whether the new node got it, it knows best: one that did keeps it, paused. While it does not say, the sandbox stays assigned to it: the old
	// node has it all the same, and its operator can drain again.
	if got, asked := s.holds(ctx, to, sb.ID); asked != nil || got {
		return sb, errors.Join(err, asked)
	}
	_, back := s.assign(ctx, sb, from)
	return sb, errors.Join(err, back)
}

func (s *Server) holds(ctx context.Context, name, id string) (bool, error) {
	node, err := s.cfg.Fleet.Node(ctx, name)
	if err != nil {
		return false, err
	}
	m, ok := node.(Mover)
	if !ok {
		return false, unsupported("moving")
	}
	return m.Holds(ctx, id)
}

// assign makes a paused sandbox a node's in the registry.
func (s *Server) assign(ctx context.Context, sb tartarus.Sandbox, node string) (tartarus.Sandbox, error) {
	for try := 0; ; try++ {
		stored, err := s.cfg.Registry.Sandbox(ctx, hades.AnyTenant, sb.ID)
		if err != nil {
			return sb, err
		}
		next := sb
		next.Revision, next.Node = stored.Revision, node
		revision, err := s.cfg.Registry.PutSandbox(ctx, next)
		if err == nil {
			next.Revision = revision
			return next, nil
		}
		if !tartarus.Is(err, tartarus.Conflict) || try == assignTries {
			return sb, err
		}
	}
}

// assignTries bounds the race with the node's own reports.
const assignTries = 8
