package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// CreateVolume makes an empty volume.
func (c *Client) CreateVolume(ctx context.Context, name string) (*api.VolumeAndToken, error) {
	var out api.VolumeAndToken
	if err := c.do(ctx, http.MethodPost, "/volumes", nil, nil, api.NewVolume{Name: name}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Volumes lists the tenant's volumes by name.
func (c *Client) Volumes(ctx context.Context) (all []api.Volume, err error) {
	err = c.do(ctx, http.MethodGet, "/volumes", nil, nil, nil, &all)
	return all, err
}

// RemoveVolume removes a volume, by id or name, and all that is in it.
func (c *Client) RemoveVolume(ctx context.Context, volume string) error {
	return c.do(ctx, http.MethodDelete, "/volumes/"+url.PathEscape(volume), nil, nil, nil, nil)
}

// Volume reaches into one volume, with a token of its own.
type Volume struct {
	api.VolumeAndToken
	client *Client
}

// Volume finds a volume by id or name.
func (c *Client) Volume(ctx context.Context, volume string) (*Volume, error) {
	v := &Volume{client: c}
	if err := c.do(ctx, http.MethodGet, "/volumes/"+url.PathEscape(volume), nil, nil, nil, &v.VolumeAndToken); err != nil {
		return nil, err
	}
	return v, nil
}

func (v *Volume) header() http.Header { return http.Header{"Authorization": {"Bearer " + v.Token}} }

func (v *Volume) path(what string) string {
	return "/volumecontent/" + url.PathEscape(v.VolumeID) + "/" + what
}

// List gives the entries of a folder, down to a depth of at least 1.
func (v *Volume) List(ctx context.Context, path string, depth int) (out []api.VolumeEntry, err error) {
	q := url.Values{"path": {path}, "depth": {strconv.Itoa(depth)}}
	err = v.client.do(ctx, http.MethodGet, v.path("dir"), q, v.header(), nil, &out)
	return out, err
}

// Remove removes a file, or a folder with all that is in it.
func (v *Volume) Remove(ctx context.Context, path string) error {
	return v.client.do(ctx, http.MethodDelete, v.path("path"), url.Values{"path": {path}}, v.header(), nil, nil)
}

// Put writes a file as a whole, and the folders above it.
func (v *Volume) Put(ctx context.Context, path string, r io.Reader) error {
	res, err := v.stream(ctx, http.MethodPut, url.Values{"path": {path}, "force": {"true"}}, io.NopCloser(r))
	if err != nil {
		return err
	}
	return res.Close()
}

// Get reads a file. The caller closes it.
func (v *Volume) Get(ctx context.Context, path string) (io.ReadCloser, error) {
	return v.stream(ctx, http.MethodGet, url.Values{"path": {path}}, nil)
}

// stream is a call whose body, or answer, may be of any length.
func (v *Volume) stream(ctx context.Context, method string, q url.Values, body io.Reader) (io.ReadCloser, error) {
	u := *v.client.base
	u.Path += v.path("file")
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Invalid, "make request: %w", err)
	}
	req.Header = v.header()
	req.Header.Set("User-Agent", v.client.userAgent)
	if body != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	res, err := v.client.http.Do(req)
	if err != nil {
		return nil, v.client.unreachable(ctx, err)
	}
	if res.StatusCode >= 300 {
		defer res.Body.Close()
		raw, _ := io.ReadAll(io.LimitReader(res.Body, maxBody)) // what cannot be read says nothing
		return nil, answerError(res.StatusCode, res.Header, raw)
	}
	return res.Body, nil
}
