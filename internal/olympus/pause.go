package olympus

import (
	"context"
	"encoding/json"
	"net/http"
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
	return s.bringBack(ctx, sb, max(sb.Timeout, resumeTime), false)
}

// bringBack takes a paused sandbox over Acheron to the node that has it.
func (s *Server) bringBack(ctx context.Context, sb tartarus.Sandbox, timeout time.Duration, reboot bool) (_ tartarus.Sandbox, err error) {
	if sb.AgentLost && !reboot {
		return sb, &tartarus.Error{
			Kind: tartarus.Conflict, Code: tartarus.CodeAgentLost,
			Message: "the guest agent of sandbox " + sb.ID + " did not answer when it was paused: it can only be rebooted from its disk (connect with memory: false)",
		}
	}
	undo, err := s.held(ctx, judges.Resume, sb, 0, time.Now())
	if err != nil {
		return sb, err
	}
	defer func() {
		if err != nil {
			undo()
		}
	}()
	sb = s.offCordoned(ctx, sb)
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
