package edge

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/hostapi"
)

// carry takes a request to its sandbox.
func (e *Edge) carry(w http.ResponseWriter, r *http.Request, t target) {
	now := time.Now()
	sb, err := e.running(r.Context(), t.id, now)
	if err != nil {
		refuse(w, r, refusalOf(err, t))
		return
	}
	if t.port == tartarus.AgentPort {
		if internal(r.URL.Path) {
			refuse(w, r, refusal{status: http.StatusNotFound, message: "there is nothing at this path", target: t})
			return
		}
		if err := e.record(r, sb); err != nil {
			refuse(w, r, refusalOf(err, t))
			return
		}
	} else if !sb.Network.PublicTraffic && !sameToken(r.Header.Get(headerTraffic), sb.Secrets.TrafficToken) {
		refuse(w, r, refusal{status: http.StatusForbidden, message: "The sandbox takes traffic with its traffic access token only", target: t})
		return
	}
	l := lane{port: t.port, how: speechFor(r, sb, t.port), mask: sb.Network.MaskRequestHost}
	if t.port == tartarus.AgentPort {
		l.mask = "" // a name for the guest's own programs
	}
	if r.ProtoMajor == 1 {
		// Otherwise the server reads and closes what is left of a request before it answers. The guest may answer while the client still
		// sends; and where it answers what was just passed on, before the proxy has read the end of it, the closed request would be taken
		// for one that broke off, and the connection with the answer on it be thrown away.
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			e.log.Error("request cannot be read while it is answered", "sandbox", sb.ID, "error", err)
		}
	}
	e.ups.to(sb).carrier(l, now).serve(w, r)
}

// running finds a sandbox that takes traffic, and wakes it if it sleeps and may be woken by traffic.
func (e *Edge) running(ctx context.Context, id string, now time.Time) (tartarus.Sandbox, error) {
	sb, err := e.ways.find(ctx, id, now)
	switch {
	case err != nil:
		return sb, err
	case sb.Terminating():
		return sb, errGone // what it has begun to answer goes on, but nothing new reaches it
	case open(sb):
		return sb, nil
	case sb.Phase == tartarus.Paused && sb.Lifecycle.AutoResume && e.cfg.Wake != nil:
		if sb, err = e.cfg.Wake(ctx, sb); err == nil {
			e.ways.put(sb, time.Now())
		}
		return sb, err
	case sb.Phase == tartarus.Quarantined:
		return sb, tartarus.Errorf(tartarus.Unavailable, "The sandbox is quarantined")
	}
	return sb, errGone
}

// internals are routes of the guest agent that only its host may use, and those that the wire protocol reserves for that. The edge is a
// part of the host, so the agent itself could not tell who asks.
var internals = append([]string{"freeze", "unfreeze", "collapse", "fsfreeze", "fsthaw", "upgrade"}, hostapi.Paths...)

// internal reports whether the agent might take a path for one of its internal routes, however it is written.
func internal(p string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(path.Clean("/"+p), "/"), "/")
	return slices.Contains(internals, strings.ToLower(first))
}

func sameToken(got, want string) bool {
	return want != "" && subtle.ConstantTimeCompare([]byte(got), []byte(want)) == 1
}

// speechFor chooses how to speak to a port.
func speechFor(r *http.Request, sb tartarus.Sandbox, port int) speech {
	switch {
	case slices.Contains(sb.Network.HTTPSPorts, port):
		return overTLS
	case r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
		return prior
	}
	return plain
}

// carrier is the proxy of one lane.
type carrier struct {
	up    *upstream
	lane  lane
	host  string // in the URL towards the guest: names the port to dial
	mask  string // the Host the guest sees, or empty for the client's own
	proxy httputil.ReverseProxy
}

func newCarrier(u *upstream, l lane) *carrier {
	number := strconv.Itoa(l.port)
	c := &carrier{up: u, lane: l, host: u.sb.ID + ":" + number, mask: strings.ReplaceAll(l.mask, "${PORT}", number)}
	c.proxy = httputil.ReverseProxy{
		Rewrite:       c.rewrite,
		Transport:     u.transports[l.how],
		FlushInterval: -1, // whatever the guest writes is seen at once
		ErrorHandler:  c.failed,
		ErrorLog:      slog.NewLogLogger(u.edge.log.Handler(), slog.LevelDebug),
	}
	return c
}

// serve takes one request to the guest and its answer back.
func (c *carrier) serve(w http.ResponseWriter, r *http.Request) {
	p := &passage{proxy: c.proxy}
	p.proxy.BufferPool, p.proxy.ModifyResponse = p, p.measure
	p.proxy.ServeHTTP(w, r)
}

// rewrite makes the request towards the guest.
func (c *carrier) rewrite(p *httputil.ProxyRequest) {
	p.Out.URL.Scheme, p.Out.URL.Host = "http", c.host
	if c.lane.how == overTLS {
		p.Out.URL.Scheme = "https"
	}
	if c.mask != "" {
		p.Out.Host = c.mask
	}
	if n := p.In.ContentLength; n > 0 && n <= smallBody && p.In.Header.Get("Expect") == "" {
		p.Out.Body = takeIn(p.Out.Body, n)
	}
	p.SetXForwarded()
	// Secrets of the control plane and of the edge are not for what runs in a sandbox.
	p.Out.Header.Del(headerTraffic)
	if strings.HasPrefix(p.Out.Header.Get(headerKey), "e2b_") {
		p.Out.Header.Del(headerKey)
	}
}

// smallBody is what a command or a listing asks with.
const smallBody = 4 << 10

// takeIn reads a small body before anything goes to the guest, so that it gets there in one packet with its header: the guest wakes up once
// for it, not twice.
func takeIn(body io.ReadCloser, n int64) io.ReadCloser {
	data := make([]byte, n)
	got, err := io.ReadFull(body, data)
	if err != nil { // a client that is gone; the guest sees as much
		return struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(data[:got]), broken{err}), body}
	}
	return io.NopCloser(bytes.NewReader(data))
}

// broken is a body that cannot be read.
type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

// failed answers a request that did not get an answer from the guest.
func (c *carrier) failed(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the client is gone
	}
	t := target{c.up.sb.ID, c.lane.port}
	var known *tartarus.Error
	switch {
	case c.up.gone():
		err = errGone
	case errors.As(err, &known) && known.Kind == tartarus.GuestGone:
		// Its node knows first. Whoever asks next must not be told what was true before.
		c.up.edge.ways.drop(t.id)
		c.up.edge.ups.end(t.id)
	}
	refuse(w, r, refusalOf(err, t))
}
