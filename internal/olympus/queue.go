package olympus

import (
	"net/http"
	"slices"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// operated is the queue as operators use it.
func (s *Server) operated() (acheron.Operator, error) {
	q, ok := s.cfg.Queue.(acheron.Operator)
	if !ok {
		return nil, tartarus.Errorf(tartarus.Unsupported, "this queue shows nothing to operators")
	}
	return q, nil
}

var jobStates = []acheron.State{acheron.Waiting, acheron.Leased, acheron.Done, acheron.Dead, acheron.Cancelled}

// maxJobs is the most jobs of one answer.
const maxJobs = 1000

// listJobs shows queued work of all tenants.
func (s *Server) listJobs(w http.ResponseWriter, r *http.Request, _ caller) error {
	query, err := parseQuery(r)
	if err != nil {
		return err
	}
	limit, err := number(query, "limit", 1, maxJobs, 100)
	if err != nil {
		return err
	}
	state := acheron.Waiting
	if query.Has("state") {
		state = acheron.State(query.Get("state"))
	}
	if !slices.Contains(jobStates, state) {
		return tartarus.Errorf(tartarus.Invalid, "state %.20q must be waiting, leased, done, dead or cancelled", state)
	}
	q, err := s.operated()
	if err != nil {
		return err
	}
	jobs, err := q.List(r.Context(), state, limit)
	if err != nil {
		return err
	}
	out := make([]api.Job, len(jobs))
	for i, j := range jobs {
		out[i] = answerJob(j)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// jobID is the job that a path names.
func jobID(r *http.Request) (string, error) {
	id := chi.URLParam(r, "job")
	if !tartarus.ValidID(id) {
		return "", tartarus.Errorf(tartarus.NotFound, "there is no job %.40q", id)
	}
	return id, nil
}

// getJob shows one job, with its position when it waits.
func (s *Server) getJob(w http.ResponseWriter, r *http.Request, _ caller) error {
	id, err := jobID(r)
	if err != nil {
		return err
	}
	j, err := s.cfg.Queue.Job(r.Context(), id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, answerJob(j))
	return nil
}

// requeueJob lets a dead job wait again.
func (s *Server) requeueJob(w http.ResponseWriter, r *http.Request, _ caller) error {
	id, err := jobID(r)
	if err != nil {
		return err
	}
	q, err := s.operated()
	if err != nil {
		return err
	}
	if err := q.Requeue(r.Context(), id, ""); err != nil {
		return err
	}
	noContent(w)
	return nil
}

// cancelJob calls a job off.
func (s *Server) cancelJob(w http.ResponseWriter, r *http.Request, _ caller) error {
	id, err := jobID(r)
	if err != nil {
		return err
	}
	if err := s.cfg.Queue.Cancel(r.Context(), id); err != nil {
		return err
	}
	noContent(w)
	return nil
}

// maxPurgeSeconds is a year.
const maxPurgeSeconds = 365 * 24 * 60 * 60

// purgeQueue forgets ended jobs.
func (s *Server) purgeQueue(w http.ResponseWriter, r *http.Request, who caller) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	in := api.PurgeRequest{OlderThanSeconds: -1}
	if err := decode(raw, &in, true); err != nil {
		return err
	}
	if in.OlderThanSeconds < 0 || in.OlderThanSeconds > maxPurgeSeconds {
		return tartarus.Errorf(tartarus.Invalid, "olderThanSeconds is needed, from 0 to %d", maxPurgeSeconds)
	}
	q, err := s.operated()
	if err != nil {
		return err
	}
	n, err := q.Purge(r.Context(), who.now.Add(-time.Duration(in.OlderThanSeconds)*time.Second))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.Purged{Purged: n})
	return nil
}

// answerJob leaves out what a job carries: a sandbox's tokens are in it.
func answerJob(j acheron.Job) api.Job {
	out := api.Job{
		ID: j.ID, Tenant: j.Tenant, Node: j.Node, Kind: j.Kind, State: string(j.State), Attempt: j.Attempt, MaxAttempts: j.MaxAttempts,
		Position: j.Position, Reason: j.Reason, EnqueuedAt: j.EnqueuedAt.UTC(),
	}
	at := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.UTC()
		return &t
	}
	out.Deadline, out.EndedAt = at(j.Deadline), at(j.EndedAt)
	return out
}
