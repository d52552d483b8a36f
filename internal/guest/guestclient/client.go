// Package guestclient is the host's end of the guest agent. What it reads comes out of a sandbox, so nothing of it is
// trusted: every answer is bounded, and an error carries a tartarus.Kind, whatever the guest said.
package guestclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api/gen/filesystem/filesystemconnect"
	"github.com/tartarus-sandbox/tartarus/api/gen/process/processconnect"
	"github.com/tartarus-sandbox/tartarus/internal/guest/hostapi"
	"github.com/tartarus-sandbox/tartarus/internal/volume/wire"
)

// The bodies of host-only routes, under the names callers know them by.
type (
	Init       = hostapi.Init
	Metrics    = hostapi.Metrics
	LogEntry   = hostapi.LogEntry
	Terminate  = hostapi.Terminate
	Terminated = hostapi.Terminated
)

// Config says where the agent is. Either Addr is set, for a node that reaches the guest's address itself, or BaseURL, for
// everybody else.
type Config struct {
	Addr    netip.Addr
	Port    int    // tartarus.AgentPort when 0
	BaseURL string // without a trailing slash
	// RoundTripper carries the requests; nil makes one of the client's own, which dials with Dial.
	RoundTripper http.RoundTripper
	// Dial opens connections; nil is an ordinary dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Token is sent as X-Access-Token where it is not empty.
	Token string
}

// Client talks to one agent. It is safe for concurrent use.
type Client struct {
	base  string
	token string
	addr  string // host:port for Dial
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
	own   *http.Transport // nil when the caller brought its own
	http  *http.Client
	procs processconnect.ProcessClient
	fs    filesystemconnect.FilesystemClient
}

// maxAnswer bounds what is read of an answer that is not a stream: a listing of 100,000 files is some 40 MB.
const maxAnswer = 64 << 20

// New makes a Client. It opens nothing.
func New(c Config) *Client {
	if c.Port == 0 {
		c.Port = tartarus.AgentPort
	}
	cl := &Client{base: c.BaseURL, token: c.Token, dial: c.Dial}
	if cl.dial == nil {
		cl.dial = (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	}
	if cl.base == "" {
		cl.addr = netip.AddrPortFrom(c.Addr, uint16(c.Port)).String()
		cl.base = "http://" + cl.addr
	}
	transport := c.RoundTripper
	if transport == nil {
		cl.own = &http.Transport{
			DialContext:         cl.dial,
			MaxIdleConnsPerHost: 16, // as many execs at once reuse their connection; the others dial, 0.4 ms
			IdleConnTimeout:     5 * time.Minute,
			DisableCompression:  true, // files travel as they are; the way is a local one
		}
		transport = cl.own
	}
	cl.connect(transport)
	return cl
}

// connect has the client's calls go over transport.
func (c *Client) connect(transport http.RoundTripper) {
	c.http = &http.Client{
		Transport: authorized{transport, c.token},
		// Tokens do not follow where a guest points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	options := []connect.ClientOption{connect.WithReadMaxBytes(maxAnswer), connect.WithAcceptCompression("gzip", nil, nil)}
	c.procs = processconnect.NewProcessClient(c.http, c.base, options...)
	c.fs = filesystemconnect.NewFilesystemClient(c.http, c.base, options...)
}

// As is a client of the same agent that sends another token, over the same connections. It is closed by closing either.
func (c *Client) As(token string) *Client {
	out := *c
	out.token = token
	next := c.http.Transport.(authorized).next
	out.connect(next)
	return &out
}

// Close closes idle connections. Calls that run go on.
func (c *Client) Close() {
	if c.own != nil {
		c.own.CloseIdleConnections()
	}
}

// authorized adds the token to every request, and guards what comes back.
type authorized struct {
	next  http.RoundTripper
	token string
}

func (a authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.token != "" && r.Header.Get("X-Access-Token") == "" {
		r = r.Clone(r.Context())
		r.Header.Set("X-Access-Token", a.token)
	}
	res, err := a.next.RoundTrip(r)
	if err == nil {
		guard(r, res)
	}
	return res, err
}

// Health returns nil when the agent answers.
func (c *Client) Health(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, "/health", nil, nil)
}

// Envs are the variables that every process of the guest starts with.
func (c *Client) Envs(ctx context.Context) (env map[string]string, err error) {
	err = c.call(ctx, http.MethodGet, "/envs", nil, &env)
	return env, err
}

// Init tells the guest who it is. It may be repeated.
func (c *Client) Init(ctx context.Context, in Init) error {
	return c.call(ctx, http.MethodPost, "/init", in, nil)
}

// Pauses of InitWhenUp. A guest that starts cold needs some 50 ms, so looking again soon is what counts.
const (
	firstPause = time.Millisecond
	lastPause  = 20 * time.Millisecond
	oneTry     = 2 * time.Second // a connection attempt that the guest's network dropped takes this long to be repeated
)

// InitWhenUp is Init as soon as the agent answers. It fails when ctx ends or when the agent refuses.
func (c *Client) InitWhenUp(ctx context.Context, in Init) error {
	return whenUp(ctx, func() error { return c.tryInit(ctx, in) })
}

// HealthWhenUp returns nil as soon as the agent answers. It fails when ctx ends.
func (c *Client) HealthWhenUp(ctx context.Context) error {
	return whenUp(ctx, func() error {
		try, cancel := context.WithTimeout(ctx, oneTry)
		defer cancel()
		err := c.Health(try)
		if err != nil && try.Err() != nil && ctx.Err() == nil {
			return tartarus.Errorf(tartarus.GuestGone, "health: %w", err)
		}
		return err
	})
}

// whenUp tries until the agent answers.
func whenUp(ctx context.Context, try func() error) error {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := try()
		if !tartarus.Is(err, tartarus.GuestGone) {
			return err
		}
		select {
		case <-ctx.Done():
			return tartarus.Errorf(tartarus.Deadline, "the guest agent did not answer: %w", err)
		case <-time.After(pause):
		}
	}
}

func (c *Client) tryInit(ctx context.Context, in Init) error {
	try, cancel := context.WithTimeout(ctx, oneTry)
	defer cancel()
	if !in.Timestamp.IsZero() {
		in.Timestamp = time.Now() // it may have waited
	}
	err := c.Init(try, in)
	if err != nil && try.Err() != nil && ctx.Err() == nil {
		return tartarus.Errorf(tartarus.GuestGone, "init: %w", err)
	}
	return err
}

// Metrics reads what the guest uses.
func (c *Client) Metrics(ctx context.Context) (Metrics, error) {
	var m Metrics
	return m, c.call(ctx, http.MethodGet, "/metrics", nil, &m)
}

// Shutdown ends every process of the guest and returns those that it could not end.
func (c *Client) Shutdown(ctx context.Context, grace time.Duration) ([]int, error) {
	var out hostapi.Alive
	err := c.call(ctx, http.MethodPost, "/shutdown", hostapi.Shutdown{GraceMs: grace.Milliseconds()}, &out)
	return out.Alive, err
}

// Terminate runs the guest's hooks and asks everyone in it to end. It returns when they have or when their grace is over; nothing is killed. An
// agent that is older than this route is tartarus.NotFound.
func (c *Client) Terminate(ctx context.Context, in Terminate) (Terminated, error) {
	var out Terminated
	return out, c.call(ctx, http.MethodPost, "/terminate", in, &out)
}

// maxLogLine bounds one line of a journal: 2 KiB of message, all of it escaped, and its fields.
const maxLogLine = 64 << 10

// Logs hands entries with numbers above since to each, oldest first, at most limit of them (0: all). With follow it goes on
// until ctx ends, which is then no error. It stops when each returns an error, and returns that.
func (c *Client) Logs(ctx context.Context, since int64, limit int, follow bool, each func(LogEntry) error) error {
	path := "/logs?since=" + strconv.FormatInt(since, 10)
	if limit > 0 {
		path += "&limit=" + strconv.Itoa(limit)
	}
	if follow {
		path += "&follow=1"
	}
	res, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	bounded := &perLine{r: res.Body, left: maxLogLine}
	for lines := json.NewDecoder(bounded); ; {
		var e LogEntry
		switch err := lines.Decode(&e); {
		case errors.Is(err, io.EOF), err != nil && follow && ctx.Err() != nil:
			return nil
		case err != nil:
			return transportError("read logs", err)
		}
		bounded.left = maxLogLine
		if err := each(e); err != nil {
			return err
		}
	}
}

// perLine ends a stream on which one line is larger than what was agreed.
type perLine struct {
	r    io.Reader
	left int
}

func (p *perLine) Read(b []byte) (int, error) {
	if p.left <= 0 {
		return 0, tartarus.Errorf(tartarus.TooLarge, "a log line is over %d bytes", maxLogLine)
	}
	n, err := p.r.Read(b[:min(len(b), p.left)])
	p.left -= n
	return n, err
}

// maxInspection bounds what a guest may show of itself: twice what the agent's own bounds come to.
const maxInspection = 16 << 20

// Inspect asks what goes on in the guest, and which files changed since then. The agent looks for as long as within.
func (c *Client) Inspect(ctx context.Context, since time.Time, within time.Duration) (in tartarus.Inspection, err error) {
	res, err := c.do(ctx, http.MethodGet, fmt.Sprintf("/inspect?since=%d&within=%d", since.Unix(), within.Milliseconds()), nil)
	if err != nil {
		return in, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxInspection))
	if err != nil {
		return in, transportError("inspect", err)
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return in, tartarus.Errorf(tartarus.Internal, "inspect: the guest's answer is not understood: %w", err)
	}
	return in, nil
}

// call sends a JSON body and decodes a JSON answer; both may be nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	res, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxMessage))
	if err != nil {
		return transportError(path, err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return tartarus.Errorf(tartarus.Internal, "%s: the guest's answer is not understood: %w", path, err)
	}
	return nil
}

const maxMessage = 1 << 20

// do sends a request and returns a response of the 200s, whose body the caller closes.
func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.send(req)
}

func (c *Client) send(req *http.Request) (*http.Response, error) {
	what := req.Method + " " + req.URL.Path
	res, err := c.http.Do(req)
	if err != nil {
		return nil, transportError(what, err)
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close()
	return nil, statusError(what, res)
}

// Tunnel connects to a port of the guest's loopback address. Where nobody listens it is tartarus.PortClosed.
func (c *Client) Tunnel(ctx context.Context, port int) (net.Conn, error) {
	if c.addr == "" {
		return nil, tartarus.Errorf(tartarus.Unsupported, "a tunnel needs the guest's address")
	}
	conn, err := c.dial(ctx, "tcp", c.addr)
	if err != nil {
		return nil, transportError("tunnel", err)
	}
	tunnel, err := upgrade(ctx, conn, c.base+"/tunnel?port="+strconv.Itoa(port), hostapi.TunnelProtocol)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return tunnel, nil
}

// Volume mounts a volume at a path of the guest, unless it is mounted there already, and gives the connection over which the guest
// asks for its files.
func (c *Client) Volume(ctx context.Context, path string) (net.Conn, error) {
	if c.addr == "" {
		return nil, tartarus.Errorf(tartarus.Unsupported, "a volume needs the guest's address")
	}
	conn, err := c.dial(ctx, "tcp", c.addr)
	if err != nil {
		return nil, transportError("mount volume", err)
	}
	files, err := upgrade(ctx, conn, c.base+"/volume?path="+url.QueryEscape(path), wire.Protocol)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return files, nil
}

// transportError words an error below HTTP: nobody answers there.
func transportError(what string, err error) error {
	if _, ok := errors.AsType[*tartarus.Error](err); ok {
		return err
	}
	kind := tartarus.GuestGone
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		kind = tartarus.Deadline
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", what, err)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		kind = tartarus.Exhausted
	}
	return tartarus.Errorf(kind, "%s: %w", what, err)
}

// statusError makes an error of an answer that is none of the 200s.
func statusError(what string, res *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(res.Body, 4096)) // an error's text that breaks off is as good as what came
	var text struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &text) != nil || text.Message == "" {
		text.Message = strings.TrimSpace(res.Status)
	}
	return tartarus.Errorf(kindOfStatus(res.StatusCode), "%s: %s", what, text.Message)
}

func kindOfStatus(status int) tartarus.Kind {
	switch status {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusRequestedRangeNotSatisfiable:
		return tartarus.Invalid
	case http.StatusUnauthorized:
		return tartarus.Unauthenticated
	case http.StatusForbidden:
		return tartarus.Forbidden
	case http.StatusNotFound:
		return tartarus.NotFound
	case http.StatusConflict:
		return tartarus.Conflict
	case http.StatusRequestEntityTooLarge:
		return tartarus.TooLarge
	case http.StatusTooManyRequests, http.StatusInsufficientStorage:
		return tartarus.Exhausted
	case http.StatusBadGateway:
		return tartarus.GuestGone
	case http.StatusServiceUnavailable:
		return tartarus.Unavailable
	case http.StatusGatewayTimeout:
		return tartarus.Deadline
	case http.StatusNotImplemented:
		return tartarus.Unsupported
	}
	return tartarus.Internal
}

// callError gives a Connect error its Kind.
func callError(err error) error {
	if err == nil {
		return nil
	}
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return transportError("call", err)
	}
	kind := tartarus.Internal
	switch ce.Code() {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		kind = tartarus.Invalid
	case connect.CodeUnauthenticated:
		kind = tartarus.Unauthenticated
	case connect.CodePermissionDenied:
		kind = tartarus.Forbidden
	case connect.CodeNotFound:
		kind = tartarus.NotFound
	case connect.CodeFailedPrecondition, connect.CodeAlreadyExists, connect.CodeAborted:
		kind = tartarus.Conflict
	case connect.CodeResourceExhausted:
		kind = tartarus.Exhausted
	case connect.CodeDeadlineExceeded:
		kind = tartarus.Deadline
	case connect.CodeUnavailable:
		kind = tartarus.GuestGone
	case connect.CodeUnimplemented:
		kind = tartarus.Unsupported
	case connect.CodeCanceled:
		if errors.Is(err, context.Canceled) {
			return err
		}
		kind = tartarus.GuestGone
	}
	e := &tartarus.Error{Kind: kind, Message: ce.Message(), Err: err}
	if ce.Code() == connect.CodeAlreadyExists {
		e.Code = "already_exists"
	}
	return e
}
