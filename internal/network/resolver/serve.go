package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// serveUDP reads questions until the socket is closed.
func (s *Server) serveUDP(ctx context.Context) error {
	buf, oob := make([]byte, maxQuestion), make([]byte, 128)
	for {
		n, on, _, from, err := s.udp.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			continue // an ICMP error about an earlier answer
		}
		a := from.Addr().Unmap()
		p := s.cfg.Asker(a)
		if p == nil || !s.begin(a) {
			continue
		}
		question, to := append([]byte(nil), buf[:n]...), replySource(oob[:on])
		s.work.Go(func() {
			defer s.end(a)
			ctx, cancel := context.WithTimeout(ctx, longest)
			defer cancel()
			if answer := s.handle(ctx, p, question, true); answer != nil {
				s.udp.WriteMsgUDPAddrPort(answer, to, from) // a lost answer is asked for again
			}
		})
	}
}

// replySource turns what the kernel says of a packet into the order to answer from the address it was sent to.
func replySource(oob []byte) []byte {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo {
			var info unix.Inet4Pktinfo
			copy(info.Spec_dst[:], m.Data[4:8])
			return unix.PktInfo4(&info)
		}
	}
	return nil
}

// serveTCP accepts connections until the listener is closed.
func (s *Server) serveTCP(ctx context.Context) error {
	for {
		c, err := s.tcp.AcceptTCP()
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
		a := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		p := s.cfg.Asker(a)
		if p == nil || !s.connect(a, 1) {
			c.Close()
			continue
		}
		s.work.Go(func() {
			defer s.connect(a, -1)
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			s.serveConn(ctx, p, a, c)
		})
	}
}

// connect counts an asker's connections; one too many is refused.
func (s *Server) connect(a netip.Addr, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.asker(a)
	if n > 0 && k.conns >= connections {
		return false
	}
	k.conns += n
	return true
}

// serveConn answers one question after the other, each with its length in two bytes before it.
func (s *Server) serveConn(ctx context.Context, p Policy, a netip.Addr, c *net.TCPConn) {
	for {
		c.SetDeadline(time.Now().Add(idle))
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		if n > maxQuestion {
			return
		}
		question := make([]byte, n)
		if _, err := io.ReadFull(c, question); err != nil || !s.begin(a) {
			return
		}
		answer := func() []byte {
			defer s.end(a)
			ctx, cancel := context.WithTimeout(ctx, longest)
			defer cancel()
			return s.handle(ctx, p, question, false)
		}()
		if answer == nil {
			return
		}
		c.SetDeadline(time.Now().Add(idle))
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}
