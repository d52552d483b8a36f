package edge

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

const (
	// idlePerPort and idlePerSandbox bound connections that wait for their next request. A burst of 64 requests at once finds them open.
	idlePerPort    = 64
	idlePerSandbox = 128
	// idleTime is how long they wait: shorter than the servers that people run keep theirs (Node 5 s, uvicorn 5 s), so that it is us who close.
	idleTime = 4 * time.Second
	// maxPerPort bounds connections to one port; further requests wait for one.
	maxPerPort = 2048
	// maxLanes bounds the ports of one sandbox that are remembered at a time.
	maxLanes = 64
	// dialTime bounds a connection to a guest: milliseconds, but one that is hibernated is woken first, or has only begun to be written to disk.
	dialTime = time.Minute
	// headerTime bounds a TLS handshake with a guest.
	handshakeTime = 10 * time.Second
)

// speech is how a port is spoken to.
type speech int

const (
	plain    speech = iota // HTTP/1.1
	prior                  // HTTP/2 without TLS, from the first byte: gRPC servers speak nothing else
	overTLS                // the guest's port speaks TLS: HTTP/2 or HTTP/1.1
	speeches               // how many there are
)

// upstream is everything that leads to one sandbox.
type upstream struct {
	edge       *Edge
	sb         tartarus.Sandbox // where it was when this was made; node and life never change
	transports [speeches]*http.Transport

	mu    sync.Mutex
	lanes map[lane]*carrier
	conns map[*conn]struct{}
	used  time.Time
	ended bool
}

// lane is one way of speaking to one port.
type lane struct {
	port int
	how  speech
	mask string
}

func newUpstream(e *Edge, sb tartarus.Sandbox) *upstream {
	u := &upstream{edge: e, sb: sb, lanes: map[lane]*carrier{}, conns: map[*conn]struct{}{}}
	for how := range speeches {
		t := &http.Transport{
			DialContext:           u.dial,
			DisableCompression:    true, // bodies pass as they are
			MaxIdleConns:          idlePerSandbox,
			MaxIdleConnsPerHost:   idlePerPort,
			MaxConnsPerHost:       maxPerPort,
			IdleConnTimeout:       idleTime,
			ExpectContinueTimeout: time.Second,
			TLSHandshakeTimeout:   handshakeTime,
			Protocols:             new(http.Protocols),
		}
		switch how {
		case plain:
			t.Protocols.SetHTTP1(true)
		case prior:
			t.Protocols.SetUnencryptedHTTP2(true)
		case overTLS:
			t.Protocols.SetHTTP1(true)
			t.Protocols.SetHTTP2(true)
			// The node's own connection proves which sandbox this is; the certificate inside is whatever its program made.
			t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
		}
		u.transports[how] = t
	}
	return u
}

// dial connects to the port that the address names, for the sandbox that this upstream is for.
func (u *upstream) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	_, number, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(number)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	node, err := u.edge.cfg.Fleet.Node(ctx, u.sb.Node)
	if err != nil {
		return nil, err
	}
	c, err := node.Dial(ctx, u.sb.ID, port)
	if err != nil {
		return nil, err
	}
	tracked := &conn{Conn: c, up: u}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended {
		_ = c.Close()
		return nil, errGone
	}
	u.conns[tracked] = struct{}{}
	return tracked, nil
}

// conn is a connection that is cut when its sandbox ends.
type conn struct {
	net.Conn
	up *upstream
}

func (c *conn) Close() error {
	c.up.mu.Lock()
	delete(c.up.conns, c)
	c.up.mu.Unlock()
	return c.Conn.Close()
}

// gone reports whether the sandbox is known to have ended.
func (u *upstream) gone() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.ended
}

// end cuts all connections, also those in the middle of an answer.
func (u *upstream) end() {
	u.mu.Lock()
	u.ended = true
	conns := u.conns
	u.conns = nil
	u.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close()
	}
	for _, t := range u.transports {
		t.CloseIdleConnections()
	}
}

// carrier returns the proxy to a port, making it when it is first needed.
func (u *upstream) carrier(l lane, now time.Time) *carrier {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.used = now
	c, ok := u.lanes[l]
	if !ok {
		if len(u.lanes) >= maxLanes {
			clear(u.lanes) // somebody tries all ports; proxies in use live on
		}
		c = newCarrier(u, l)
		u.lanes[l] = c
	}
	return c
}

// upstreams are those in use, by sandbox.
type upstreams struct {
	edge *Edge
	mu   sync.Mutex
	byID map[string]*upstream
}

func newUpstreams(e *Edge) *upstreams { return &upstreams{edge: e, byID: map[string]*upstream{}} }

// to returns the upstream of a sandbox as it is now.
func (s *upstreams) to(sb tartarus.Sandbox) *upstream {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, ok := s.byID[sb.ID]
	if ok && sameLife(u.sb, sb) {
		return u
	}
	if ok {
		go u.end() // its node changed; closing may wait for the network
	}
	u = newUpstream(s.edge, sb)
	s.byID[sb.ID] = u
	return u
}

// sameLife reports whether a and b are one machine: a sandbox that was paused has another one when it is back.
func sameLife(a, b tartarus.Sandbox) bool { return a.Node == b.Node && a.StartedAt.Equal(b.StartedAt) }

// moved cuts what leads to where a sandbox no longer is.
func (s *upstreams) moved(sb tartarus.Sandbox) {
	s.mu.Lock()
	u, ok := s.byID[sb.ID]
	old := ok && !sameLife(u.sb, sb)
	if old {
		delete(s.byID, sb.ID)
	}
	s.mu.Unlock()
	if old {
		u.end()
	}
}

// end cuts everything that leads to a sandbox.
func (s *upstreams) end(id string) {
	s.mu.Lock()
	u := s.byID[id]
	delete(s.byID, id)
	s.mu.Unlock()
	if u != nil {
		u.end()
	}
}

func (s *upstreams) endAll() {
	s.mu.Lock()
	all := s.byID
	s.byID = map[string]*upstream{}
	s.mu.Unlock()
	for _, u := range all {
		u.end()
	}
}

// tidy lets go of upstreams that nobody has used for a while and returns those that have connections.
func (s *upstreams) tidy(now time.Time) (connected []*upstream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, u := range s.byID {
		u.mu.Lock()
		conns, used := len(u.conns), u.used
		u.mu.Unlock()
		switch {
		case conns > 0:
			connected = append(connected, u)
		case now.Sub(used) > idleAfter:
			delete(s.byID, id)
		}
	}
	return connected
}
