// Package webgate passes web traffic of sandboxes on whose rules name domains. A connection has to go to an address that one of
// the allowed names stands for, and to say a name that is allowed: in the TLS handshake, or in every single HTTP request.
// What the gate cannot read a name in is refused. It sees names only, never what TLS protects: a server that hides
// another site behind an allowed name can be used to reach that site.
package webgate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/network/sockets"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Policy says where one sandbox may go. Methods are called concurrently.
type Policy interface {
	// Name is what the sandbox is called in logs.
	Name() string
	// Resolves reports whether this name is allowed: lower case, without the final dot.
	Resolves(name string) bool
	// Passes reports whether this address is allowed whatever name is said there.
	Passes(to netip.AddrPort) bool
	// Pinned reports whether this address was given for a name that is allowed.
	Pinned(a netip.Addr) bool
	// Proxy is what connections go through; nil is none. Another one ends the connections of the one before.
	Proxy() *Proxy
	// Transforms reports whether headers are put into requests to this server.
	Transforms(name string) bool
	// Headers are those headers with their values of this moment. An error keeps the request from being sent; its text is shown to
	// the sandbox.
	Headers(ctx context.Context, name string) (map[string]string, error)
}

// Config says whom to serve.
type Config struct {
	// Client finds the policy by a connection's source address; nil for strangers, whose connections are reset.
	Client func(netip.Addr) Policy
	// Source holds all clients' addresses.
	Source netip.Prefix
	// Target finds where a redirected connection wanted to go; nil asks the kernel, which is right outside tests.
	Target func(*net.TCPConn) (netip.AddrPort, error)
	// Authority signs for servers whose requests get headers; nil refuses those.
	Authority *Authority
	// Roots are what such servers' own certificates lead to; nil is the host's.
	Roots *x509.CertPool
	// Guard refuses addresses that no proxy may have; nil refuses none.
	Guard func(netip.Addr) error
	Log   *slog.Logger
}

const (
	perClient   = 256              // connections of one sandbox
	allClients  = 8192             // of all: with two descriptors each, a quarter of what a server usually may open
	patience    = 10 * time.Second // for a name to be said, and for the server to take a connection
	idleRequest = time.Minute      // between two requests on a connection
	maxHello    = 64 << 10         // bytes until the TLS handshake has named a server; it is one message of at most so many
	maxHeaders  = 64 << 10
	httpPort    = 80
	httpsPort   = 443
)

// Gate is a listener with a connection to watch for every client's connection.
type Gate struct {
	cfg  Config
	log  *slog.Logger
	l    *net.TCPListener
	web  *http.Server
	hand *handover
	work sync.WaitGroup

	mu    sync.Mutex
	live  map[*visit]struct{}
	count map[netip.Addr]int
}

// visit is one connection of a client, from end to end.
type visit struct {
	client netip.Addr
	target netip.AddrPort
	near   *net.TCPConn
	proxy  *Proxy
	guard  func(netip.Addr) error
	named  bool // it is allowed for its name's sake

	mu   sync.Mutex
	name string   // said last; empty where none is needed
	tls  bool     // it was said in a TLS handshake
	mine bool     // headers are put into its requests
	far  net.Conn // to the server
}

// New opens the listener. It starts nothing.
func New(ctx context.Context, c Config) (*Gate, error) {
	if c.Target == nil {
		c.Target = originalTarget
	}
	l, err := sockets.TCP(ctx, c.Source, 0)
	if err != nil {
		return nil, fmt.Errorf("open web gate: %w", err)
	}
	g := &Gate{cfg: c, log: c.Log, l: l, hand: newHandover(l.Addr()), live: map[*visit]struct{}{}, count: map[netip.Addr]int{}}
	g.web = g.webServer()
	return g, nil
}

// Port is where the gate listens.
func (g *Gate) Port() uint16 { return uint16(g.l.Addr().(*net.TCPAddr).Port) }

// Close closes the listener of a gate that Run does not serve.
func (g *Gate) Close() error {
	if err := g.l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close web gate: %w", err)
	}
	return nil
}

// Run serves until ctx ends; then it cuts every connection.
func (g *Gate) Run(ctx context.Context) error {
	eg, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() {
		g.l.Close()
		g.web.Close()
		g.Recheck(netip.Addr{}, false)
	})
	defer stop()
	eg.Go(func() error {
		if err := g.web.Serve(g.hand); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve requests: %w", err)
		}
		return nil
	})
	eg.Go(func() error { return g.accept(ctx) })
	err := eg.Wait()
	g.Recheck(netip.Addr{}, false) // those accepted while the others were cut
	g.work.Wait()
	return err
}

func (g *Gate) accept(ctx context.Context) error {
	for {
		c, err := g.l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil { // out of descriptors, for one
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
				continue
			}
		}
		g.work.Go(func() { g.serve(ctx, c) })
	}
}

// reset ends a connection so that the client notices at once.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// serve takes a connection to where it may go, or ends it.
func (g *Gate) serve(ctx context.Context, c *net.TCPConn) {
	client := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	v := &visit{client: client, near: c, guard: g.cfg.Guard}
	p := g.cfg.Client(client)
	if p == nil {
		reset(c)
		return
	}
	v.proxy = p.Proxy()
	if !g.enter(v) {
		reset(c)
		return
	}
	defer g.leave(v)
	defer v.cut()
	var err error
	if v.target, err = g.cfg.Target(c); err != nil {
		g.log.Warn("find where a connection wants to go", "slot", p.Name(), "error", err)
		return
	}
	passes := p.Passes(v.target)
	v.named = !passes
	switch {
	case passes && v.target.Port() == httpsPort:
		err = g.serveTLS(ctx, p, v, true)
	case passes:
		err = g.tunnel(ctx, v, nil)
	case !p.Pinned(v.target.Addr()):
		err = errors.New("no allowed name stands for the address")
	case v.target.Port() == httpPort:
		g.serveWeb(ctx, v)
	default:
		err = g.serveTLS(ctx, p, v, false)
	}
	if err != nil {
		g.log.Debug("web connection refused", "slot", p.Name(), "to", v.target, "reason", err)
		c.SetLinger(0)
	}
}

// enter counts a connection in, unless it is one too many.
func (g *Gate) enter(v *visit) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.count[v.client] >= perClient || len(g.live) >= allClients {
		return false
	}
	g.count[v.client]++
	g.live[v] = struct{}{}
	return true
}

func (g *Gate) leave(v *visit) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.live, v)
	if g.count[v.client]--; g.count[v.client] == 0 {
		delete(g.count, v.client)
	}
}

// Recheck ends the connections of a client that its policy does not allow any more; of an invalid client and not keep, all of everybody.
func (g *Gate) Recheck(client netip.Addr, keep bool) {
	g.mu.Lock()
	var doomed []*visit
	for v := range g.live {
		if !keep || v.client == client {
			doomed = append(doomed, v)
		}
	}
	g.mu.Unlock()
	for _, v := range doomed {
		if p := g.cfg.Client(v.client); keep && p != nil && v.allowed(p) {
			continue
		}
		v.near.SetLinger(0)
		v.cut()
	}
}

// allowed judges a connection by what it has said so far. One that has not said anything yet is judged when it does.
func (v *visit) allowed(p Policy) bool {
	name, changed := v.said(p)
	if p.Proxy() != v.proxy || changed {
		return false
	}
	return p.Passes(v.target) || p.Pinned(v.target.Addr()) && (name == "" || p.Resolves(name))
}

// said is the name, and whether what is done to its requests is not what p wants any more.
func (v *visit) said(p Policy) (name string, changed bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.name, v.tls && v.name != "" && p.Transforms(v.name) != v.mine
}

func (v *visit) say(name string, tls, mine bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.name, v.tls, v.mine = name, tls, mine
}

// goal is what a proxy is told: the name where that is what is allowed, so that the proxy asks for its address.
func (v *visit) goal() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.named && v.name != "" {
		return net.JoinHostPort(v.name, strconv.Itoa(int(v.target.Port())))
	}
	return v.target.String()
}

// cut closes both ends.
func (v *visit) cut() {
	v.near.Close()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.far != nil {
		v.far.Close()
	}
}

// dial connects to the server that the client meant.
func (v *visit) dial(ctx context.Context) (net.Conn, error) {
	var c net.Conn
	var err error
	if v.proxy != nil {
		c, err = v.proxy.dial(ctx, v.goal(), v.guard)
	} else {
		d := net.Dialer{Timeout: patience}
		c, err = d.DialContext(ctx, "tcp4", v.target.String())
	}
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.far != nil {
		v.far.Close() // the server of an earlier request, which has closed it
	}
	v.far = c
	return c, nil
}

// plain makes a name comparable.
func plain(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// errNamed ends a handshake as soon as the client has named its server.
var errNamed = errors.New("named")

// serveTLS reads the name out of the handshake, and passes the handshake on as it came, or answers it itself where headers are to be put in. Where any
// name is allowed at the address, so is none.
func (g *Gate) serveTLS(ctx context.Context, p Policy, v *visit, any bool) error {
	v.near.SetReadDeadline(time.Now().Add(patience))
	hello := &recorder{Conn: v.near}
	var name string
	err := tls.Server(hello, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name = plain(h.ServerName)
		return nil, errNamed
	}}).HandshakeContext(ctx)
	mine := name != "" && p.Transforms(name)
	v.say(name, true, mine)
	switch {
	case mine && (any || p.Resolves(name)):
		v.near.SetReadDeadline(time.Time{})
		return g.intercept(ctx, v, name, hello.read)
	case any:
	case !errors.Is(err, errNamed):
		return fmt.Errorf("read TLS handshake: %w", err)
	case name == "":
		return errors.New("the TLS handshake names no server")
	case !p.Resolves(name):
		return errors.New("the name is not allowed")
	}
	v.near.SetReadDeadline(time.Time{})
	return g.tunnel(ctx, v, hello.read)
}

// recorder keeps what is read and writes nothing.
type recorder struct {
	net.Conn
	read []byte
}

func (r *recorder) Read(b []byte) (int, error) {
	if len(r.read) >= maxHello {
		return 0, errors.New("too long")
	}
	n, err := r.Conn.Read(b)
	r.read = append(r.read, b[:n]...)
	if err == nil && n > 0 && r.read[0] != handshakeRecord {
		err = errors.New("no TLS") // and perhaps too short to be told from its beginning
	}
	return n, err
}

// handshakeRecord is what a TLS connection begins with (RFC 8446, 5.1).
const handshakeRecord = 22

func (r *recorder) Write(b []byte) (int, error) { return len(b), nil } // the alert that ends our part of the handshake

// originalTarget asks the kernel where a redirected connection was sent to.
func originalTarget(c *net.TCPConn) (to netip.AddrPort, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return to, fmt.Errorf("find original target: %w", err)
	}
	ctlErr := raw.Control(func(fd uintptr) {
		const soOriginalDst = 80 // linux/netfilter_ipv4.h
		var m *unix.IPv6Mreq     // as large as the sockaddr_in that comes back
		if m, err = unix.GetsockoptIPv6Mreq(int(fd), syscall.IPPROTO_IP, soOriginalDst); err == nil {
			b := m.Multiaddr
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4]))
		}
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return to, fmt.Errorf("find original target: %w", err)
	}
	return to, nil
}
