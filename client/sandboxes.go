package client

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// CreateOptions are beside the body of a create.
type CreateOptions struct {
	// IdempotencyKey makes a repeated create give the same sandbox: 1 to 255 of a-z, 0-9 and -.
	IdempotencyKey string
}

// Create makes a sandbox and returns when it runs. It uses the second version of the call: the sandbox is always secured, and
// Timeout defaults to 300 s.
func (c *Client) Create(ctx context.Context, in api.NewSandbox, opt CreateOptions) (*api.Sandbox, error) {
	h := http.Header{}
	if opt.IdempotencyKey != "" {
		h.Set(api.HeaderIdempotency, opt.IdempotencyKey)
	}
	var out api.Sandbox
	if err := c.do(ctx, http.MethodPost, "/v2/sandboxes", nil, h, in, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Get describes a sandbox. An ended one is tartarus.NotFound; use GetEnded where its end matters.
func (c *Client) Get(ctx context.Context, id string) (*api.SandboxDetail, error) {
	return c.get(ctx, id, nil)
}

// GetEnded is Get, but also finds sandboxes that ended, while the server remembers them.
func (c *Client) GetEnded(ctx context.Context, id string) (*api.SandboxDetail, error) {
	return c.get(ctx, id, url.Values{"ended": {"true"}})
}

func (c *Client) get(ctx context.Context, id string, q url.Values) (*api.SandboxDetail, error) {
	var out api.SandboxDetail
	if err := c.do(ctx, http.MethodGet, "/sandboxes/"+url.PathEscape(id), q, nil, nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// ListOptions select sandboxes. Zero fields do not restrict.
type ListOptions struct {
	States       []string // running and paused when empty; any phase may be asked for
	Metadata     map[string]string
	Template     string
	StartedAfter time.Time
	Ascending    bool   // oldest first
	PageSize     int    // 1..100; 0 means 100
	PageToken    string // continues behind an earlier page
}

func (o ListOptions) query() url.Values {
	q := url.Values{}
	if len(o.States) > 0 {
		q.Set("state", strings.Join(o.States, ","))
	}
	if len(o.Metadata) > 0 {
		m := url.Values{}
		for k, v := range o.Metadata {
			// The protocol unescapes keys and values once more after it has parsed the query inside the query.
			m.Set(url.PathEscape(k), url.PathEscape(v))
		}
		q.Set("metadata", m.Encode())
	}
	if o.Template != "" {
		q.Set("template", o.Template)
	}
	if !o.StartedAfter.IsZero() {
		q.Set("startedAfter", o.StartedAfter.UTC().Format(time.RFC3339Nano))
	}
	if o.Ascending {
		q.Set("order", "asc")
	}
	if o.PageSize > 0 {
		q.Set("limit", strconv.Itoa(o.PageSize))
	}
	if o.PageToken != "" {
		q.Set("nextToken", o.PageToken)
	}
	return q
}

// ListPage returns one page and the token of the next, empty at the end.
func (c *Client) ListPage(ctx context.Context, o ListOptions) (page []api.ListedSandbox, next string, err error) {
	h, err := c.call(ctx, http.MethodGet, "/v2/sandboxes", o.query(), nil, nil, &page)
	if err != nil {
		return nil, "", err
	}
	return page, h.Get(api.HeaderNextToken), nil
}

// List yields all sandboxes, page after page. An error ends it.
func (c *Client) List(ctx context.Context, o ListOptions) iter.Seq2[api.ListedSandbox, error] {
	return func(yield func(api.ListedSandbox, error) bool) {
		for {
			page, next, err := c.ListPage(ctx, o)
			if err != nil {
				yield(api.ListedSandbox{}, err)
				return
			}
			for _, sb := range page {
				if !yield(sb, nil) {
					return
				}
			}
			if next == "" || next == o.PageToken {
				return
			}
			o.PageToken = next
		}
	}
}

// Kill ends a sandbox. One that is not there is tartarus.NotFound.
func (c *Client) Kill(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/sandboxes/"+url.PathEscape(id), nil, nil, nil, nil)
}

// KillOptions say how a sandbox is ended.
type KillOptions struct {
	// Grace is how long the guest has to end in good order; nil is what the sandbox, its template and the server say.
	Grace *time.Duration
	// Checkpoint keeps a snapshot of it; when that fails it runs on.
	Checkpoint bool
	// Logs waits until its whole log is kept.
	Logs bool
}

// Terminate ends a sandbox as o says, and returns when it is gone. When ctx ends first, the termination goes on. One that somebody cancels meanwhile
// is tartarus.Conflict.
func (c *Client) Terminate(ctx context.Context, id string, o KillOptions) error {
	q := url.Values{}
	if o.Grace != nil {
		q.Set("grace", o.Grace.String())
	}
	if o.Checkpoint {
		q.Set("checkpoint", "true")
	}
	if o.Logs {
		q.Set("logs", "true")
	}
	return c.do(ctx, http.MethodDelete, "/sandboxes/"+url.PathEscape(id), q, nil, nil, nil)
}

// CancelTermination lets a sandbox live on that is about to end. Where nothing is pending, or too late, it is tartarus.Conflict.
func (c *Client) CancelTermination(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/sandboxes/"+url.PathEscape(id)+"/termination", nil, nil, nil, nil)
}

// Quarantine cuts a running sandbox off, freezes it and keeps evidence. It needs an operator's key.
func (c *Client) Quarantine(ctx context.Context, id, reason string) (*api.Quarantined, error) {
	out := new(api.Quarantined)
	return out, c.do(ctx, http.MethodPost, "/sandboxes/"+url.PathEscape(id)+"/quarantine", nil, nil, api.QuarantineRequest{Reason: reason}, out)
}

// Quarantines lists what is in quarantine, of all tenants.
func (c *Client) Quarantines(ctx context.Context) ([]api.Quarantined, error) {
	var out []api.Quarantined
	err := c.do(ctx, http.MethodGet, "/quarantine", nil, nil, nil, &out)
	return out, err
}

// Evidence returns what was found in a sandbox in quarantine, with what the audit log knows of it, as a JSON document.
func (c *Client) Evidence(ctx context.Context, id string) (json.RawMessage, error) {
	var out json.RawMessage
	err := c.do(ctx, http.MethodGet, "/quarantine/"+url.PathEscape(id), nil, nil, nil, &out)
	return out, err
}

// Release lets a sandbox in quarantine go on. It needs the key of another operator than the one who put it there.
func (c *Client) Release(ctx context.Context, id, reason string) error {
	return c.do(ctx, http.MethodPost, "/quarantine/"+url.PathEscape(id)+"/release", nil, nil, api.QuarantineRequest{Reason: reason}, nil)
}

// Examine looks at the disk of a sandbox in quarantine, in a new machine without network.
func (c *Client) Examine(ctx context.Context, id string) (*tartarus.Inspection, error) {
	var out tartarus.Inspection
	if err := c.do(ctx, http.MethodPost, "/quarantine/"+url.PathEscape(id)+"/inspections", nil, nil, nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Destroy ends a sandbox in quarantine. Its evidence stays.
func (c *Client) Destroy(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/quarantine/"+url.PathEscape(id), nil, nil, nil, nil)
}

// SetTimeout moves the end of a sandbox to d from now, later or earlier.
func (c *Client) SetTimeout(ctx context.Context, id string, d time.Duration) error {
	return c.do(ctx, http.MethodPost, "/sandboxes/"+url.PathEscape(id)+"/timeout", nil, nil, api.TimeoutRequest{Timeout: seconds(d)}, nil)
}

// Connect returns a sandbox with its tokens and extends its time to at least d from now; 0 means 300 s. It never shortens.
func (c *Client) Connect(ctx context.Context, id string, d time.Duration) (*api.Sandbox, error) {
	var in api.ConnectRequest
	if d > 0 {
		in.Timeout = seconds(d)
	}
	var out api.Sandbox
	if err := c.do(ctx, http.MethodPost, "/v2/sandboxes/"+url.PathEscape(id)+"/connect", nil, nil, in, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// SetNetwork replaces the egress rules of a sandbox; what is absent is cleared.
func (c *Client) SetNetwork(ctx context.Context, id string, n api.NetworkConfig) error {
	return c.do(ctx, http.MethodPut, "/sandboxes/"+url.PathEscape(id)+"/network", nil, nil, n, nil)
}

// Metrics returns the kept measurements of a sandbox, oldest first. Zero times do not restrict.
func (c *Client) Metrics(ctx context.Context, id string, start, end time.Time) ([]api.Metric, error) {
	q := url.Values{}
	if !start.IsZero() {
		q.Set("start", strconv.FormatInt(start.Unix(), 10))
	}
	if !end.IsZero() {
		q.Set("end", strconv.FormatInt(end.Unix(), 10))
	}
	var out []api.Metric
	err := c.do(ctx, http.MethodGet, "/sandboxes/"+url.PathEscape(id)+"/metrics", q, nil, nil, &out)
	return out, err
}

// MetricsOf returns the newest measurement of each of at most 100 sandboxes that has one.
func (c *Client) MetricsOf(ctx context.Context, ids ...string) (map[string]api.Metric, error) {
	var out api.SandboxesMetrics
	err := c.do(ctx, http.MethodGet, "/sandboxes/metrics", url.Values{"sandbox_ids": {strings.Join(ids, ",")}}, nil, nil, &out)
	return out.Sandboxes, err
}

// LogOptions select log entries.
type LogOptions struct {
	Since  time.Time // zero is the start of the log
	Level  string    // least severe level wanted
	Search string    // text that the message contains
	Follow bool      // go on until the sandbox has ended
}

// followEvery is the pause between two looks at a quiet log: short for a person who watches, long for the server.
const followEvery = 500 * time.Millisecond

// Logs yields a sandbox's log, oldest first. An error ends it.
func (c *Client) Logs(ctx context.Context, id string, o LogOptions) iter.Seq2[api.LogEntry, error] {
	return func(yield func(api.LogEntry, error) bool) {
		ended := false
		for {
			entries, err := c.logPage(ctx, id, o)
			if err != nil {
				if o.Follow && ended && tartarus.Is(err, tartarus.NotFound) {
					return
				}
				yield(api.LogEntry{}, err)
				return
			}
			for _, e := range entries {
				if !yield(e, nil) {
					return
				}
				o.Since = e.Timestamp.Add(1)
			}
			if len(entries) > 0 {
				continue
			}
			if !o.Follow || ended {
				return
			}
			// What was written before the end must still be read after it: one more look follows.
			switch _, err := c.Get(ctx, id); {
			case tartarus.Is(err, tartarus.NotFound):
				ended = true
				continue
			case err != nil:
				yield(api.LogEntry{}, err)
				return
			}
			select {
			case <-ctx.Done():
				yield(api.LogEntry{}, ctx.Err())
				return
			case <-time.After(followEvery):
			}
		}
	}
}

func (c *Client) logPage(ctx context.Context, id string, o LogOptions) ([]api.LogEntry, error) {
	q := url.Values{"limit": {"1000"}, "direction": {"forward"}}
	if !o.Since.IsZero() {
		q.Set("cursor", o.Since.UTC().Format(time.RFC3339Nano))
	}
	if o.Level != "" {
		q.Set("level", o.Level)
	}
	if o.Search != "" {
		q.Set("search", o.Search)
	}
	var out api.Logs
	err := c.do(ctx, http.MethodGet, "/v2/sandboxes/"+url.PathEscape(id)+"/logs", q, nil, nil, &out)
	return out.Logs, err
}

// Templates lists the templates that may be used.
func (c *Client) Templates(ctx context.Context) ([]api.Template, error) {
	var out []api.Template
	err := c.do(ctx, http.MethodGet, "/templates", nil, nil, nil, &out)
	return out, err
}

// Nodes lists the nodes; it needs an operator's key.
func (c *Client) Nodes(ctx context.Context) ([]api.Node, error) {
	var out []api.Node
	err := c.do(ctx, http.MethodGet, "/nodes", nil, nil, nil, &out)
	return out, err
}

// Place says where a sandbox would go and why, and makes none.
func (c *Client) Place(ctx context.Context, in api.NewSandbox) (*api.Placement, error) {
	var out api.Placement
	if err := c.do(ctx, http.MethodPost, "/placements", nil, nil, in, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Teams lists the tenants that the key belongs to.
func (c *Client) Teams(ctx context.Context) ([]api.Team, error) {
	var out []api.Team
	err := c.do(ctx, http.MethodGet, "/teams", nil, nil, nil, &out)
	return out, err
}
