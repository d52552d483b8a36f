package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/hecatoncheir"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/typhon"
)

// HubConfig describes a replica's side.
type HubConfig struct {
	Vault    Vault
	Queue    acheron.Queue
	Registry hades.Registry
	// AuthorityFile is where this replica keeps its copy of the fleet's authority.
	AuthorityFile string
	// Replica is this replica's name, Advertise the address under which nodes reach its listener; empty tells them of no other
	// way than the one they came.
	Replica   string
	Advertise string
	Version   string
	// Changed is called with every sandbox that a node reports through this replica. May be nil.
	Changed func(tartarus.Sandbox)
	// Returned is called with every one that had been counted as lost with its node. May be nil.
	Returned func(tartarus.Sandbox)
	// Fill puts secrets and identity tokens of a sandbox in the place of a header value's placeholders. Nil has none.
	Fill func(ctx context.Context, sb tartarus.Sandbox, value string) (string, error)
	// Strike counts what a sandbox did, and says why it has to go into quarantine for it. Nil counts nothing.
	Strike func(ctx context.Context, s typhon.Strike) (quarantine string, err error)
	Log    *slog.Logger

	revision int // tests pretend to be older and newer
}

// Hub is where nodes come to. It keeps nothing that another replica would miss.
type Hub struct {
	cfg    HubConfig
	log    *slog.Logger
	direct hecatoncheir.Direct
	server *http.Server // of calls over sessions
	joiner *http.Server // of nodes that want to join

	auth atomic.Pointer[authority]
	news atomic.Pointer[news]
	cert certificate

	mu       sync.Mutex
	sessions map[string]*session // by node
	straight map[string]*straight
}

// NewHub makes a hub that listens to nobody yet.
func NewHub(c HubConfig) (*Hub, error) {
	if c.Vault == nil || c.Queue == nil || c.Registry == nil || c.Log == nil || c.Replica == "" || c.AuthorityFile == "" {
		return nil, errors.New("link: a hub needs vault, queue, registry, log, a name and a file")
	}
	if c.Changed == nil {
		c.Changed = func(tartarus.Sandbox) {}
	}
	if c.Returned == nil {
		c.Returned = func(tartarus.Sandbox) {}
	}
	if c.revision == 0 {
		c.revision = ownRevision()
	}
	h := &Hub{
		cfg: c, log: c.Log.With("replica", c.Replica), direct: hecatoncheir.Direct{Queue: c.Queue, Registry: c.Registry},
		sessions: map[string]*session{}, straight: map[string]*straight{},
	}
	h.news.Store(&news{})
	h.cert.resume = tls.NewLRUClientSessionCache(1024)
	mux := http.NewServeMux()
	mux.Handle("POST "+callPath, methods(h.methods(), h.log))
	h.server = &http.Server{Handler: mux, ConnContext: withSession, ReadHeaderTimeout: dialTime, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	join := http.NewServeMux()
	join.Handle("POST "+callPath, methods(map[string]method{"join": typed(h.join)}, h.log))
	h.joiner = &http.Server{Handler: join, ReadHeaderTimeout: dialTime, ReadTimeout: dialTime, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	return h, nil
}

// Run serves nodes on l until ctx ends. While the vault is away and this replica never knew the authority, nodes are turned away.
func (h *Hub) Run(ctx context.Context, l net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.keep(ctx) })
	g.Go(func() error { return h.accept(ctx, l) })
	err := g.Wait()
	h.mu.Lock()
	all := h.sessions
	h.sessions = map[string]*session{}
	for _, s := range h.straight {
		s.client.CloseIdleConnections()
	}
	h.mu.Unlock()
	for _, s := range all {
		s.close()
	}
	return errors.Join(err, h.server.Close(), h.joiner.Close())
}

// keep holds the vault to what this replica knows, so that a vault that lost everything is filled again.
func (h *Hub) keep(ctx context.Context) error {
	for {
		wait := replicaEvery
		if err := h.keepOnce(ctx); err != nil && ctx.Err() == nil {
			h.log.Warn("the fleet's memory does not answer", "error", err)
			if h.auth.Load() == nil {
				wait = time.Second
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (h *Hub) keepOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	a, err := loadAuthority(ctx, h.cfg.Vault, h.cfg.AuthorityFile)
	if err != nil {
		return err
	}
	if old := h.auth.Load(); old == nil {
		h.auth.Store(a)
	} else if !old.cert.Equal(a.cert) {
		// Nodes trust the old one. Another fleet's memory, or one that was restored from long ago: an operator must look.
		h.log.Error("the fleet's memory holds another authority than the one in use; the one in use stays until a restart")
	}
	return h.keepNews(ctx)
}

// keepNews tells the others of this replica and learns of them.
func (h *Hub) keepNews(ctx context.Context) error {
	if h.cfg.Advertise != "" {
		if err := h.cfg.Vault.Set(ctx, "replica/"+h.cfg.Replica, []byte(h.cfg.Advertise), replicaTTL); err != nil {
			return err
		}
	}
	var n news
	replicas, err := h.cfg.Vault.List(ctx, "replica/")
	if err != nil {
		return err
	}
	for _, addr := range replicas {
		n.Replicas = append(n.Replicas, string(addr))
	}
	epoch, err := h.cfg.Vault.Get(ctx, "epoch")
	if tartarus.Is(err, tartarus.NotFound) {
		epoch = []byte(tartarus.NewID())
		if err = h.cfg.Vault.Create(ctx, "epoch", epoch, 0); tartarus.Is(err, tartarus.Conflict) {
			epoch, err = h.cfg.Vault.Get(ctx, "epoch")
		}
	}
	n.Epoch = string(epoch)
	if err != nil {
		return err
	}
	h.news.Store(&n)
	return h.expel(ctx)
}

// expel ends sessions of nodes that were removed through another replica.
func (h *Hub) expel(ctx context.Context) error {
	banned, err := h.cfg.Vault.List(ctx, "banned/")
	if err != nil || len(banned) == 0 {
		return err
	}
	for _, name := range h.Connected() {
		if _, ok := banned["banned/"+name]; !ok {
			continue
		}
		h.mu.Lock()
		s := h.sessions[name]
		h.mu.Unlock()
		if s != nil && h.banned(ctx, name, s.born) != nil {
			s.close()
		}
	}
	return nil
}

var errNoAuthority = &tartarus.Error{Kind: tartarus.Unavailable, Message: "this replica has not found the fleet's authority yet: its store does not answer", RetryAfter: 2 * time.Second}

// authority returns the fleet's, once it is known.
func (h *Hub) authority() (*authority, error) {
	if a := h.auth.Load(); a != nil {
		return a, nil
	}
	return nil, errNoAuthority
}

// accept takes connections of nodes until ctx ends.
func (h *Hub) accept(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	joins := newQueueListener(l.Addr())
	defer joins.Close()
	go func() { _ = h.joiner.Serve(joins) }()
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			go h.greet(ctx, conn, joins)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			h.log.Warn("connection of a node not accepted", "error", err) // out of descriptors, mostly
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// greet does the handshake and hands the connection on by what it is for.
func (h *Hub) greet(ctx context.Context, raw net.Conn, joins *queueListener) {
	a, err := h.authority()
	if err != nil {
		_ = raw.Close()
		return
	}
	conn := tls.Server(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: a.pool, NextProtos: []string{protoSession, protoJoin},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return h.cert.get(a, time.Now()) },
	})
	shake, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	if err := conn.HandshakeContext(shake); err != nil {
		h.log.Info("handshake with a node refused", "remote", raw.RemoteAddr(), "error", err)
		_ = raw.Close()
		return
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != protoSession {
		joins.put(conn)
		return
	}
	if len(state.PeerCertificates) == 0 {
		_ = conn.Close()
		return
	}
	h.attend(ctx, conn, state.PeerCertificates[0])
}

// attend serves one session until it ends. It counts for its node once hello was said.
func (h *Hub) attend(ctx context.Context, conn net.Conn, cert *x509.Certificate) {
	name, ok := nodeOf(cert)
	if !ok {
		_ = conn.Close()
		return
	}
	s, err := newSession(conn, false, name)
	if err != nil {
		_ = conn.Close()
		return
	}
	s.born = cert.NotBefore
	defer s.close()
	defer context.AfterFunc(ctx, s.close)()
	s.serve(h.server)
	h.mu.Lock()
	mine := h.sessions[name] == s
	if mine {
		delete(h.sessions, name)
	}
	h.mu.Unlock()
	if mine && ctx.Err() == nil {
		h.log.Warn("session of a node ended", "node", name)
	}
}

// Node implements olympus.Fleet.
func (h *Hub) Node(ctx context.Context, name string) (olympus.Node, error) {
	if _, err := h.way(ctx, name, false); err != nil {
		return nil, err
	}
	return &remote{hub: h, name: name}, nil
}

// Connected lists the nodes that have a session to this replica.
func (h *Hub) Connected() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]string, 0, len(h.sessions))
	for name := range h.sessions {
		out = append(out, name)
	}
	return out
}

// Token makes a join token that is good for life, for one node or, with the empty name, for any.
func (h *Hub) Token(node string, life time.Duration) (token string, ends time.Time, err error) {
	a, err := h.authority()
	if err != nil {
		return "", ends, err
	}
	if node != "" && !nodeName.MatchString(node) {
		return "", ends, tartarus.Errorf(tartarus.Invalid, "%.70q cannot be the name of a node", node)
	}
	if life < time.Second || life > MaxTokenLife {
		return "", ends, tartarus.Errorf(tartarus.Invalid, "a join token may be good for 1s to %s, not %s", MaxTokenLife, life)
	}
	ends = time.Now().Add(life).Truncate(time.Second)
	return a.token(node, ends), ends, nil
}
