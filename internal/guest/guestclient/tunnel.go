package guestclient

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// upgrade turns a fresh connection to the agent into one to the port that url names.
func upgrade(ctx context.Context, conn net.Conn, url, protocol string) (net.Conn, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if err := req.Write(conn); err != nil {
		stop()
		return nil, transportError("tunnel", err)
	}
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, req)
	if !stop() {
		return nil, transportError("tunnel", ctx.Err())
	}
	if err != nil {
		return nil, transportError("tunnel", err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		defer res.Body.Close()
		err := statusError("tunnel", res)
		if res.StatusCode == http.StatusConflict {
			err = tartarus.Errorf(tartarus.PortClosed, "%w", err)
		}
		return nil, err
	}
	return &buffered{Conn: conn, r: r}, nil
}

// buffered is a connection of which some bytes were read already.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) {
	if b.r != nil {
		if b.r.Buffered() > 0 {
			return b.r.Read(p)
		}
		b.r = nil
	}
	return b.Conn.Read(p)
}

// CloseWrite tells the guest that no more comes, and leaves the other direction open.
func (b *buffered) CloseWrite() error {
	if half, ok := b.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return b.Conn.Close()
}
