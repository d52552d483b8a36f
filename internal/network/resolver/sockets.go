package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fromOnly is a socket filter that lets only packets from a range through: the sockets listen at every address of the host, because a
// redirected question keeps the address it was sent to, but nobody outside the range shall even find the port open.
func fromOnly(p netip.Prefix) []unix.SockFilter {
	const (
		load, and, jumpEqual, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
		sourceAddress             = -0x100000 + 12 // SKF_NET_OFF, which x/sys lacks: from the start of the IP header
	)
	base := p.Masked().Addr().As4()
	mask := uint32(0xffffffff) << (32 - p.Bits())
	offset := int32(sourceAddress)
	return []unix.SockFilter{
		{Code: load, K: uint32(offset)},
		{Code: and, K: mask},
		{Code: jumpEqual, Jf: 1, K: binary.BigEndian.Uint32(base[:])},
		{Code: ret, K: 0xffffffff},
		{Code: ret, K: 0},
	}
}

// receiveBuffer holds some 5,000 questions: what a few askers send at once must not push out those of the others.
const receiveBuffer = 4 << 20

// control prepares a socket before it is bound.
func control(source netip.Prefix, packetInfo bool) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		ctlErr := c.Control(func(fd uintptr) {
			f := fromOnly(source)
			err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]})
			if err == nil && packetInfo {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
				// Beyond the host's limit only for root, and not needed where it is refused.
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
			}
		})
		return errors.Join(ctlErr, err)
	}
}

func listenUDP(ctx context.Context, source netip.Prefix) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: control(source, true)}
	c, err := lc.ListenPacket(ctx, "udp4", "0.0.0.0:0")
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

func listenTCP(ctx context.Context, source netip.Prefix, port int) (*net.TCPListener, error) {
	lc := net.ListenConfig{Control: control(source, false), KeepAlive: -1}
	l, err := lc.Listen(ctx, "tcp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

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
