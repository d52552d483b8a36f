package hecatoncheir

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// dialTime bounds a connection to a guest on the same host.
const dialTime = 5 * time.Second

// Dial connects to a TCP port of the guest, wherever in the guest it is bound, and wakes it if it is hibernated. The connection breaks when the sandbox ends or is paused:
// a guest that is gone cannot say so itself.
func (a *Agent) Dial(ctx context.Context, id string, port int) (net.Conn, error) {
	for {
		h, err := a.awake(ctx, id)
		if tartarus.Is(err, tartarus.Conflict) || tartarus.Is(err, tartarus.NotFound) {
			return nil, tartarus.Errorf(tartarus.GuestGone, "sandbox %s does not run here", id)
		}
		if err != nil {
			return nil, err
		}
		conn, err := a.dial(ctx, h, port)
		if err == nil || ctx.Err() != nil || !h.asleep() {
			return conn, err
		} // it was put to sleep in this very moment
	}
}

// dial connects to a port of a guest that runs.
func (a *Agent) dial(ctx context.Context, h *held, port int) (net.Conn, error) {
	id := h.spec.ID
	if sb := h.sandbox(); sb.Terminating() {
		return nil, tartarus.Errorf(tartarus.GuestGone, "sandbox %s is being terminated", id)
	}
	if port < 1 || port > 65535 {
		return nil, tartarus.Errorf(tartarus.Invalid, "%d is not a port", port)
	}
	if h.spec.Confined != "" && port != tartarus.AgentPort {
		return nil, tartarus.Errorf(tartarus.Forbidden, "sandbox %s runs in quarantine: nothing but its agent can be reached", id)
	}
	h.mu.Lock()
	slot, guest := h.slot, h.guest
	h.mu.Unlock()
	if slot == nil {
		return nil, tartarus.Errorf(tartarus.GuestGone, "sandbox %s has no network", id)
	}
	if port == tartarus.AgentPort {
		if conn := h.conns.takeSpare(); conn != nil {
			return h.conns.add(conn)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp4", netip.AddrPortFrom(slot.Address(), uint16(port)).String())
	switch {
	case err == nil:
	case errors.Is(err, syscall.ECONNREFUSED) && port != tartarus.AgentPort:
		// Nobody listens on the guest's address, but perhaps on its loopback, which only the agent can reach.
		if conn, err = guest.Tunnel(ctx, port); err != nil {
			return nil, err
		}
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, tartarus.Errorf(tartarus.PortClosed, "nobody listens on port %d of sandbox %s", port, id)
	default:
		return nil, tartarus.Errorf(tartarus.GuestGone, "sandbox %s cannot be reached: %w", id, err)
	}
	return h.conns.add(conn)
}

// conns are the open connections into one sandbox.
type conns struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
	cut  bool
	doze bool      // cut, because nothing used it
	used time.Time // when one was made or closed, or something else used the sandbox

	ready  *net.TCPConn // to the agent, kept for the next user, see spare
	expiry *time.Timer  // of ready
}

// add keeps track of a connection until it is closed.
func (c *conns) add(conn net.Conn) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		return nil, errors.Join(tartarus.Errorf(tartarus.GuestGone, "the sandbox has just ended"), conn.Close())
	}
	c.used = time.Now()
	if c.open == nil {
		c.open = map[net.Conn]struct{}{}
	}
	c.open[conn] = struct{}{}
	if tcp, ok := conn.(*net.TCPConn); ok {
		return &tcpConn{TCPConn: tcp, from: c}, nil
	}
	return &anyConn{Conn: conn, from: c}, nil
}

func (c *conns) drop(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
	c.used = time.Now()
}

// use says how many are open, and when the last one was made or closed.
func (c *conns) use() (open int, last time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open), c.used
}

// touch notes that something else used the sandbox.
func (c *conns) touch(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used = now
}

// beginDoze lets no new ones be made, if none is open and nothing has used the sandbox since used.
func (c *conns) beginDoze(used time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) > 0 || !c.used.Equal(used) || c.cut {
		return false
	}
	c.cut, c.doze = true, true
	c.noSpare()
	return true
}

// dozing reports whether none are made because nothing used the sandbox.
func (c *conns) dozing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.doze
}

// breakAll breaks all connections; no new ones are made until allow.
func (c *conns) breakAll() {
	c.mu.Lock()
	open := c.open
	c.open, c.cut = nil, true
	c.noSpare()
	c.mu.Unlock()
	for conn := range open {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // what is unsent will never be received
		}
		_ = conn.Close()
	}
}

// allow makes new connections possible again.
func (c *conns) allow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut, c.doze, c.used = false, false, time.Now()
}

// tcpConn keeps what a TCP connection can do beyond net.Conn, above all to be copied within the kernel.
type tcpConn struct {
	*net.TCPConn
	from *conns
}

func (c *tcpConn) Close() error {
	c.from.drop(c.TCPConn)
	return c.TCPConn.Close()
}

type anyConn struct {
	net.Conn
	from *conns
}

func (c *anyConn) Close() error {
	c.from.drop(c.Conn)
	return c.Conn.Close()
}

// CloseWrite tells the other side that nothing more comes, where the connection can.
func (c *anyConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
