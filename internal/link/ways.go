package link

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// shunTime is how long a node's own listener is left alone after it could not be reached.
const shunTime = 15 * time.Second

// straight is the way to a node's own listener.
type straight struct {
	way
	addr string

	mu      sync.Mutex
	shunned time.Time // not before this
}

// way chooses how a node is reached: for bulk its own listener first, for calls the session first. Neither is tartarus.Unavailable.
func (h *Hub) way(ctx context.Context, name string, bulk bool) (way, error) {
	h.mu.Lock()
	s := h.sessions[name]
	h.mu.Unlock()
	if s != nil && !s.alive() {
		s = nil
	}
	addr := ""
	if s != nil {
		addr = s.addr
	} else if n, err := h.registered(ctx, name); err == nil {
		addr = n
	}
	direct := h.straightTo(name, addr)
	switch {
	case bulk && direct != nil && s != nil:
		// A listener that cannot be reached is found out here, so that the session can stand in.
		return way{dial: func(ctx context.Context) (net.Conn, error) {
			if conn, err := direct.try(ctx); err == nil {
				return conn, nil
			}
			return s.open(ctx)
		}}, nil
	case s != nil:
		return way{client: s.client, dial: s.open}, nil
	case direct != nil:
		return direct.way, nil
	}
	return way{}, &tartarus.Error{Kind: tartarus.Unavailable, RetryAfter: 2 * time.Second, Message: "node " + name + " cannot be reached now: it has no session to this replica"}
}

// registered finds the address of a node that has no session here, because this replica is new or the node cannot reach it.
func (h *Hub) registered(ctx context.Context, name string) (string, error) {
	nodes, err := h.cfg.Registry.Nodes(ctx)
	if err != nil {
		return "", err
	}
	now := time.Now()
	for _, n := range nodes {
		if n.Name == name && n.Live(now) {
			return n.Address, nil
		}
	}
	return "", tartarus.Errorf(tartarus.NotFound, "there is no node %s", name)
}

// straightTo returns the way to a listener, making it when the address is new.
func (h *Hub) straightTo(name, addr string) *straight {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.straight[name]
	if old != nil && (addr == "" || old.addr == addr) {
		if addr == "" {
			return nil
		}
		return old
	}
	if addr == "" {
		return nil
	}
	if old != nil {
		old.client.CloseIdleConnections()
	}
	d := &straight{addr: addr}
	d.dial = func(ctx context.Context) (net.Conn, error) { return h.dialNode(ctx, name, addr) }
	d.client = newClient(d.dial)
	h.straight[name] = d
	return d
}

// try connects unless that has just failed.
func (d *straight) try(ctx context.Context) (net.Conn, error) {
	d.mu.Lock()
	shunned := time.Now().Before(d.shunned)
	d.mu.Unlock()
	if shunned {
		return nil, tartarus.Errorf(tartarus.Unavailable, "listener %s could not be reached a moment ago", d.addr)
	}
	// A listener behind a firewall says nothing: the session is the better way long before a dial gives up.
	quick, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := d.dial(quick)
	if err != nil && ctx.Err() == nil {
		d.mu.Lock()
		d.shunned = time.Now().Add(shunTime)
		d.mu.Unlock()
	}
	return conn, err
}

// dialNode connects to a node's own listener and makes sure that it is this node's.
func (h *Hub) dialNode(ctx context.Context, name, addr string) (net.Conn, error) {
	a, err := h.authority()
	if err != nil {
		return nil, err
	}
	cert, err := h.cert.get(a, time.Now())
	if err != nil {
		return nil, err
	}
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: a.pool, ServerName: name + nodeSuffix, Certificates: []tls.Certificate{*cert},
		ClientSessionCache: h.cert.resume, NextProtos: []string{protoJoin},
	}}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Unavailable, "connect to node %s: %w", name, err)
	}
	return conn, nil
}

// certificate keeps a replica's own certificate fresh.
type certificate struct {
	mu     sync.Mutex
	now    *tls.Certificate
	resume tls.ClientSessionCache
}

func (c *certificate) get(a *authority, now time.Time) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now != nil && now.Before(c.now.Leaf.NotAfter.Add(-replicaLife/3)) {
		return c.now, nil
	}
	made, err := a.own(now)
	if err != nil {
		return nil, err
	}
	c.now = made
	return made, nil
}

// queueListener gives an http.Server connections that somebody else has accepted.
type queueListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	addr  net.Addr
}

func newQueueListener(addr net.Addr) *queueListener {
	return &queueListener{conns: make(chan net.Conn, 16), done: make(chan struct{}), addr: addr}
}

// put hands a connection over; when too many wait it is closed.
func (l *queueListener) put(c net.Conn) {
	select {
	case l.conns <- c:
	default:
		_ = c.Close()
	}
}

func (l *queueListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, http.ErrServerClosed
	}
}

func (l *queueListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *queueListener) Addr() net.Addr { return l.addr }
