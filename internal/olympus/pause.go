package olympus

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
)

// Pauser is a Node that can pause.
type Pauser interface {
	// Pause writes a running sandbox to disk and frees what it held of the node; a resume job brings it back. One that is not running is
	// tartarus.Conflict. Where its agent must answer and does not, it is tartarus.Unavailable. When it fails, the sandbox runs on.
	Pause(ctx context.Context, id string, how tartarus.PauseHow) (tartarus.Sandbox, error)
}

// pause puts a sandbox to sleep with its processes, memory and files, or with its files alone.
func (s *Server) pause(w http.ResponseWriter, r *http.Request, who caller) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.PauseRequest
	if err := decodeOptional(raw, &in, false); err != nil {
		return err
	}
	sb, err := s.reachable(r, who)
	if err != nil {
		return err
	}
	node, err := s.onNode(r, sb)
	if err != nil {
		return err
	}
	pauser, ok := node.(Pauser)
	if !ok || !s.cfg.CanPause {
		return unsupported("pause")
	}
	undo, err := s.held(r.Context(), judges.Pause, sb, 0, who.now)
	if err != nil {
		return err
	}
	if sb, err = pauser.Pause(r.Context(), sb.ID, tartarus.PauseHow{Healthy: in.RequireHealthyGuest, Disk: isFalse(in.Memory)}); err != nil {
		undo()
		return err
	}
	s.cfg.Changed(sb)
	noContent(w)
	return nil
}

// resumeTime is how long a sandbox brought back by traffic lives when it was made for less: what the wire protocol promises.
const resumeTime = 300 * time.Second

// Wake brings a paused sandbox back because somebody wants to talk to it, and returns it running.
func (s *Server) Wake(ctx context.Context, sb tartarus.Sandbox) (tartarus.Sandbox, error) {
	if sb.DiskOnly || sb.AgentLost {
		return sb, tartarus.Errorf(tartarus.Conflict, "sandbox %s would have to be booted anew, which traffic does not do: connect to it", sb.ID)
	}
	return s.bringBack(ctx, sb, max(sb.Timeout, resumeTime), false, caller{now: time.Now()})
}

// mayResume asks the judges whether a paused sandbox may come back: what policies say of it may have changed since. Where nothing comes of it, undo must
// be called.
func (s *Server) mayResume(ctx context.Context, sb tartarus.Sandbox, timeout time.Duration, who caller) (undo func(), err error) {
	spec := sb.Spec
	spec.Timeout, spec.Runtime = timeout, sb.Driver // it comes back on what it ran on
	wish, err := s.wish(ctx, judges.Resume, who, spec)
	if err != nil {
		return nil, err
	}
	wish.Revision = sb.Revision
	out, err := s.cfg.Judges.Try(ctx, wish)
	undo = func() { s.cfg.Judges.Undo(ctx, out.Request) }
	switch want := out.Request.Tier; {
	case err != nil:
	case out.Quarantine() && sb.Confined == "":
		err = errNoQuarantine(out)
	case want != "" && !sb.Tier.AtLeast(want):
		err = demanded(tartarus.Errorf(tartarus.Denied, "a sandbox comes back as it ran, with isolation %s", sb.Tier), out)
	}
	if err != nil && len(out.Verdicts) > 0 && !slices.ContainsFunc(out.Verdicts, func(v judges.Verdict) bool { return !v.Allow }) {
		out.Verdicts = append(out.Verdicts, judges.Verdict{Judge: "rhadamanthus", Kind: tartarus.Denied, Reason: err.Error()}) // by what they demand
	}
	if err != nil && who.act == nil {
		s.recorder.wakeRefused(ctx, sb, out)
	}
	if err := errors.Join(err, who.act.decided(ctx, out, nil)); err != nil {
		undo()
		return nil, err
	}
	return undo, nil
}

// bringBack takes a paused sandbox over Acheron to the node that has it.
func (s *Server) bringBack(ctx context.Context, sb tartarus.Sandbox, timeout time.Duration, reboot bool, who caller) (_ tartarus.Sandbox, err error) {
	if sb.AgentLost && !reboot {
		return sb, &tartarus.Error{
			Kind: tartarus.Conflict, Code: tartarus.CodeAgentLost,
			Message: "the guest agent of sandbox " + sb.ID + " did not answer when it was paused: it can only be rebooted from its disk (connect with memory: false)",
		}
	}
	undo, err := s.mayResume(ctx, sb, timeout, who)
	if err != nil {
		return sb, err
	}
	defer func() {
		if err != nil {
			undo()
		}
	}()
	if sb, err = s.ashore(ctx, sb); err != nil {
		return sb, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CreateTime)
	defer cancel()
	payload, err := json.Marshal(tartarus.Resume{ID: sb.ID, Tenant: sb.Tenant, Timeout: timeout, Reboot: reboot})
	if err != nil {
		return sb, tartarus.Errorf(tartarus.Internal, "encode resume: %w", err)
	}
	job, err := s.cfg.Queue.Enqueue(ctx, acheron.Job{
		ID: tartarus.NewID(), Tenant: sb.Tenant, Node: sb.Node, Kind: acheron.Resume, Payload: payload,
		MaxAttempts: createAttempts, Deadline: time.Now().Add(s.cfg.CreateTime),
	})
	if err != nil {
		return sb, err
	}
	sb, err = s.arrive(ctx, job, nil, nil)
	if err == nil {
		s.cfg.Changed(sb)
	}
	return sb, err
}
