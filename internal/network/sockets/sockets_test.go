package sockets

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// TestSource sends from addresses inside and outside the range; those outside must not even see an open port.
func TestSource(t *testing.T) {
	for _, p := range []string{"127.0.0.2/32", "127.0.0.2/31", "127.0.0.0/8", "0.0.0.0/0", "127.1.0.0/16"} {
		source := netip.MustParsePrefix(p)
		u, err := UDP(t.Context(), source)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		l, err := TCP(t.Context(), source, 0)
		if errors.Is(err, os.ErrPermission) {
			t.Skip("this kernel lets only root attach filters to TCP sockets: ", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for _, from := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.1.2.3"} {
			want := source.Contains(netip.MustParseAddr(from))
			if got := hears(t, u, from); got != want {
				t.Errorf("UDP from %s with range %s: %v", from, p, got)
			}
			if got := connects(l, from); got != want {
				t.Errorf("TCP from %s with range %s: %v", from, p, got)
			}
		}
	}
}

func at(addr string, port int) *net.TCPAddr { return &net.TCPAddr{IP: net.ParseIP(addr), Port: port} }

func connects(l net.Listener, from string) bool {
	d := net.Dialer{LocalAddr: at(from, 0), Timeout: 50 * time.Millisecond}
	c, err := d.Dial("tcp4", at("127.0.0.1", l.Addr().(*net.TCPAddr).Port).String())
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func hears(t *testing.T, u *net.UDPConn, from string) bool {
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("udp4", at("127.0.0.1", u.LocalAddr().(*net.UDPAddr).Port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(from)); err != nil {
		return false
	}
	u.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	b := make([]byte, 64)
	n, _, err := u.ReadFrom(b)
	return err == nil && string(b[:n]) == from
}
