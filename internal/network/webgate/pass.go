package webgate

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
)

// tunnel joins the client with its server until both have finished; what was read of the client before goes first.
func (g *Gate) tunnel(ctx context.Context, v *visit, first []byte) error {
	far, err := v.dial(ctx)
	if err != nil {
		return err
	}
	if _, err := far.Write(first); err != nil {
		return err
	}
	server := far
	done := make(chan struct{})
	go func() {
		defer close(done)
		carry(v.near, server)
	}()
	carry(server, v.near)
	<-done
	return nil
}

// carry copies one direction and passes its end on. An end that is no proper one ends both directions.
func carry(to, from net.Conn) {
	_, err := io.Copy(to, from)
	half, ok := to.(interface{ CloseWrite() error })
	if err != nil || !ok {
		to.Close()
		from.Close()
		return
	}
	half.CloseWrite()
}

// handover is a listener whose connections are handed to it.
type handover struct {
	addr   net.Addr
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func newHandover(a net.Addr) *handover {
	return &handover{addr: a, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

func (h *handover) Addr() net.Addr { return h.addr }

// webConn is a connection in the hands of the HTTP server; closing it lets its visit end.
type webConn struct {
	net.Conn
	visit *visit
	name  string          // of the server that is answered for; empty where requests are not protected
	up    *http.Transport // of this connection alone: servers may remember who has logged in on one
	once  sync.Once
	done  chan struct{}
}

func (c *webConn) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.Conn.Close()
}

// serveWeb has the HTTP server read requests and returns when the connection is at its end.
func (g *Gate) serveWeb(ctx context.Context, v *visit) {
	g.serveRequests(ctx, &webConn{Conn: v.near, visit: v, done: make(chan struct{}), up: &http.Transport{
		DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return v.dial(ctx) },
		DisableCompression:    true,
		MaxConnsPerHost:       1,
		IdleConnTimeout:       idleRequest,
		ExpectContinueTimeout: patience,
	}})
}

// serveRequests hands a connection to the HTTP server and returns when it is at its end.
func (g *Gate) serveRequests(ctx context.Context, c *webConn) {
	defer c.up.CloseIdleConnections()
	select {
	case g.hand.conns <- c:
	case <-ctx.Done():
		return
	}
	<-c.done // the server closes it at the latest when the gate does
}

type connKey struct{}

// webServer checks and forwards requests.
func (g *Gate) webServer() *http.Server {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			c := r.In.Context().Value(connKey{}).(*webConn)
			r.Out.URL.Scheme, r.Out.URL.Host = "http", c.visit.target.String()
			if c.name != "" {
				r.Out.URL.Scheme, r.Out.URL.Host = "https", c.name
			}
			r.Out.Host = r.In.Host
			for _, h := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if values, ok := r.In.Header[h]; ok { // the client's own business
					r.Out.Header[h] = values
				}
			}
			if _, ok := r.In.Header["User-Agent"]; !ok {
				r.Out.Header["User-Agent"] = nil // else the library adds its own
			}
			if headers, ok := r.In.Context().Value(headersKey{}).(map[string]string); ok {
				for name, value := range headers {
					r.Out.Header.Set(name, value)
				}
			}
		},
		Transport:     perConn{},
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			g.log.Debug("web request failed", "name", r.Host, "error", err)
			w.WriteHeader(http.StatusBadGateway)
		},
		ErrorLog: slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	return &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.request(proxy, w, r) }),
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ReadHeaderTimeout: patience,
		IdleTimeout:       idleRequest,
		MaxHeaderBytes:    maxHeaders,
		ErrorLog:          slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
}

// perConn sends a request by the transport of the connection it came on.
type perConn struct{}

func (perConn) RoundTrip(r *http.Request) (*http.Response, error) {
	c, ok := r.Context().Value(connKey{}).(*webConn)
	if !ok {
		return nil, errors.New("request without connection")
	}
	return c.up.RoundTrip(r)
}

// request checks the name of one request.
func (g *Gate) request(proxy http.Handler, w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(connKey{}).(*webConn)
	name := r.Host
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	name = plain(name)
	p := g.cfg.Client(c.visit.client)
	if c.name == "" {
		c.visit.say(name, false, false)
	}
	if p == nil || name == "" || r.Method == http.MethodConnect || !c.may(p, name) {
		g.log.Debug("web request refused", "to", c.visit.target, "name", name, "method", r.Method)
		w.Header().Set("Connection", "close")
		http.Error(w, "tartarus: the rules of this sandbox do not allow "+name, http.StatusForbidden)
		return
	}
	if c.name != "" {
		headers, err := p.Headers(r.Context(), name)
		if err != nil {
			g.log.Debug("web request refused", "to", c.visit.target, "name", name, "reason", err)
			http.Error(w, "tartarus: "+err.Error(), http.StatusBadGateway)
			return
		}
		r = r.WithContext(context.WithValue(r.Context(), headersKey{}, headers))
	}
	// Otherwise the server here reads and closes what is left of a request before it passes an answer on, and an answer that overtakes the
	// end of its request is cut off: the proxy takes the closed request for one that broke.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		g.log.Warn("request cannot be read while it is answered", "error", err)
	}
	proxy.ServeHTTP(w, r)
}

// may judges a request by the name it says. Where headers are put in it has to be the name that the server proves.
func (c *webConn) may(p Policy, name string) bool {
	if c.name != "" {
		return name == c.name && c.visit.allowed(p)
	}
	return p.Resolves(name) && c.visit.allowed(p)
}
