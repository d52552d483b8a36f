package olympus

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
)

// maxForks is how many clones one request may make: what the wire protocol allows.
const maxForks = 100

// fork clones a running sandbox: one snapshot, then a start for each clone, all at once. Each succeeds or fails by itself.
func (s *Server) fork(w http.ResponseWriter, r *http.Request, who caller) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.ForkRequest
	if err := decodeOptional(raw, &in, false); err != nil {
		return err
	}
	count := pick(in.Count, 1)
	if count < 1 || count > maxForks {
		return tartarus.Errorf(tartarus.Invalid, "count must be between 1 and %d", maxForks)
	}
	timeout, err := s.lifetime(in.Timeout, v1.timeout, "timeout")
	if err != nil {
		return err
	}
	sb, err := s.reachable(r, who)
	if err != nil {
		return err
	}
	node, err := s.snapshotter(r, sb)
	if err != nil {
		return err
	}
	snap, err := node.Snapshot(r.Context(), sb.ID, tartarus.SnapshotHow{Scratch: true})
	if err != nil {
		return err
	}
	defer func() {
		clean, cancel := after(r.Context())
		defer cancel()
		if err := node.RemoveSnapshot(clean, snap.ID); err != nil && !tartarus.Is(err, tartarus.NotFound) {
			s.log.Warn("snapshot of a fork not removed", "sandbox", sb.ID, "tenant", sb.Tenant, "node", sb.Node, "snapshot", snap.ID, "error", err)
		}
	}()
	results, clones := s.forks(r.Context(), sb, snap, timeout, int(count), who)
	return s.hand(w, r, results, clones)
}

// forks starts the clones and says of each how it went; clones are those that run.
func (s *Server) forks(
	ctx context.Context, source tartarus.Sandbox, snap tartarus.Snapshot, timeout time.Duration, count int, who caller,
) (out []api.ForkResult, clones []tartarus.Sandbox) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CreateTime)
	defer cancel()
	out = make([]api.ForkResult, count)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() {
			err := errPanicked // unless it gets further
			defer func() {
				if err != nil {
					out[i] = api.ForkResult{Error: forkError(err)}
				}
			}()
			defer s.survive()
			var sb tartarus.Sandbox
			if sb, err = s.forkOne(ctx, source, snap, timeout, who); err == nil {
				answer := s.answerSandbox(sb, who)
				out[i].Sandbox = &answer
				mu.Lock()
				clones = append(clones, sb)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return out, clones
}

// forkError is the error of one clone. What only the log should say stays there.
func forkError(err error) *api.Error {
	e, ok := errors.AsType[*tartarus.Error](err)
	if !ok {
		e = &tartarus.Error{Kind: tartarus.Internal, Message: "something inside failed"}
	}
	status, known := statusOf[e.Kind]
	if !known {
		status = http.StatusServiceUnavailable
	}
	code := e.Code
	if code == "" {
		code = string(e.Kind)
	}
	return &api.Error{Code: status, Message: e.Message, ErrorCode: code, Reasons: causesOf(e)}
}

// forkOne starts one clone on the source's node, as the source is but with an identity, tokens and a life of its own.
func (s *Server) forkOne(ctx context.Context, source tartarus.Sandbox, snap tartarus.Snapshot, timeout time.Duration, who caller) (tartarus.Sandbox, error) {
	spec := source.Spec
	spec.ID, spec.SnapshotID, spec.Timeout, spec.RequestID = tartarus.NewID(), snap.ID, timeout, who.request
	spec.Metadata, spec.Env = maps.Clone(source.Metadata), maps.Clone(source.Env)
	spec.Network = source.Network
	spec.Network.Allow, spec.Network.Deny = slices.Clone(source.Network.Allow), slices.Clone(source.Network.Deny)
	spec.Secrets = freshSecrets(source.Secrets, who)
	spec.Runtime = snap.Runtime
	wish, err := s.wish(ctx, judges.Create, who, spec)
	if err != nil {
		return tartarus.Sandbox{}, err
	}
	out, err := s.cfg.Judges.Try(ctx, wish)
	if err := errors.Join(err, s.recorder.clone(ctx, who, spec, out)); err != nil {
		return tartarus.Sandbox{}, err
	}
	arrived := false
	defer func() {
		if !arrived {
			s.cfg.Judges.Undo(ctx, out.Request)
		}
	}()
	if out.Quarantine() && source.Confined == "" { // a clone runs beside its source
		return tartarus.Sandbox{}, errNoQuarantine(out)
	}
	if want := out.Request.Tier; want != "" && !source.Tier.AtLeast(want) { // likewise on what its source runs on
		return tartarus.Sandbox{}, demanded(tartarus.Errorf(tartarus.Denied, "a clone runs as its source does, with isolation %s", source.Tier), out)
	}
	spec = out.Request.Spec
	sb, err := s.cross(ctx, spec, acheron.Job{
		ID: spec.ID, Tenant: spec.Tenant, Node: source.Node, Kind: acheron.Create, MaxAttempts: createAttempts, Deadline: who.now.Add(s.cfg.CreateTime),
	}, stay)
	if arrived = err == nil; arrived {
		s.cfg.Changed(sb)
	}
	return sb, err
}

// freshSecrets are new tokens of the kinds that the source has: nobody who knew the source's gets into the clone.
func freshSecrets(source tartarus.Secrets, who caller) tartarus.Secrets {
	var out tartarus.Secrets
	if source.AgentToken != "" || !who.key.Exec {
		out.AgentToken = newToken()
	}
	if source.TrafficToken != "" {
		out.TrafficToken = newToken()
	}
	return out
}
