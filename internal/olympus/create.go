package olympus

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
	"github.com/tartarus-sandbox/tartarus/internal/phlegethon"
)

// wireVersion is one of the two forms of create and connect.
type wireVersion struct {
	name    string
	timeout time.Duration // where the request names none
	secure  bool          // always, not only when asked for
}

var (
	v1 = wireVersion{name: "v1", timeout: 15 * time.Second}
	v2 = wireVersion{name: "v2", timeout: 300 * time.Second, secure: true}
)

func (s *Server) createV1(w http.ResponseWriter, r *http.Request, who caller) error {
	return s.create(w, r, who, v1)
}

func (s *Server) createV2(w http.ResponseWriter, r *http.Request, who caller) error {
	return s.create(w, r, who, v2)
}

// create makes a sandbox: it is asked for, judged, placed, queued, and awaited.
func (s *Server) create(w http.ResponseWriter, r *http.Request, who caller, v wireVersion) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	key, err := idempotencyKey(r.Header)
	if err != nil {
		return err
	}
	spec, tier, err := s.newSpec(r.Context(), raw, who, v)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.CreateTime)
	defer cancel()
	wish, err := s.wish(ctx, judges.Create, who, spec)
	if err != nil {
		return err
	}
	wish.Tier = tier
	digest := digestOf(key, v, raw)
	out, err := s.cfg.Judges.Try(ctx, wish)
	if err != nil {
		// What was made for the first request with this key may be what leaves no room for the second.
		if answered, err := s.answerAgain(ctx, w, who, key, digest); answered {
			return err
		}
	}
	who.act.about(spec.ID, spec.Tenant)
	if err := errors.Join(err, who.act.decided(ctx, out, map[string]string{"template": spec.Template, "templateID": spec.TemplateID})); err != nil {
		return err
	}
	arrived := false
	defer func() {
		if !arrived {
			s.cfg.Judges.Undo(ctx, out.Request)
		}
	}()
	spec, tier = out.Request.Spec, out.Request.Tier
	confine(&spec, &tier, out)
	spec.Heat = string(s.heat(spec, s.pasts.arrive(spec.TemplateID, who.now), out.Request.Heat).Heat)
	where, err := s.place(ctx, spec, tier, who)
	if err != nil {
		if answered, err := s.answerAgain(ctx, w, who, key, digest); answered {
			return err
		}
		return demanded(err, out)
	}
	spec.Runtime = where.Runtime
	job := acheron.Job{ID: spec.ID, Tenant: spec.Tenant, Node: where.Node, Kind: acheron.Create, MaxAttempts: createAttempts, Deadline: who.now.Add(s.cfg.CreateTime + lateness)}
	job.Key, job.Digest = key, digest
	sb, err := s.cross(ctx, spec, job, s.placing(spec, tier))
	if err != nil {
		return err
	}
	arrived = sb.ID == spec.ID // and not what an earlier request with this key made
	s.cfg.Changed(sb)
	if key != "" {
		// Whoever has the key can ask for the sandbox again, and may have left to do so.
		writeJSON(w, http.StatusCreated, s.answerSandbox(sb, who))
		return nil
	}
	return s.hand(w, r, s.answerSandbox(sb, who), []tartarus.Sandbox{sb})
}

// lateness is how much longer a job may wait than its request: the request ends it, and can say more about why than the queue, which sees to it that
// none outlives a replica that died.
const lateness = time.Second

// place finds a node for a sandbox.
func (s *Server) place(ctx context.Context, spec tartarus.Spec, tier tartarus.Tier, who caller) (got phlegethon.Placement, err error) {
	needs, err := s.needs(ctx, spec, tier)
	if err != nil {
		return got, err
	}
	for _, need := range needs {
		if got, err = s.placer.place(ctx, need, who.now); err == nil {
			break
		}
	}
	return got, err
}

// demanded adds to a refusal of the placement who demanded what no node has.
func demanded(err error, out judges.Outcome) error {
	e, ok := errors.AsType[*tartarus.Error](err)
	who := out.Demanded()
	if !ok || who == "" {
		return err
	}
	told := *e
	told.Message += " (" + who + ")"
	for _, v := range out.Verdicts {
		for _, q := range v.Demand.Reasons {
			told.Causes = append(told.Causes, tartarus.Cause{Code: q.Code, Message: q.Message, Judge: v.Judge, Rule: q.Rule, Policy: q.Policy})
		}
	}
	return &told
}

// createAttempts is how often a start is tried before it is given up: once more than chance would explain.
const createAttempts = 3

// cross takes a new sandbox over Acheron: it is entered in the registry, queued and awaited. When it does not arrive, whatever the cause,
// nothing of it goes on running and the registry says why. next is where it may go when its node has no room.
func (s *Server) cross(ctx context.Context, spec tartarus.Spec, job acheron.Job, next elsewhere) (tartarus.Sandbox, error) {
	entry := tartarus.Sandbox{Spec: spec, Node: job.Node, Phase: tartarus.Queued, CreatedAt: time.Now()}
	var err error
	if job.Payload, err = json.Marshal(spec); err != nil {
		return entry, tartarus.Errorf(tartarus.Invalid, "encode sandbox: %w", err)
	}
	queued, entered, err := s.queueUp(ctx, job, &entry)
	switch {
	case tartarus.Is(err, tartarus.Mismatch):
		s.forget(ctx, entry.ID)
		return entry, tartarus.Errorf(tartarus.Mismatch, "the Idempotency-Key was used with another body: %w", err)
	case err != nil:
		// An answer that did not come does not mean that nothing was queued.
		return entry, s.leave(ctx, job, &entry, err)
	case queued.ID != job.ID:
		// An earlier request with this key is the one that counts; this one made nothing but its entry.
		s.forget(ctx, entry.ID)
		return s.arrive(ctx, queued, nil, nil)
	case entered != nil && !tartarus.Is(entered, tartarus.Conflict):
		return entry, s.leave(ctx, job, &entry, entered)
	}
	return s.arrive(ctx, queued, &entry, next)
}

// queueUp queues a job and enters its sandbox in the registry.
func (s *Server) queueUp(ctx context.Context, job acheron.Job, entry *tartarus.Sandbox) (queued acheron.Job, entered, err error) {
	if s.cfg.Entrance != nil {
		queued, err = s.enqueue(job, func(j acheron.Job) (acheron.Job, error) { return s.cfg.Entrance.Enter(ctx, j, *entry) })
		entry.Revision = 1
		return queued, nil, err
	}
	// Both writes are on their way at once, so that they share the store's next commit. Either may come first: a node that
	// reports before the entry is there makes the entry.
	put := make(chan error, 1)
	go func() {
		err := errPanicked // unless it gets further
		defer func() { put <- err }()
		defer s.survive()
		entry.Revision, err = s.cfg.Registry.PutSandbox(ctx, *entry)
	}()
	queued, err = s.enqueue(job, func(j acheron.Job) (acheron.Job, error) { return s.cfg.Queue.Enqueue(ctx, j) })
	return queued, <-put, err
}

// keyRounds bounds how often a key may be used again after what it stood for could not be started. Each round is a retry by a client.
const keyRounds = 16

// enqueue hands the job to the queue. A key whose job came to nothing for a passing cause is free for another try: it goes on under
// the key with a number that no client can send.
func (s *Server) enqueue(job acheron.Job, put func(acheron.Job) (acheron.Job, error)) (acheron.Job, error) {
	queued, err := put(job)
	for round, key := 2, job.Key; key != "" && round <= keyRounds; round++ {
		if err != nil || queued.ID == job.ID || !mayTryAgain(queued, time.Now()) {
			break
		}
		job.Key = keyOfRound(key, round)
		queued, err = put(job)
	}
	return queued, err
}

// mayTryAgain reports whether a job ended without a sandbox for a cause that may have passed.
func mayTryAgain(j acheron.Job, now time.Time) bool {
	switch j.State {
	case acheron.Cancelled:
		return true
	case acheron.Dead:
		if _, refused := refusedRoom(j); refused {
			return now.Sub(j.EndedAt) > abandoned // until then its own request takes it to another node
		}
		return tartarus.Is(acheron.FromReason(j.Reason), tartarus.Unavailable)
	}
	return false
}

// arrive waits for a job and gives its sandbox. entry is the registry's entry when the job is this request's own, nil when another one's result
// is waited for. next is where it may go when its node has no room; nil where that is not for this request to say.
func (s *Server) arrive(ctx context.Context, job acheron.Job, entry *tartarus.Sandbox, next elsewhere) (tartarus.Sandbox, error) {
	done, err := s.awaitStart(ctx, job, entry, next)
	if err != nil {
		return tartarus.Sandbox{}, s.leave(ctx, job, entry, err)
	}
	if done.State == acheron.Done {
		var sb tartarus.Sandbox
		if err := json.Unmarshal(done.Result, &sb); err != nil {
			return sb, tartarus.Errorf(tartarus.Internal, "decode result of job %s: %w", done.ID, err)
		}
		return sb, nil
	}
	err = whyNot(done)
	if entry != nil {
		s.giveUp(ctx, *entry, err)
	}
	return tartarus.Sandbox{}, err
}

// whyNot is the error of a job that ended without a sandbox.
func whyNot(j acheron.Job) *tartarus.Error {
	if j.State == acheron.Cancelled {
		return &tartarus.Error{Kind: tartarus.Conflict, Message: "the start was called off"}
	}
	e := acheron.FromReason(j.Reason)
	switch e.Kind {
	case tartarus.Internal:
		e.Code = codeStartFailed
	case tartarus.Unavailable:
		e.RetryAfter = 5 * time.Second
	case tartarus.NotFound:
		// Of the template, or of a file of it. For the caller it is the same as if the name led nowhere.
	case tartarus.Conflict:
		e = &tartarus.Error{Kind: tartarus.Unavailable, Message: e.Message, RetryAfter: time.Second}
	}
	return e
}

// leave ends the wait for a job before the job has ended: the time is up, the client is gone, or the queue cannot be asked.
func (s *Server) leave(ctx context.Context, job acheron.Job, entry *tartarus.Sandbox, cause error) error {
	why := cause
	if ctx.Err() != nil {
		message := "no node could start the sandbox in time" + s.standing(ctx, job.ID)
		if refusal, ok := errors.AsType[*tartarus.Error](cause); ok && refusal.Code == hades.CodeNoRoom {
			message += "; " + refusal.Message
		}
		why = &tartarus.Error{Kind: tartarus.Unavailable, RetryAfter: 5 * time.Second, Err: cause, Message: message}
	}
	if entry == nil {
		return why
	}
	clean, cancel := after(ctx)
	defer cancel()
	switch err := s.cfg.Queue.Cancel(clean, job.ID); {
	case err == nil, tartarus.Is(err, tartarus.NotFound):
	case tartarus.Is(err, tartarus.Conflict):
		// It ended while we left. Nobody is told of the sandbox, so nobody would end it.
		s.stopUnwanted(clean, *entry)
	default:
		s.log.Warn("job not cancelled", "sandbox", entry.ID, "tenant", entry.Tenant, "node", entry.Node, "error", err)
	}
	s.giveUp(clean, *entry, why)
	return why
}

// standing says where a job is in its queue, for the message of a wait that was too long.
func (s *Server) standing(ctx context.Context, id string) string {
	ctx, cancel := after(ctx)
	defer cancel()
	if j, err := s.cfg.Queue.Job(ctx, id); err == nil && j.State == acheron.Waiting && j.Position > 0 {
		return ": it was number " + strconv.Itoa(j.Position) + " in the queue"
	}
	return ""
}

// stopUnwanted ends a sandbox that runs although its request was given up.
func (s *Server) stopUnwanted(ctx context.Context, entry tartarus.Sandbox) {
	node, err := s.cfg.Fleet.Node(ctx, entry.Node)
	if err == nil {
		err = node.Stop(ctx, entry.ID, tartarus.ReasonUser)
	}
	if err != nil && !tartarus.Is(err, tartarus.NotFound) {
		// Its timeout ends it.
		s.log.Warn("unwanted sandbox not stopped", "sandbox", entry.ID, "tenant", entry.Tenant, "node", entry.Node, "error", err)
	}
}

// giveUp records that a sandbox will not come up. Where its node has said more since, that stands.
func (s *Server) giveUp(ctx context.Context, entry tartarus.Sandbox, why error) {
	ctx, cancel := after(ctx)
	defer cancel()
	for range registryTries {
		if err := entry.Transition(tartarus.Failed, tartarus.ReasonStart, why.Error()); err != nil {
			return // it has ended by now
		}
		entry.EndedAt = time.Now()
		_, err := s.cfg.Registry.PutSandbox(ctx, entry)
		if tartarus.Is(err, tartarus.Conflict) {
			// Either the answer to entering it was lost, or its node has taken it up.
			if entry, err = s.cfg.Registry.Sandbox(ctx, entry.Tenant, entry.ID); err == nil && entry.Phase == tartarus.Queued {
				continue
			}
		}
		if err != nil {
			s.log.Warn("failed start not recorded", "sandbox", entry.ID, "tenant", entry.Tenant, "node", entry.Node, "error", err)
		}
		return
	}
}

// forget removes the entry of a sandbox that never was.
func (s *Server) forget(ctx context.Context, id string) {
	ctx, cancel := after(ctx)
	defer cancel()
	if err := s.cfg.Registry.RemoveSandbox(ctx, id); err != nil {
		s.log.Warn("entry not removed", "sandbox", id, "error", err)
	}
}

// idempotencyKey takes the key that makes a repeated create the same create.
func idempotencyKey(h http.Header) (string, error) {
	values, sent := h[api.HeaderIdempotency]
	if !sent {
		return "", nil
	}
	if len(values) == 1 && len(values[0]) >= 1 && len(values[0]) <= 255 {
		for _, c := range []byte(values[0]) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return "", errIdempotencyKey
			}
		}
		return values[0], nil
	}
	return "", errIdempotencyKey
}

var errIdempotencyKey = &tartarus.Error{Kind: tartarus.Invalid, Message: "Idempotency-Key must be 1 to 255 of a-z, 0-9 and -"}

// newToken makes a sandbox's bearer token: 160 random bits.
func newToken() string {
	var b [20]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
