// Package resolver answers the name questions of sandboxes on behalf of the host's own name servers, and tells the packet filter
// which addresses an allowed name stands for. No answer hands out an address that its asker may not reach, none leaves before
// its addresses are pinned, and one asker cannot take the resolver from the others: rate, questions at a time and connections are bounded.
package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/network/sockets"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// Policy says what one asker may learn. Methods are called concurrently.
type Policy interface {
	// Name is what the asker is called in logs.
	Name() string
	// Resolves reports whether this name may be asked for: lower case, without the final dot.
	Resolves(name string) bool
	// Reaches reports whether this address may be handed out.
	Reaches(a netip.Addr) bool
	// Pin opens the way to addresses that an answer to name gives, for at least ttl. The answer is sent when it has returned
	// nil. Where addresses are reachable without, it does nothing.
	Pin(ctx context.Context, name string, addrs []netip.Addr, ttl time.Duration) error
	// Servers are the name servers to ask; none means the host's.
	Servers() []netip.AddrPort
}

// Config says whom to serve.
type Config struct {
	// Asker finds the policy by the source address of a question; nil for strangers, who get no answer.
	Asker func(netip.Addr) Policy
	// Source holds all askers' addresses. What comes from elsewhere is discarded by the kernel before it reaches the sockets.
	Source netip.Prefix
	// HostConfig is the file that names the host's name servers.
	HostConfig string
	Log        *slog.Logger
}

const (
	perSecond   = 100 // questions of one asker
	burst       = 200
	atOnce      = 32               // questions of one asker that wait for an answer
	allAtOnce   = 512              // of all askers
	connections = 8                // of one asker
	idle        = 10 * time.Second // that a connection may be silent: RFC 7766 asks for "a few seconds" at least
	longest     = 6 * time.Second  // that a question may take; stub resolvers ask again after 5
	maxQuestion = 4096             // bytes; questions have a few hundred
)

// Server is a resolver with its sockets open.
type Server struct {
	cfg     Config
	log     *slog.Logger
	udp     *net.UDPConn
	tcp     *net.TCPListener
	servers *hostServers
	slots   chan struct{} // one for each question that is being answered
	work    sync.WaitGroup

	mu     sync.Mutex
	askers map[netip.Addr]*asker
}

// asker is what one source address uses.
type asker struct {
	rate  *rate.Limiter
	busy  int // questions
	conns int
}

// New opens the sockets, on one port of UDP and TCP at every IPv4 address. It starts nothing.
func New(ctx context.Context, c Config) (*Server, error) {
	s := &Server{cfg: c, log: c.Log, servers: newHostServers(c.HostConfig), slots: make(chan struct{}, allAtOnce), askers: map[netip.Addr]*asker{}}
	var err error
	const tries = 16 // the port that UDP got may be taken for TCP
	for range tries {
		if s.udp, err = sockets.UDP(ctx, c.Source); err != nil {
			return nil, fmt.Errorf("open resolver: %w", err)
		}
		if s.tcp, err = sockets.TCP(ctx, c.Source, int(s.Port())); err == nil {
			return s, nil
		}
		s.udp.Close()
	}
	return nil, fmt.Errorf("open resolver: %w", err)
}

// Port is where the server listens.
func (s *Server) Port() uint16 { return uint16(s.udp.LocalAddr().(*net.UDPAddr).Port) }

// Close closes the sockets of a server that Run does not serve.
func (s *Server) Close() error {
	err := errors.Join(s.udp.Close(), s.tcp.Close())
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Run answers until ctx ends, and closes the sockets.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	g.Go(func() error { return s.serveUDP(ctx) })
	g.Go(func() error { return s.serveTCP(ctx) })
	g.Go(func() error { return s.forgetIdle(ctx) })
	err := g.Wait()
	s.Close()
	s.work.Wait()
	return err
}

// begin counts a question in, unless it is one too many.
func (s *Server) begin(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.asker(a)
	if k.busy >= atOnce || !k.rate.Allow() {
		return false
	}
	select {
	case s.slots <- struct{}{}:
		k.busy++
		return true
	default:
		return false
	}
}

func (s *Server) end(a netip.Addr) {
	<-s.slots
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asker(a).busy--
}

// asker finds or makes the books of an address. s.mu is held.
func (s *Server) asker(a netip.Addr) *asker {
	k := s.askers[a]
	if k == nil {
		k = &asker{rate: rate.NewLimiter(perSecond, burst)}
		s.askers[a] = k
	}
	return k
}

// forgetIdle drops the books of those who have been silent long enough to have their full burst again.
func (s *Server) forgetIdle(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s.mu.Lock()
		for a, k := range s.askers {
			if k.busy == 0 && k.conns == 0 && k.rate.Tokens() >= burst {
				delete(s.askers, a)
			}
		}
		s.mu.Unlock()
	}
}
