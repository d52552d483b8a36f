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
	server := far.(*net.TCPConn)
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
func carry(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		from.Close()
		return
	}
	to.CloseWrite()
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
	*net.TCPConn
	visit *visit
	up    *http.Transport // of this connection alone: servers may remember who has logged in on one
	once  sync.Once
	done  chan struct{}
}

func (c *webConn) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.TCPConn.Close()
}

// serveWeb has the HTTP server read requests and returns when the connection is at its end.
func (g *Gate) serveWeb(ctx context.Context, v *visit) {
	c := &webConn{TCPConn: v.near, visit: v, done: make(chan struct{})}
	c.up = &http.Transport{
		DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return v.dial(ctx) },
		DisableCompression:    true,
		MaxConnsPerHost:       1,
		IdleConnTimeout:       idleRequest,
		ExpectContinueTimeout: patience,
	}
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
			r.Out.Host = r.In.Host
			for _, h := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if values, ok := r.In.Header[h]; ok { // the client's own business
					r.Out.Header[h] = values
				}
			}
			if _, ok := r.In.Header["User-Agent"]; !ok {
				r.Out.Header["User-Agent"] = nil // else the library adds its own
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
	c.visit.say(name)
	p := g.cfg.Client(c.visit.client)
	if p == nil || name == "" || r.Method == http.MethodConnect || !p.Resolves(name) || !c.visit.allowed(p) {
		g.log.Debug("web request refused", "to", c.visit.target, "name", name, "method", r.Method)
		w.Header().Set("Connection", "close")
		http.Error(w, "tartarus: the rules of this sandbox do not allow "+name, http.StatusForbidden)
		return
	}
	proxy.ServeHTTP(w, r)
}
