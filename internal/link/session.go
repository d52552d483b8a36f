package link

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/tartarus-sandbox/tartarus"
)

// The two protocols of the replicas' listener, by ALPN: sessions of nodes, and the plain HTTP of nodes that want to join.
const (
	protoSession = "tartarus-session"
	protoJoin    = "http/1.1"
)

// session is one connection between a node and a replica, over which both call each other.
type session struct {
	mux    *yamux.Session
	client *http.Client // calls to the other side
	peer   string       // the node's name on the replica's side, the replica's address on the node's
	addr   string       // where the node's own listener is; replica's side only
	born   time.Time    // when the peer's certificate was made

	closing sync.Once
}

func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = 1024
	c.KeepAliveInterval = pingEvery
	c.ConnectionWriteTimeout = pingTime // how long a ping may take, too
	c.MaxStreamWindowSize = window
	c.StreamOpenTimeout = dialTime
	// What closes a stream is done with both directions; the other side has this long to notice.
	c.StreamCloseTimeout = 30 * time.Second
	c.LogOutput = io.Discard // what matters comes back as errors
	return c
}

// newSession wraps a connection whose handshake is done. The node is the one that dialled.
func newSession(conn net.Conn, dialled bool, peer string) (*session, error) {
	start := yamux.Server
	if dialled {
		start = yamux.Client
	}
	mux, err := start(conn, muxConfig())
	if err != nil {
		return nil, err
	}
	s := &session{mux: mux, peer: peer}
	s.client = newClient(s.open)
	return s, nil
}

// open makes a stream.
func (s *session) open(context.Context) (net.Conn, error) {
	st, err := s.mux.OpenStream()
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Unavailable, "open stream to %s: %w", s.peer, err)
	}
	return stream{st, s}, nil
}

// alive reports whether the session has not ended.
func (s *session) alive() bool { return !s.mux.IsClosed() }

// ended is closed when the session is over.
func (s *session) ended() <-chan struct{} { return s.mux.CloseChan() }

func (s *session) close() {
	s.closing.Do(func() {
		_ = s.mux.Close() // it is over either way
		s.client.CloseIdleConnections()
	})
}

// serve answers the other side's calls until the session ends.
func (s *session) serve(srv *http.Server) {
	_ = srv.Serve(streams{s}) // ends with the session, whose end is seen by ended
}

// streams is a session as a listener.
type streams struct{ s *session }

func (l streams) Accept() (net.Conn, error) {
	st, err := l.s.mux.AcceptStream()
	if err != nil {
		return nil, err
	}
	return stream{st, l.s}, nil
}
func (l streams) Close() error   { return nil } // the session outlives a server
func (l streams) Addr() net.Addr { return l.s.mux.Addr() }

// stream is one stream that knows its session. Closing it ends both directions.
type stream struct {
	*yamux.Stream
	from *session
}

func (c stream) Close() error {
	err := c.Stream.Close()
	_ = c.SetReadDeadline(time.Unix(1, 0)) // wakes whoever reads
	return err
}

// CloseWrite tells the other side that nothing more comes.
func (c stream) CloseWrite() error { return c.Stream.Close() }

type sessionKey struct{}

// withSession is the ConnContext of servers of sessions.
func withSession(ctx context.Context, c net.Conn) context.Context {
	if st, ok := c.(stream); ok {
		return context.WithValue(ctx, sessionKey{}, st.from)
	}
	return ctx
}

// sessionOf finds the session that a call came over.
func sessionOf(ctx context.Context) *session {
	s, _ := ctx.Value(sessionKey{}).(*session)
	return s
}
