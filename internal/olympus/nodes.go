package olympus

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"time"

	"github.com/go-chi/chi/v5"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// node finds the node that a path names.
func (s *Server) node(r *http.Request) (hades.Node, error) {
	name := chi.URLParam(r, "node")
	if !nodeForm.MatchString(name) {
		return hades.Node{}, tartarus.Errorf(tartarus.NotFound, "there is no node %.70q", name)
	}
	nodes, err := s.cfg.Registry.Nodes(r.Context())
	if err != nil {
		return hades.Node{}, err
	}
	for _, n := range nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return hades.Node{}, tartarus.Errorf(tartarus.NotFound, "there is no node %q", name)
}

// getNode shows one node.
func (s *Server) getNode(w http.ResponseWriter, r *http.Request, who caller) error {
	n, err := s.node(r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, answerNode(n, who.now))
	return nil
}

var errNoMarks = &tartarus.Error{Kind: tartarus.Unsupported, Message: "this server keeps no decisions about nodes"}

// cordonNode lets a node take nothing new.
func (s *Server) cordonNode(w http.ResponseWriter, r *http.Request, _ caller) error {
	return s.setCordon(w, r, true)
}

// uncordonNode lets a node take work again.
func (s *Server) uncordonNode(w http.ResponseWriter, r *http.Request, _ caller) error {
	return s.setCordon(w, r, false)
}

func (s *Server) setCordon(w http.ResponseWriter, r *http.Request, on bool) error {
	n, err := s.node(r)
	if err != nil {
		return err
	}
	if err := s.cordon(r.Context(), n.Name, on); err != nil {
		return err
	}
	noContent(w)
	return nil
}

func (s *Server) cordon(ctx context.Context, node string, on bool) error {
	if s.cfg.Marks == nil {
		return errNoMarks
	}
	if err := s.cfg.Marks.Cordon(ctx, node, on); err != nil {
		return err
	}
	s.roster.Forget()
	return nil
}

// The form of labels: what Kubernetes allows, so that the same names serve in both places.
var (
	labelName  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,125}[A-Za-z0-9])?$`)
	labelValue = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$`)
)

// maxLabels bounds the labels of one change.
const maxLabels = 64

// labelNode sets labels of a node and takes others away.
func (s *Server) labelNode(w http.ResponseWriter, r *http.Request, _ caller) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.LabelsChange
	if err := decode(raw, &in, true); err != nil {
		return err
	}
	if len(in) > maxLabels {
		return tartarus.Errorf(tartarus.Invalid, "at most %d labels can be changed at once", maxLabels)
	}
	set := map[string]string{}
	var remove []string
	for name, value := range in {
		switch {
		case !labelName.MatchString(name):
			return tartarus.Errorf(tartarus.Invalid, "label %.130q must be letters, digits and ./_- between them", name)
		case value == nil:
			remove = append(remove, name)
		case !labelValue.MatchString(*value):
			return tartarus.Errorf(tartarus.Invalid, "value %.70q of label %s must be letters, digits and ._- between them, at most 63", *value, name)
		default:
			set[name] = *value
		}
	}
	n, err := s.node(r)
	if err != nil {
		return err
	}
	if s.cfg.Marks == nil {
		return errNoMarks
	}
	if err := s.cfg.Marks.Label(r.Context(), n.Name, set, remove); err != nil {
		return err
	}
	s.roster.Forget()
	noContent(w)
	return nil
}

// removeNode takes a node out of the fleet. What it holds counts as lost; its certificate is refused from now on. What is paused there can come back
// elsewhere for as long as the node is registered, and is given up only by whoever says so.
func (s *Server) removeNode(w http.ResponseWriter, r *http.Request, who caller) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	lose, err := truth(q, "lose")
	if err != nil {
		return err
	}
	n, err := s.node(r)
	if err != nil {
		return err
	}
	if s.cfg.Joins == nil {
		return errWhole
	}
	if n.Live(who.now) && !n.Cordoned {
		return tartarus.Errorf(tartarus.Conflict, "node %s lives and takes work: drain it first (`tartarus node drain %s`)", n.Name, n.Name)
	}
	if !lose {
		if err := s.nonePaused(r.Context(), n.Name); err != nil {
			return err
		}
	}
	if err := s.cfg.Joins.Ban(r.Context(), n.Name); err != nil {
		return err
	}
	if err := s.cfg.Registry.RemoveNode(r.Context(), n.Name); err != nil {
		return err
	}
	// Under this name another machine may join, which starts as any other.
	if err := s.cordon(r.Context(), n.Name, false); err != nil {
		return err
	}
	if err := s.loseNode(r.Context(), n.Name, "its node "+n.Name+" was removed", who.now, true); err != nil {
		return err
	}
	s.log.Warn("node removed", "node", n.Name, "key", who.key.ID)
	noContent(w)
	return nil
}

// nonePaused refuses when sandboxes are paused on a node, which would be lost with it.
func (s *Server) nonePaused(ctx context.Context, node string) error {
	page, err := s.cfg.Registry.ListSandboxes(ctx, hades.Query{
		Tenant: hades.AnyTenant, Node: node, Phases: []tartarus.Phase{tartarus.Paused}, Ascending: true, Limit: hades.MaxLimit,
	})
	if err != nil || len(page.Sandboxes) == 0 {
		return err
	}
	count := fmt.Sprint(len(page.Sandboxes))
	if page.Next != (hades.Cursor{}) {
		count = "more than " + count
	}
	return tartarus.Errorf(tartarus.Conflict, "node %s has paused sandboxes (%s); `tartarus node drain %s` takes those to other nodes that the object store has, also when the node "+
		"is gone, and says which it has not; `tartarus node rm --lose %s` gives up what is left", node, count, node, node)
}

// live are the phases of what a node still holds.
var live = []tartarus.Phase{
	tartarus.Queued, tartarus.Starting, tartarus.Running, tartarus.Pausing, tartarus.Paused, tartarus.Snapshotting, tartarus.Quarantined, tartarus.Stopping,
}

// drainNode is one step of emptying a node: it takes nothing new, and what is left is told, or ended. It keeps nothing: whoever drains
// asks again until nothing is left.
func (s *Server) drainNode(w http.ResponseWriter, r *http.Request, who caller) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.DrainRequest
	if err := decodeOptional(raw, &in, true); err != nil {
		return err
	}
	n, err := s.node(r)
	if err != nil {
		return err
	}
	if err := s.cordon(r.Context(), n.Name, true); err != nil {
		return err
	}
	out := api.Drain{Node: n.Name, Left: []api.DrainSandbox{}}
	page, err := s.cfg.Registry.ListSandboxes(r.Context(), hades.Query{Tenant: hades.AnyTenant, Node: n.Name, Phases: live, Ascending: true, Limit: hades.MaxLimit})
	if err != nil {
		return err
	}
	ended := make([]bool, len(page.Sandboxes))
	stayed := make([]error, len(page.Sandboxes))
	if in.Move {
		stayed = s.moveAll(r, page.Sandboxes, s.lost(n, who.now))
	}
	if in.End {
		if ended, err = s.endAllDrained(r, page.Sandboxes); err != nil {
			return err
		}
	}
	for i, sb := range page.Sandboxes {
		switch {
		case ended[i]:
			out.Ended++
			continue
		case in.Move && stayed[i] == nil:
			out.Moved++
			continue
		}
		left := api.DrainSandbox{SandboxID: sb.ID, Tenant: sb.Tenant, Phase: string(sb.Phase)}
		if !sb.Deadline.IsZero() {
			ends := sb.Deadline.UTC()
			left.EndAt = &ends
		}
		if stayed[i] != nil {
			left.Why = stayed[i].Error()
		}
		out.Left = append(out.Left, left)
	}
	s.log.Info("node drains", "node", n.Name, "key", who.key.ID, "left", len(out.Left), "ended", out.Ended)
	writeJSON(w, http.StatusOK, out)
	return nil
}

// A step of a drain takes so long at most, so that the answer comes before anybody's patience ends; what is being ended then goes on ending. Each
// sandbox has its grace, and they have it side by side.
const (
	drainStep   = 20 * time.Second
	drainAtOnce = 32
)

// endAllDrained ends sandboxes and says which are gone.
func (s *Server) endAllDrained(r *http.Request, all []tartarus.Sandbox) (ended []bool, err error) {
	ctx, cancel := context.WithTimeout(r.Context(), drainStep)
	defer cancel()
	ended = make([]bool, len(all))
	var g errgroup.Group
	g.SetLimit(drainAtOnce)
	for i, sb := range all {
		g.Go(func() error {
			err := s.endDrained(ctx, r, sb)
			if ended[i] = err == nil; err != nil && ctx.Err() == nil {
				s.log.Warn("sandbox of a drained node not ended", "sandbox", sb.ID, "tenant", sb.Tenant, "node", sb.Node, "error", err)
			}
			return nil
		})
	}
	_ = g.Wait()
	return ended, r.Context().Err()
}

// endDrained ends a sandbox because its node is emptied, with the grace that the sandbox, its template or the node gives.
func (s *Server) endDrained(ctx context.Context, r *http.Request, sb tartarus.Sandbox) error {
	if sb.Phase == tartarus.Queued {
		return s.cfg.Queue.Cancel(ctx, sb.ID)
	}
	node, err := s.onNode(r, sb)
	if err != nil {
		return err
	}
	err = terminate(ctx, node, sb.ID, tartarus.Termination{Reason: tartarus.ReasonDrained, Message: "its node is emptied"})
	if err != nil && !tartarus.Is(err, tartarus.NotFound) {
		return err
	}
	return nil
}

func answerNode(n hades.Node, now time.Time) api.Node {
	labels := n.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	runtimes := make(map[string]api.Runtime, len(n.Runtimes))
	for name, rt := range n.Runtimes {
		runtimes[name] = api.Runtime{Tier: string(rt.Tier), Version: rt.Version}
	}
	return api.Node{
		Name: n.Name, Status: nodeStatus(n.Live(now), n.Cordoned), Labels: labels, Runtimes: runtimes,
		Capacity: resources(n.Capacity), Allocated: resources(n.Allocated), Sandboxes: n.Sandboxes,
		CPUModel: n.CPUModel, Version: n.Version, LeaseEnds: n.LeaseEnds.UTC(),
	}
}
