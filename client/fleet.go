package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/tartarus-sandbox/tartarus/api"
)

// NodeToken makes a token that lets one node join the fleet, once. With a name only that node may use it; a life of 0 is the server's default.
func (c *Client) NodeToken(ctx context.Context, node string, life time.Duration) (api.Token, error) {
	in := api.TokenRequest{Node: node}
	if life > 0 {
		in.Seconds = *seconds(life)
	}
	var out api.Token
	return out, c.do(ctx, http.MethodPost, "/fleet/tokens", nil, http.Header{}, in, &out)
}

// Node returns one node.
func (c *Client) Node(ctx context.Context, name string) (api.Node, error) {
	var out api.Node
	return out, c.do(ctx, http.MethodGet, nodePath(name), nil, http.Header{}, nil, &out)
}

func nodePath(name string) string { return "/nodes/" + name }

// Cordon says whether a node takes nothing new.
func (c *Client) Cordon(ctx context.Context, name string, on bool) error {
	verb := "/uncordon"
	if on {
		verb = "/cordon"
	}
	return c.do(ctx, http.MethodPost, nodePath(name)+verb, nil, http.Header{}, nil, nil)
}

// Label sets labels of a node; nil takes one away.
func (c *Client) Label(ctx context.Context, name string, labels api.LabelsChange) error {
	return c.do(ctx, http.MethodPatch, nodePath(name)+"/labels", nil, http.Header{}, labels, nil)
}

// Drain does one step of emptying a node and says what is left. With end, what is left is ended.
func (c *Client) Drain(ctx context.Context, name string, in api.DrainRequest) (api.Drain, error) {
	var out api.Drain
	return out, c.do(ctx, http.MethodPost, nodePath(name)+"/drain", nil, http.Header{}, in, &out)
}

// RemoveNode takes a node out of the fleet. While sandboxes are paused there that is a conflict, unless they may be lost.
func (c *Client) RemoveNode(ctx context.Context, name string, lose bool) error {
	q := url.Values{}
	if lose {
		q.Set("lose", "true")
	}
	return c.do(ctx, http.MethodDelete, nodePath(name), q, http.Header{}, nil, nil)
}

// Jobs lists queued work in a state: waiting, leased, done, dead or cancelled. A limit of 0 is the server's default.
func (c *Client) Jobs(ctx context.Context, state string, limit int) ([]api.Job, error) {
	q := url.Values{"state": {state}}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	var out []api.Job
	return out, c.do(ctx, http.MethodGet, "/queue", q, http.Header{}, nil, &out)
}

// Job returns one job.
func (c *Client) Job(ctx context.Context, id string) (api.Job, error) {
	var out api.Job
	return out, c.do(ctx, http.MethodGet, "/queue/"+id, nil, http.Header{}, nil, &out)
}

// Requeue lets a dead job wait again.
func (c *Client) Requeue(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodPost, "/queue/"+id+"/requeue", nil, http.Header{}, nil, nil)
}

// CancelJob calls a job off.
func (c *Client) CancelJob(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodPost, "/queue/"+id+"/cancel", nil, http.Header{}, nil, nil)
}

// PurgeJobs forgets jobs that ended longer ago than age.
func (c *Client) PurgeJobs(ctx context.Context, age time.Duration) (int, error) {
	var out api.Purged
	err := c.do(ctx, http.MethodPost, "/queue/purge", nil, http.Header{}, api.PurgeRequest{OlderThanSeconds: *seconds(age)}, &out)
	return out.Purged, err
}
