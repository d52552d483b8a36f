package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/tartarus-sandbox/tartarus/api"
)

// PauseOptions say how a sandbox is paused.
type PauseOptions struct {
	DiskOnly bool // keep the files only: it boots anew when it comes back
	Strict   bool // refuse where the guest agent does not answer
}

// Pause writes a running sandbox to disk and frees its memory; Connect brings it back.
func (c *Client) Pause(ctx context.Context, id string) error {
	return c.PauseWith(ctx, id, PauseOptions{})
}

// PauseWith is Pause as o says.
func (c *Client) PauseWith(ctx context.Context, id string, o PauseOptions) error {
	in := api.PauseRequest{RequireHealthyGuest: o.Strict}
	if o.DiskOnly {
		in.Memory = new(bool)
	}
	return c.do(ctx, http.MethodPost, "/sandboxes/"+url.PathEscape(id)+"/pause", nil, nil, in, nil)
}

// Reboot brings a paused sandbox back from its disk alone, whatever was kept, and otherwise does what Connect does.
func (c *Client) Reboot(ctx context.Context, id string, d time.Duration) (*api.Sandbox, error) {
	in := api.ConnectRequest{Memory: new(bool)}
	if d > 0 {
		in.Timeout = seconds(d)
	}
	var out api.Sandbox
	if err := c.do(ctx, http.MethodPost, "/v2/sandboxes/"+url.PathEscape(id)+"/connect", nil, nil, in, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Fork makes clones of a running sandbox, which goes on. Each succeeds or fails by itself; 0 for the time means 15 s.
func (c *Client) Fork(ctx context.Context, id string, count int, d time.Duration) ([]api.ForkResult, error) {
	n := int64(count)
	in := api.ForkRequest{Count: &n}
	if d > 0 {
		in.Timeout = seconds(d)
	}
	var out []api.ForkResult
	err := c.do(ctx, http.MethodPost, "/sandboxes/"+url.PathEscape(id)+"/fork", nil, nil, in, &out)
	return out, err
}

// Snapshot takes a snapshot of a running sandbox, which goes on. Its SnapshotID serves as templateID of a create. The name, with or without a tag, may be
// empty.
func (c *Client) Snapshot(ctx context.Context, id, name string, diskOnly bool) (*api.Snapshot, error) {
	in := api.SnapshotRequest{Name: name}
	if diskOnly {
		in.Memory = new(bool)
	}
	var out api.Snapshot
	if err := c.do(ctx, http.MethodPost, "/sandboxes/"+url.PathEscape(id)+"/snapshots", nil, nil, in, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// SnapshotOptions say which snapshots are listed. Empty fields do not restrict.
type SnapshotOptions struct {
	SandboxID string
	Name      string // with or without a tag
	PageSize  int    // 1..100; 0 means 100
}

// Snapshots lists snapshots, the newest first.
func (c *Client) Snapshots(ctx context.Context, o SnapshotOptions) ([]api.Snapshot, error) {
	q := url.Values{}
	for k, v := range map[string]string{"sandboxID": o.SandboxID, "name": o.Name} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if o.PageSize > 0 {
		q.Set("limit", strconv.Itoa(o.PageSize))
	}
	all := []api.Snapshot{}
	for {
		var page []api.Snapshot
		h, err := c.call(ctx, http.MethodGet, "/snapshots", q, nil, nil, &page)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		next := h.Get(api.HeaderNextToken)
		if next == "" || next == q.Get("nextToken") {
			return all, nil
		}
		q.Set("nextToken", next)
	}
}

// GetSnapshot describes a snapshot, and how far its copy is.
func (c *Client) GetSnapshot(ctx context.Context, ref string) (*api.Snapshot, error) {
	var out api.Snapshot
	if err := c.do(ctx, http.MethodGet, "/snapshots/"+url.PathEscape(ref), nil, nil, nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// VerifySnapshot compares all of a snapshot with its digests; what is damaged is tartarus.Conflict with a sentence that names it.
func (c *Client) VerifySnapshot(ctx context.Context, ref string) (*api.Snapshot, error) {
	var out api.Snapshot
	if err := c.do(ctx, http.MethodPost, "/snapshots/"+url.PathEscape(ref)+"/verify", nil, nil, nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// RemoveSnapshot removes a snapshot. Sandboxes that were made from it live on.
func (c *Client) RemoveSnapshot(ctx context.Context, ref string) error {
	return c.do(ctx, http.MethodDelete, "/templates/"+url.PathEscape(ref), nil, nil, nil, nil)
}
