// Package client is the Go client of Tartarus' public API. Every error it returns for an answer of the server is a
// *tartarus.Error with the Kind that the server meant, so that callers decide by kind and never by status or text.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// Config says which server to talk to and as whom.
type Config struct {
	// URL is the API's address, such as http://127.0.0.1:7300. Traffic to sandboxes goes there too, routed by headers.
	URL string
	// APIKey is sent with every control-plane call.
	APIKey string
	// Transport carries the requests; nil makes one of its own.
	Transport http.RoundTripper
	// UserAgent names the program; empty is "tartarus-go".
	UserAgent string
}

// Client calls one server. It is safe for concurrent use.
type Client struct {
	base      *url.URL
	key       string
	userAgent string
	http      *http.Client
	transport http.RoundTripper
}

// maxBody bounds what is read of one answer; a page of 100 sandboxes with full metadata stays far below.
const maxBody = 32 << 20

// New makes a client; it connects to nothing.
func New(cfg Config) (*Client, error) {
	u, err := url.Parse(strings.TrimRight(cfg.URL, "/"))
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Invalid, "parse server URL %q: %w", cfg.URL, err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, tartarus.Errorf(tartarus.Invalid, "server URL %q is not http://host:port or https://host:port", cfg.URL)
	}
	c := &Client{base: u, key: cfg.APIKey, userAgent: cfg.UserAgent, transport: cfg.Transport}
	if c.userAgent == "" {
		c.userAgent = "tartarus-go"
	}
	if c.transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = 64 // one host serves all sandboxes: the default of 2 would open connections all the time
		c.transport = t
	}
	c.http = &http.Client{Transport: c.transport}
	return c, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Health reports whether the server answers.
func (c *Client) Health(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/health", nil, nil, nil, nil)
}

// do sends one call. in is sent as JSON unless nil, a success is decoded into out unless nil, and its headers are copied to got.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, header http.Header, in, out any) error {
	_, err := c.call(ctx, method, path, query, header, in, out)
	return err
}

func (c *Client) call(ctx context.Context, method, path string, query url.Values, header http.Header, in, out any) (http.Header, error) {
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return nil, tartarus.Errorf(tartarus.Invalid, "encode request: %w", err)
		}
		body = bytes.NewReader(raw)
	}
	u := *c.base
	if plain, err := url.PathUnescape(path); err == nil && plain != path { // a name in it has a slash of its own
		u.RawPath = u.EscapedPath() + path
		u.Path += plain
	} else {
		u.Path += path
	}
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Invalid, "make request: %w", err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", c.userAgent)
	if c.key != "" {
		req.Header.Set(api.HeaderKey, c.key)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if len(raw) > maxBody {
		return nil, tartarus.Errorf(tartarus.TooLarge, "%s %s: the answer is over %d bytes", method, path, maxBody)
	}
	if res.StatusCode >= 300 {
		return nil, answerError(res.StatusCode, res.Header, raw)
	}
	if out != nil {
		if err := json.Unmarshal(raw, out); err != nil {
			return nil, tartarus.Errorf(tartarus.Internal, "%s %s: the answer is not what was expected: %w", method, path, err)
		}
	}
	return res.Header, nil
}

// unreachable tells a caller's own end from a server that is away.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		if cause == context.DeadlineExceeded {
			return tartarus.Errorf(tartarus.Deadline, "wait for %s: %w", c.base.Host, err)
		}
		return fmt.Errorf("wait for %s: %w", c.base.Host, cause)
	}
	return tartarus.Errorf(tartarus.Unavailable, "reach %s: %w", c.base.Host, err)
}

func seconds(d time.Duration) *int64 {
	// Rounded up: a timeout of half a second must not become one of none.
	s := int64((d + time.Second - 1) / time.Second)
	return &s
}
