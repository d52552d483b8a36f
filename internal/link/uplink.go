package link

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
)

// UplinkConfig describes a node's side.
type UplinkConfig struct {
	Node    string // its name
	Version string
	// Replicas are addresses of Olympus replicas to begin with; those that live tell of all others.
	Replicas []string
	// Dir is where the node's key and certificate are kept.
	Dir string
	// TokenFile holds a join token, read while the node has no certificate that is good for anything.
	TokenFile string
	// Address is where the node's own listener can be reached by replicas; empty without one.
	Address string
	Log     *slog.Logger

	revision int // tests pretend to be older and newer
}

// Uplink keeps a node's sessions to all replicas and is its hecatoncheir.Control. Everything fails with tartarus.Unavailable while no
// replica can be reached.
type Uplink struct {
	cfg    UplinkConfig
	log    *slog.Logger
	id     *identity
	server *http.Server // of calls over sessions, set by Run

	joining sync.Mutex // one rejoin at a time
	spent   string     // the token that was tried last

	mu       sync.Mutex
	targets  map[string]context.CancelFunc // by address
	sessions []*session
	turn     int
	changed  chan struct{} // closed and replaced when sessions change
	epoch    string
	named    []string // replicas that the newest news had

	refill func() // set by Run
	disown func(ids []string)
}

// NewUplink makes an uplink that dials nobody yet. Without a certificate it joins the fleet first, which needs a replica.
func NewUplink(ctx context.Context, c UplinkConfig) (*Uplink, error) {
	if c.Node == "" || len(c.Replicas) == 0 || c.Dir == "" || c.Log == nil {
		return nil, errors.New("link: an uplink needs a name, replicas, a folder and a log")
	}
	if c.revision == 0 {
		c.revision = ownRevision()
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	u := &Uplink{cfg: c, log: c.Log.With("node", c.Node), targets: map[string]context.CancelFunc{}, changed: make(chan struct{})}
	var err error
	u.id, err = loadIdentity(u.identityFile(), c.Node)
	if tartarus.Is(err, tartarus.NotFound) {
		u.id, err = u.join(ctx)
	}
	return u, err
}

func (u *Uplink) identityFile() string { return filepath.Join(u.cfg.Dir, "identity.pem") }

// join tries the replicas in turn, until one lets the node in or ctx ends. A token that is refused does not get better.
func (u *Uplink) join(ctx context.Context) (*identity, error) {
	wait := firstBackoff
	for {
		token, err := u.token()
		if err != nil {
			return nil, err
		}
		u.spent = token
		for _, addr := range u.cfg.Replicas {
			try, cancel := context.WithTimeout(ctx, dialTime)
			id, joinErr := joinFleet(try, addr, u.cfg.Node, token, u.identityFile())
			cancel()
			if joinErr == nil {
				u.log.Info("joined the fleet", "replica", addr)
				return id, nil
			}
			if k := tartarus.KindOf(joinErr); k != tartarus.Unavailable && k != tartarus.Internal {
				return nil, joinErr
			}
			err = errors.Join(err, joinErr)
		}
		u.log.Warn("the fleet cannot be joined yet", "error", err)
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(wait):
		}
		wait = min(2*wait, lastBackoff)
	}
}

// rejoin joins anew with a token that has not been tried, for a node that was removed from the fleet, or away for longer than its certificate is good.
func (u *Uplink) rejoin(ctx context.Context, addr string) bool {
	u.joining.Lock()
	defer u.joining.Unlock()
	token, err := u.token()
	if err != nil || token == u.spent {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	fresh, err := joinFleet(ctx, addr, u.cfg.Node, token, u.identityFile())
	if !tartarus.Is(err, tartarus.Unavailable) {
		u.spent = token
	}
	if err != nil {
		u.log.Warn("the fleet cannot be joined again", "replica", addr, "error", err)
		return false
	}
	u.id.become(fresh)
	u.log.Info("joined the fleet again", "replica", addr)
	return true
}

func (u *Uplink) token() (string, error) {
	if u.cfg.TokenFile == "" {
		return "", tartarus.Errorf(tartarus.Unauthenticated, "this node has not joined a fleet: make a token with `tartarus node token`, put it in a file, and name that in fleet.tokenFile")
	}
	raw, err := os.ReadFile(u.cfg.TokenFile)
	if err != nil {
		return "", tartarus.Errorf(tartarus.Unauthenticated, "read join token: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// Duties is what an uplink needs of the agent it serves.
type Duties struct {
	Node Node
	// Refill is called when the registry has lost what it knew: the agent reports all it holds again.
	Refill func()
	// Disown is called with sandboxes that live on another node by now.
	Disown func(ids []string)
}

// Run keeps sessions until ctx ends. own is the node's own listener, nil without one.
func (u *Uplink) Run(ctx context.Context, d Duties, own net.Listener) error {
	handler := nodeHandler(d.Node, u.log)
	quiet := slog.NewLogLogger(slog.DiscardHandler, 0)
	u.mu.Lock()
	u.refill, u.disown = d.Refill, d.Disown
	u.server = &http.Server{Handler: handler, ReadHeaderTimeout: dialTime, ErrorLog: quiet}
	u.mu.Unlock()
	g, ctx := errgroup.WithContext(ctx)
	if own != nil {
		direct := &http.Server{Handler: onlyReplicas(handler), ReadHeaderTimeout: dialTime, IdleTimeout: 2 * time.Minute, ErrorLog: quiet}
		g.Go(func() error {
			stop := context.AfterFunc(ctx, func() { _ = direct.Close() })
			defer stop()
			if err := direct.Serve(tls.NewListener(own, u.id.listenConfig())); ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	g.Go(func() error { return u.keepSessions(ctx) })
	g.Go(func() error { return u.keepIdentity(ctx) })
	err := g.Wait()
	return errors.Join(err, u.server.Close())
}

// onlyReplicas turns away certificates of the fleet that are not a replica's: nodes do not speak to each other.
func onlyReplicas(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || !isOlympus(r.TLS.PeerCertificates[0]) {
			refuse(w, tartarus.Errorf(tartarus.Forbidden, "this is for replicas of the control plane"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// keepSessions starts one keeper per replica, also for those that are learned of later.
func (u *Uplink) keepSessions(ctx context.Context) error {
	var keepers sync.WaitGroup
	defer keepers.Wait()
	aim := func(addrs []string) {
		u.mu.Lock()
		defer u.mu.Unlock()
		for _, addr := range addrs {
			if _, ok := u.targets[addr]; ok || len(u.targets) >= maxReplicas {
				continue
			}
			own, cancel := context.WithCancel(ctx)
			u.targets[addr] = cancel
			keepers.Go(func() { u.keepSession(own, addr) })
		}
	}
	aim(u.cfg.Replicas)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			aim(u.learned())
		}
	}
}

// maxReplicas bounds the sessions of a node.
const maxReplicas = 64

// learned are the replicas that heartbeats told of.
func (u *Uplink) learned() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.named
}

// keepSession holds a session to one replica, and dials again when it ends. A replica that nobody names any more is given up.
func (u *Uplink) keepSession(ctx context.Context, addr string) {
	wait := firstBackoff
	for {
		began := time.Now()
		err := u.holdSession(ctx, addr)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastBackoff {
			wait = firstBackoff
		}
		u.log.Warn("no session to a replica", "replica", addr, "error", err, "again", wait)
		if (tartarus.Is(err, tartarus.Forbidden) || u.id.over(time.Now())) && u.rejoin(ctx, addr) {
			wait = firstBackoff
			continue
		}
		if u.forgotten(addr) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, lastBackoff)
	}
}

// forgotten gives a replica up that was only learned of and is not named any more.
func (u *Uplink) forgotten(addr string) bool {
	named := u.learned()
	u.mu.Lock()
	defer u.mu.Unlock()
	if slices.Contains(u.cfg.Replicas, addr) || slices.Contains(named, addr) || len(u.sessions) == 0 {
		return false
	}
	u.targets[addr]()
	delete(u.targets, addr)
	return true
}

var errEnded = tartarus.Errorf(tartarus.Unavailable, "the session ended")

// holdSession dials a replica and serves the session until it ends.
func (u *Uplink) holdSession(ctx context.Context, addr string) error {
	dial, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	d := tls.Dialer{Config: u.id.dialConfig(), NetDialer: &net.Dialer{KeepAlive: pingEvery}}
	conn, err := d.DialContext(dial, "tcp", addr)
	if err != nil {
		return err
	}
	s, err := newSession(conn, true, addr)
	if err != nil {
		_ = conn.Close()
		return err
	}
	defer s.close()
	defer context.AfterFunc(ctx, s.close)()
	served := make(chan struct{})
	go func() { defer close(served); s.serve(u.server) }()
	defer func() { s.close(); <-served }()
	var in welcome
	if err := call(dial, s.client, "hello", hello{Revision: u.cfg.revision, Version: u.cfg.Version, Address: u.cfg.Address}, &in); err != nil {
		return err
	}
	u.add(s)
	defer u.drop(s)
	u.log.Info("session to a replica", "replica", addr, "name", in.Replica, "version", in.Version)
	u.hear(in.news)
	select {
	case <-ctx.Done():
	case <-s.ended():
	}
	return errEnded
}

func (u *Uplink) add(s *session) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sessions = append(u.sessions, s)
	close(u.changed)
	u.changed = make(chan struct{})
}

func (u *Uplink) drop(s *session) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sessions = slices.DeleteFunc(u.sessions, func(o *session) bool { return o == s })
}

// keepIdentity renews the certificate before it ends. Sessions go on with the old one.
func (u *Uplink) keepIdentity(ctx context.Context) error {
	for {
		if u.id.stale(time.Now()) {
			if err := u.renewIdentity(ctx); err != nil && ctx.Err() == nil {
				u.log.Warn("certificate not renewed", "ends", u.id.current().Leaf.NotAfter, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Minute):
		}
	}
}

func (u *Uplink) renewIdentity(ctx context.Context) error {
	key, csr, err := request(u.cfg.Node)
	if err != nil {
		return err
	}
	var out certificateAnswer
	if err := u.ask(ctx, "certificate", certificateArgs{csr}, &out); err != nil {
		return err
	}
	u.log.Info("certificate renewed")
	return u.id.take(key, out)
}
