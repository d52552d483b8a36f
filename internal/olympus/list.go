package olympus

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/recent"
)

// maxPage is the most sandboxes on a page of the second version, and the default.
const maxPage = 100

// maxListV1 bounds the first version, which has no pages. It is what the registry gives at once.
const maxListV1 = 1000

// listV1 lists what runs, newest first, at most maxListV1.
func (s *Server) listV1(w http.ResponseWriter, r *http.Request, who caller) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	query := hades.Query{Tenant: who.key.Tenant, Phases: runningPhases, Limit: maxListV1}
	if query.Metadata, err = decodeMetadata(q.Get("metadata")); err != nil {
		return err
	}
	if states := q["state"]; len(states) > 0 {
		if query.Phases, _, err = phasesOf(states); err != nil {
			return err
		}
	}
	page, err := s.cfg.Registry.ListSandboxes(r.Context(), query)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, listed(page))
	return nil
}

// listV2 lists a page.
func (s *Server) listV2(w http.ResponseWriter, r *http.Request, who caller) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	query, running, err := listQuery(q)
	if err != nil {
		return err
	}
	query.Tenant = who.key.Tenant
	page, err := s.cfg.Registry.ListSandboxes(r.Context(), query)
	if err != nil {
		return err
	}
	if page.Next != (hades.Cursor{}) {
		w.Header().Set(api.HeaderNextToken, encodeCursor(page.Next))
	}
	if running {
		if n, ok := s.totals.running(r.Context(), who.key.Tenant, who.now); ok {
			w.Header().Set(api.HeaderTotalRunning, strconv.Itoa(n))
		}
	}
	writeJSON(w, http.StatusOK, listed(page))
	return nil
}

func listed(page hades.Page) []api.ListedSandbox {
	out := make([]api.ListedSandbox, len(page.Sandboxes))
	for i, sb := range page.Sandboxes {
		out[i] = answerListed(sb)
	}
	return out
}

// parseQuery is url.ParseQuery with an error that says what is wrong; net/http's own drops what it cannot read.
func parseQuery(r *http.Request) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Invalid, "the query cannot be read: %w", err)
	}
	return q, nil
}

// listQuery reads the filters of the second version. running reports whether running sandboxes are asked for.
func listQuery(q url.Values) (query hades.Query, running bool, err error) {
	states := q["state"]
	if len(states) == 0 {
		states = []string{stateRunning, statePaused}
	}
	if query.Phases, running, err = phasesOf(states); err != nil {
		return query, false, err
	}
	if query.Metadata, err = decodeMetadata(q.Get("metadata")); err != nil {
		return query, false, err
	}
	query.Template = q.Get("template")
	if t := q.Get("startedAfter"); q.Has("startedAfter") {
		if query.StartedAfter, err = time.Parse(time.RFC3339Nano, t); err != nil {
			return query, false, tartarus.Errorf(tartarus.Invalid, "startedAfter %.40q must be a time such as 2026-01-31T12:00:00Z", t)
		}
		query.StartedAfter = countable(query.StartedAfter)
	}
	switch order := q.Get("order"); order {
	case "", "desc":
	case "asc":
		query.Ascending = true
	default:
		return query, false, tartarus.Errorf(tartarus.Invalid, "order %.20q must be asc or desc", order)
	}
	if query.Limit, err = number(q, "limit", 1, maxPage, maxPage); err != nil {
		return query, false, err
	}
	if token := q.Get("nextToken"); token != "" {
		if query.After, err = decodeCursor(token); err != nil {
			return query, false, err
		}
	}
	return query, running, nil
}

// number reads a whole number between lo and hi.
func number(q url.Values, name string, lo, hi, def int) (int, error) {
	text := q.Get(name)
	if text == "" && !q.Has(name) {
		return def, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < lo || n > hi {
		return 0, tartarus.Errorf(tartarus.Invalid, "%s %.20q must be a number from %d to %d", name, text, lo, hi)
	}
	return n, nil
}

// truth reads true or false; what is not there is false.
func truth(q url.Values, name string) (bool, error) {
	switch v := q.Get(name); {
	case v == "true":
		return true, nil
	case v == "false" || !q.Has(name):
		return false, nil
	default:
		return false, tartarus.Errorf(tartarus.Invalid, "%s %.20q must be true or false", name, v)
	}
}

// phasesOf reads the states of a filter: those of the SDKs, or any phase by name.
func phasesOf(states []string) (phases []tartarus.Phase, running bool, err error) {
	for _, list := range states {
		for _, name := range strings.Split(list, ",") {
			switch p := tartarus.Phase(name); {
			case name == stateRunning:
				phases, running = append(phases, runningPhases...), true
			case slices.Contains(tartarus.Phases, p):
				phases = append(phases, p)
			default:
				return nil, false, tartarus.Errorf(tartarus.Invalid, "state %.40q must be running, paused or the name of a phase", name)
			}
		}
	}
	slices.Sort(phases)
	return slices.Compact(phases), running, nil
}

// decodeMetadata reads a metadata filter. It is a query inside the query whose keys and values SDKs escape once more:
// metadata=k%252520y%3Dv%2525261 is {"k y": "v&1"}.
func decodeMetadata(filter string) (map[string]string, error) {
	if filter == "" {
		return nil, nil
	}
	values, err := url.ParseQuery(filter)
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Invalid, "metadata %.80q is not a query string: %w", filter, err)
	}
	out := make(map[string]string, len(values))
	for k, vs := range values {
		out[unescape(k)] = unescape(vs[len(vs)-1])
	}
	if err := checkMetadata(out); err != nil {
		return nil, err
	}
	return out, nil
}

// unescape undoes the last escaping; text that was not escaped once more, as by other clients, is taken as it is.
func unescape(s string) string {
	if u, err := url.PathUnescape(s); err == nil {
		return u
	}
	return s
}

// A page token is opaque to clients: the start and id of the last sandbox on the page.
func encodeCursor(c hades.Cursor) string {
	return base64.RawURLEncoding.EncodeToString([]byte(c.StartedAt.UTC().Format(time.RFC3339Nano) + "__" + c.ID))
}

func decodeCursor(token string) (hades.Cursor, error) {
	bad := tartarus.Errorf(tartarus.Invalid, "nextToken is none that this server gave")
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(token, "="))
	if err != nil || len(raw) > 128 {
		return hades.Cursor{}, bad
	}
	at, id, ok := strings.Cut(string(raw), "__")
	if !ok || !tartarus.ValidID(id) {
		return hades.Cursor{}, bad
	}
	t, err := time.Parse(time.RFC3339Nano, at)
	if err != nil || !countable(t).Equal(t) {
		return hades.Cursor{}, bad
	}
	return hades.Cursor{StartedAt: t, ID: id}, nil
}

// The first and last time that a count of nanoseconds since 1970 in 64 bits can name to the full year: stores order by such counts.
var (
	firstTime = time.Date(1678, 1, 1, 0, 0, 0, 0, time.UTC)
	lastTime  = time.Date(2262, 1, 1, 0, 0, 0, 0, time.UTC)
)

// countable moves a time that no sandbox was started at into the range of those that can be compared.
func countable(t time.Time) time.Time {
	switch {
	case t.Before(firstTime):
		return firstTime
	case t.After(lastTime):
		return lastTime
	}
	return t
}

// totals counts the running sandboxes of tenants for the header of a listing.
type totals struct {
	registry hades.Registry
	known    *recent.Cache[string, int]
}

// The count is at most totalTTL old, and is not told when it would take more than totalPages pages of the registry to make.
const (
	totalTTL   = 2 * time.Second
	totalPages = 5
)

func newTotals(registry hades.Registry) *totals {
	return &totals{registry: registry, known: recent.New[string, int](1024, totalTTL)}
}

func (t *totals) running(ctx context.Context, tenant string, now time.Time) (int, bool) {
	n, ok := t.known.Get(tenant, now)
	if !ok {
		n = t.count(ctx, tenant)
		t.known.Put(tenant, n, now)
	}
	return n, n >= 0
}

// count walks the pages; -1 means that there are too many, or that the registry did not answer.
func (t *totals) count(ctx context.Context, tenant string) int {
	q := hades.Query{Tenant: tenant, Phases: runningPhases, Limit: maxListV1}
	n := 0
	for range totalPages {
		page, err := t.registry.ListSandboxes(ctx, q)
		if err != nil {
			return -1
		}
		n += len(page.Sandboxes)
		if page.Next == (hades.Cursor{}) {
			return n
		}
		q.After = page.Next
	}
	return -1
}
