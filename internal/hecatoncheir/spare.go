package hecatoncheir

import (
	"context"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// spareTime is how long a connection made in advance is kept for its first user: well below the 30 s after which the guest's agent gives up on
// one that asks nothing.
const spareTime = 10 * time.Second

// spare connects to the agent of a sandbox that has just begun, because a command follows as a rule: it finds the connection made, in the
// time in which its caller was still being told of the sandbox. Whether that works concerns nobody.
func (a *Agent) spare(ctx context.Context, h *held) {
	h.mu.Lock()
	slot := h.slot
	h.mu.Unlock()
	if slot == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTime)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp4", netip.AddrPortFrom(slot.Address(), tartarus.AgentPort).String())
	if err == nil {
		h.conns.spare(conn.(*net.TCPConn))
	}
}

// spare keeps a connection for the next user, for spareTime.
func (c *conns) spare(conn *net.TCPConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut || c.ready != nil {
		_ = conn.Close()
		return
	}
	c.ready = conn
	c.expiry = time.AfterFunc(spareTime, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.ready == conn {
			c.noSpare()
		}
	})
}

// takeSpare gives the kept connection away, or nil.
func (c *conns) takeSpare() net.Conn {
	c.mu.Lock()
	conn := c.ready
	if conn != nil {
		c.expiry.Stop()
	}
	c.ready = nil
	c.mu.Unlock()
	if conn == nil {
		return nil
	}
	if !silent(conn) {
		_ = conn.Close()
		return nil
	}
	return conn
}

// noSpare closes the kept connection, with the lock held.
func (c *conns) noSpare() {
	if c.ready == nil {
		return
	}
	c.expiry.Stop()
	_ = c.ready.SetLinger(0) // as if it had never been
	_ = c.ready.Close()
	c.ready = nil
}

// silent reports whether a connection is open and nothing has come over it, which is how one that was never used must be.
func silent(conn *net.TCPConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		quiet = err == unix.EAGAIN
		return true
	})
	return err == nil && quiet
}
