package olympus

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Terminator is a Node that ends sandboxes gracefully, and lets them live on when that is called off in time.
type Terminator interface {
	// Terminate ends a sandbox as asked and returns when it is gone. When ctx ends first, the termination goes on. One that is called off
	// meanwhile is tartarus.Conflict, an ended sandbox tartarus.NotFound.
	Terminate(ctx context.Context, id string, t tartarus.Termination) error

	// CancelTermination lets a sandbox live on. Where nothing is pending, or the kill has begun, it is tartarus.Conflict.
	CancelTermination(ctx context.Context, id string) (tartarus.Sandbox, error)
}

// maxGrace is more than any node gives.
const maxGrace = 24 * time.Hour

// readTermination reads how a sandbox is to be ended: grace, checkpoint and logs.
func readTermination(r *http.Request) (tartarus.Termination, error) {
	t := tartarus.Termination{Reason: tartarus.ReasonUser, Message: "somebody asked"}
	q, err := parseQuery(r)
	if err != nil {
		return t, err
	}
	if q.Has("grace") {
		d, err := parseGrace(q.Get("grace"))
		if err != nil {
			return t, err
		}
		t.Grace = &d
	}
	if t.Checkpoint, err = truth(q, "checkpoint"); err != nil {
		return t, err
	}
	t.ExportLogs, err = truth(q, "logs")
	return t, err
}

// parseGrace reads a duration such as 10s or 1m30s, or a whole number of seconds.
func parseGrace(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if n, notNumber := strconv.ParseUint(text, 10, 32); notNumber == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d < 0 || d > maxGrace {
		return 0, tartarus.Errorf(tartarus.Invalid, "grace %.40q must be a duration such as 10s, or seconds, from 0 to %s", text, maxGrace)
	}
	return d, nil
}

// terminate ends a sandbox on its node.
func terminate(ctx context.Context, node Node, id string, how tartarus.Termination) error {
	if t, ok := node.(Terminator); ok {
		return t.Terminate(ctx, id, how)
	}
	if how.Grace != nil && *how.Grace > 0 || how.Checkpoint || how.ExportLogs {
		return unsupported("grace, checkpoint or logs")
	}
	return node.Stop(ctx, id, how.Reason)
}

// cancelTermination lets a sandbox live on that is about to end.
func (s *Server) cancelTermination(w http.ResponseWriter, r *http.Request, who caller) error {
	sb, err := s.present(r, who)
	if err != nil {
		return err
	}
	node, err := s.onNode(r, sb)
	if err != nil {
		return err
	}
	t, ok := node.(Terminator)
	if !ok {
		return unsupported("cancelling a termination")
	}
	if sb, err = t.CancelTermination(r.Context(), sb.ID); err != nil {
		return err
	}
	s.cfg.Changed(sb)
	noContent(w)
	return nil
}
