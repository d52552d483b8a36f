// Package sockets opens the host's sockets that serve sandboxes. They listen at every address of the host, because a redirected
// packet keeps the address of the cable it came in by, but the kernel discards what comes from outside the sandboxes' range
// before it reaches them: to everybody else the port is as good as closed.
package sockets

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// UDP listens on a free port. Messages come with the address they were sent to (IP_PKTINFO).
func UDP(ctx context.Context, source netip.Prefix) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: control(source, true)}
	c, err := lc.ListenPacket(ctx, "udp4", "0.0.0.0:0")
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// TCP listens on a port; 0 means a free one.
func TCP(ctx context.Context, source netip.Prefix, port int) (*net.TCPListener, error) {
	lc := net.ListenConfig{Control: control(source, false)}
	l, err := lc.Listen(ctx, "tcp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// receiveBuffer holds some 5,000 small packets: what a few sandboxes send at once must not push out those of the others.
const receiveBuffer = 4 << 20

// control prepares a socket before it is bound.
func control(source netip.Prefix, udp bool) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		ctlErr := c.Control(func(fd uintptr) {
			f := fromOnly(source)
			err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]})
			if err == nil && udp {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
				// Beyond the host's limit only for root, and not needed where it is refused.
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
			}
		})
		return errors.Join(ctlErr, err)
	}
}

// fromOnly is a socket filter that lets only packets from a range through.
func fromOnly(p netip.Prefix) []unix.SockFilter {
	const (
		load          = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		and           = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
		jumpEqual     = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret           = unix.BPF_RET | unix.BPF_K
		sourceAddress = -0x100000 + 12 // SKF_NET_OFF, which x/sys lacks: from the start of the IP header
	)
	base := p.Masked().Addr().As4()
	offset := int32(sourceAddress)
	return []unix.SockFilter{
		{Code: load, K: uint32(offset)},
		{Code: and, K: uint32(uint64(0xffffffff) << (32 - p.Bits()))},
		{Code: jumpEqual, Jf: 1, K: binary.BigEndian.Uint32(base[:])},
		{Code: ret, K: 0xffffffff},
		{Code: ret, K: 0},
	}
}
