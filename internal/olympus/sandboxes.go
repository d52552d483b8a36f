package olympus

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
)

// clientID fills a field that SDKs require and that has no meaning any more.
const clientID = "tartarus"

// pathID is the sandbox that a path names. Older clients append the client id to it.
func pathID(r *http.Request) string {
	id, _, _ := strings.Cut(chi.URLParam(r, "sandboxID"), "-")
	return id
}

func errNoSandbox(id string) error {
	return tartarus.Errorf(tartarus.NotFound, "sandbox %.40q not found", id)
}

// lookUp finds the sandbox of the caller's tenant that the path names.
func (s *Server) lookUp(r *http.Request, who caller) (tartarus.Sandbox, error) {
	id := pathID(r)
	if !tartarus.ValidID(id) {
		return tartarus.Sandbox{}, errNoSandbox(id)
	}
	sb, err := s.cfg.Registry.Sandbox(r.Context(), who.key.Tenant, id)
	if tartarus.Is(err, tartarus.NotFound) {
		return sb, errNoSandbox(id)
	}
	return sb, err
}

// present is lookUp for what has not ended.
func (s *Server) present(r *http.Request, who caller) (tartarus.Sandbox, error) {
	sb, err := s.lookUp(r, who)
	if err == nil && (sb.Phase.Ended() || sb.Phase == tartarus.Stopping) {
		return sb, tartarus.Errorf(tartarus.NotFound, "sandbox %s not found: it has ended (%s)", sb.ID, sb.Reason)
	}
	return sb, err
}

// onNode finds the agent that has a sandbox.
func (s *Server) onNode(r *http.Request, sb tartarus.Sandbox) (Node, error) {
	return s.cfg.Fleet.Node(r.Context(), sb.Node)
}

// detail describes one sandbox. One that has ended is only found by those who ask for it, because for SDKs an ended sandbox is none.
func (s *Server) detail(w http.ResponseWriter, r *http.Request, who caller) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	ended, err := truth(q, "ended")
	if err != nil {
		return err
	}
	find := s.present
	if ended {
		find = s.lookUp
	}
	sb, err := find(r, who)
	if err != nil {
		return err
	}
	out := s.answerDetail(sb, who)
	if sb.Phase == tartarus.Queued {
		if j, err := s.cfg.Queue.Job(r.Context(), sb.ID); err == nil && j.State == acheron.Waiting {
			out.Message = strings.TrimPrefix(s.standing(r.Context(), sb.ID), ": it was ")
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// kill ends a sandbox and returns when it is gone. A client that goes does not stop it.
func (s *Server) kill(w http.ResponseWriter, r *http.Request, who caller) error {
	how, err := readTermination(r)
	if err != nil {
		return err
	}
	sb, err := s.present(r, who)
	if err != nil {
		return err
	}
	if sb.Phase == tartarus.Quarantined {
		return tartarus.Errorf(tartarus.Conflict, "sandbox %s is in quarantine; an operator releases or destroys it", sb.ID)
	}
	if sb.Phase == tartarus.Queued {
		// A node that has begun with it finds its lease gone, and undoes what it did.
		err := s.cfg.Queue.Cancel(r.Context(), sb.ID)
		if err == nil {
			s.ended(r, sb)
			noContent(w)
			return nil
		}
		if !tartarus.Is(err, tartarus.Conflict) && !tartarus.Is(err, tartarus.NotFound) {
			return err
		}
	}
	node, err := s.onNode(r, sb)
	if err != nil {
		return err
	}
	err = terminate(r.Context(), node, sb.ID, how)
	missing := tartarus.Is(err, tartarus.NotFound)
	if err != nil && !missing {
		return err
	}
	s.ended(r, sb)
	if missing {
		return errNoSandbox(sb.ID) // somebody was quicker
	}
	noContent(w)
	return nil
}

// ended writes the end of a sandbox into the registry without waiting for its node to do so, so that whoever killed it
// finds it gone. Where the node was quicker, or another replica, that stands.
func (s *Server) ended(r *http.Request, sb tartarus.Sandbox) {
	ctx, cancel := after(r.Context())
	defer cancel()
	for range registryTries {
		if sb.Phase != tartarus.Stopping {
			if err := sb.Transition(tartarus.Stopping, tartarus.ReasonUser, "somebody asked"); err != nil {
				return // it has ended by now
			}
		}
		_ = sb.Transition(tartarus.Stopped, "", "") // the table has this edge
		sb.EndedAt = time.Now()
		s.cfg.Changed(sb)
		_, err := s.cfg.Registry.PutSandbox(ctx, sb)
		if tartarus.Is(err, tartarus.Conflict) {
			sb, err = s.cfg.Registry.Sandbox(ctx, sb.Tenant, sb.ID)
			if err == nil {
				continue
			}
		}
		if err != nil && !tartarus.Is(err, tartarus.NotFound) {
			s.log.Warn("end not recorded", "sandbox", sb.ID, "tenant", sb.Tenant, "node", sb.Node, "error", err)
		}
		return
	}
}

// registryTries bounds the race with other writers of one sandbox; each lost round means that another one succeeded.
const registryTries = 4

func (s *Server) connectV1(w http.ResponseWriter, r *http.Request, who caller) error {
	return s.connect(w, r, who, v1)
}

func (s *Server) connectV2(w http.ResponseWriter, r *http.Request, who caller) error {
	return s.connect(w, r, who, v2)
}

// connect extends a sandbox's time and tells how to reach it.
func (s *Server) connect(w http.ResponseWriter, r *http.Request, who caller, v wireVersion) error {
	sb, d, reboot, err := s.readConnect(w, r, who, v)
	if err != nil {
		return err
	}
	if sb.Phase == tartarus.Paused {
		return s.answerResumed(w, r, who, sb, d, reboot)
	}
	if err := mustRun(sb); err != nil {
		return err
	}
	if err := who.act.begin(r.Context()); err != nil {
		return err
	}
	if sb, err = s.setDeadline(r, sb, who.now.Add(d), true); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, s.answerSandbox(sb, who))
	return nil
}

// readConnect reads what connect and resume are asked: which sandbox, how long it shall live, and whether one that is paused
// is booted from its disk alone.
func (s *Server) readConnect(w http.ResponseWriter, r *http.Request, who caller, v wireVersion) (sb tartarus.Sandbox, d time.Duration, reboot bool, err error) {
	raw, err := readBody(w, r)
	if err != nil {
		return sb, 0, false, err
	}
	var in api.ConnectRequest
	if err := decodeOptional(raw, &in, false); err != nil {
		return sb, 0, false, err
	}
	if d, err = s.lifetime(in.Timeout, v.timeout, "timeout"); err != nil {
		return sb, 0, false, err
	}
	sb, err = s.present(r, who)
	return sb, d, isFalse(in.Memory), err
}

func (s *Server) answerResumed(w http.ResponseWriter, r *http.Request, who caller, sb tartarus.Sandbox, d time.Duration, reboot bool) error {
	sb, err := s.bringBack(r.Context(), sb, d, reboot, who)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, s.answerSandbox(sb, who))
	return nil
}

// resume is the call that connect replaced: only for a sandbox that is paused.
func (s *Server) resume(w http.ResponseWriter, r *http.Request, who caller) error {
	sb, d, reboot, err := s.readConnect(w, r, who, v1)
	if err != nil {
		return err
	}
	if sb.Phase != tartarus.Paused {
		return tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s, not paused", sb.ID, sb.Phase)
	}
	return s.answerResumed(w, r, who, sb, d, reboot)
}

// reachable is present for what runs, or soon does.
func (s *Server) reachable(r *http.Request, who caller) (tartarus.Sandbox, error) {
	sb, err := s.present(r, who)
	if err != nil {
		return sb, err
	}
	return sb, mustRun(sb)
}

// mustRun refuses what does not run.
func mustRun(sb tartarus.Sandbox) error {
	switch {
	case sb.Reachable() && sb.Terminating():
		return tartarus.Errorf(tartarus.Conflict, "sandbox %s is being terminated (%s); DELETE /sandboxes/%s/termination cancels that", sb.ID, sb.Ending.Reason, sb.ID)
	case sb.Reachable(): // its node wakes what is hibernated
		return nil
	}
	return tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s", sb.ID, sb.Phase)
}

// timeout sets the end of a sandbox, later or earlier.
func (s *Server) timeout(w http.ResponseWriter, r *http.Request, who caller) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.TimeoutRequest
	if err := decode(raw, &in, false); err != nil {
		return err
	}
	if in.Timeout == nil {
		return tartarus.Errorf(tartarus.Invalid, "timeout is needed: seconds from now")
	}
	return s.moveEnd(w, r, who, in.Timeout, "timeout", false)
}

// refresh is the old way to keep a sandbox alive; it never shortens.
func (s *Server) refresh(w http.ResponseWriter, r *http.Request, who caller) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.RefreshRequest
	if err := decodeOptional(raw, &in, false); err != nil {
		return err
	}
	return s.moveEnd(w, r, who, in.Duration, "duration", true)
}

func (s *Server) moveEnd(w http.ResponseWriter, r *http.Request, who caller, seconds *int64, name string, extendOnly bool) error {
	d, err := s.lifetime(seconds, v1.timeout, name)
	if err != nil {
		return err
	}
	sb, err := s.reachable(r, who)
	if err != nil {
		return err
	}
	if _, err := s.setDeadline(r, sb, who.now.Add(d), extendOnly); err != nil {
		return err
	}
	noContent(w)
	return nil
}

// lifetime reads a timeout and holds it to the limit.
func (s *Server) lifetime(seconds *int64, def time.Duration, name string) (time.Duration, error) {
	d, err := duration(seconds, def, name)
	if longest := s.cfg.Judges.Limits().MaxTimeout; err == nil && d > longest {
		return 0, tartarus.Errorf(tartarus.Invalid, "%s must not be over %d s", name, int64(longest/time.Second))
	}
	return d, err
}

// setDeadline moves a sandbox's end on its node. A node that does not have it knows better than the registry.
func (s *Server) setDeadline(r *http.Request, sb tartarus.Sandbox, deadline time.Time, extendOnly bool) (tartarus.Sandbox, error) {
	node, err := s.onNode(r, sb)
	if err != nil {
		return sb, err
	}
	return node.SetDeadline(r.Context(), sb.ID, deadline, extendOnly)
}

// setNetwork replaces the egress rules of a running sandbox.
func (s *Server) setNetwork(w http.ResponseWriter, r *http.Request, who caller) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	sb, err := s.reachable(r, who)
	if err != nil {
		return err
	}
	network, err := updateNetwork(raw, sb.Network)
	if err == nil {
		err = checkPlaceholders(network, sb.Identity)
	}
	if err != nil {
		return err
	}
	wish := sb.Spec
	wish.Network = network
	request, err := s.wish(r.Context(), judges.Network, who, wish)
	if err != nil {
		return err
	}
	out, err := s.cfg.Judges.Try(r.Context(), request)
	if err := errors.Join(err, who.act.decided(r.Context(), out, nil)); err != nil {
		return err
	}
	if out.Quarantine() {
		return errNoQuarantine(out)
	}
	node, err := s.onNode(r, sb)
	if err != nil {
		return err
	}
	if sb, err = node.SetNetwork(r.Context(), sb.ID, out.Request.Spec.Network); err != nil {
		return err
	}
	s.cfg.Changed(sb)
	noContent(w)
	return nil
}
