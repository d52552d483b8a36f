package link

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// tunnelPath leads to a port of a guest: POST /tunnel/{id}/{port} with an upgrade, after which the connection is the guest's.
const tunnelPath = "/tunnel/"

const tunnelProtocol = "tartarus-tunnel"

// openTunnel asks for a port of a guest over a new connection and returns the connection when it is the guest's.
func openTunnel(ctx context.Context, dial dialer, id string, port int) (net.Conn, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	opened, err := askTunnel(conn, id, port)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = tartarus.Errorf(tartarus.Unavailable, "open tunnel to port %d of sandbox %s: %w", port, id, ctx.Err())
		}
		return nil, err
	}
	return opened, nil
}

func askTunnel(conn net.Conn, id string, port int) (net.Conn, error) {
	_, err := fmt.Fprintf(conn, "POST %s%s/%d HTTP/1.1\r\nHost: peer\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 0\r\n\r\n", tunnelPath, id, port, tunnelProtocol)
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Unavailable, "ask for tunnel: %w", err)
	}
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Unavailable, "ask for tunnel: %w", err)
	}
	switch res.StatusCode {
	case http.StatusSwitchingProtocols:
	case statusRefused:
		raw, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
		if err != nil {
			return nil, tartarus.Errorf(tartarus.Unavailable, "ask for tunnel: %w", err)
		}
		return nil, refusal(raw)
	default:
		return nil, tartarus.Errorf(tartarus.Unavailable, "ask for tunnel: %s", res.Status)
	}
	if r.Buffered() == 0 {
		return conn, nil
	}
	return &buffered{Conn: conn, r: r}, nil
}

// buffered gives what was read ahead first.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (c *buffered) Read(p []byte) (int, error) { return c.r.Read(p) }

// serveTunnel connects the caller to a guest.
func serveTunnel(node Node) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		port, err := strconv.Atoi(r.PathValue("port"))
		if err != nil || !tartarus.ValidID(r.PathValue("id")) || r.Header.Get("Upgrade") != tunnelProtocol {
			refuse(w, tartarus.Errorf(tartarus.Invalid, "a tunnel needs a sandbox, a port and an upgrade"))
			return
		}
		guest, err := node.Dial(r.Context(), r.PathValue("id"), port)
		if err != nil {
			refuse(w, err)
			return
		}
		defer guest.Close()
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			refuse(w, err)
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Time{})
		_, err = io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+tunnelProtocol+"\r\n\r\n")
		if err != nil || rw.Flush() != nil {
			return
		}
		join(conn, rw.Reader, guest)
	}
}

// join copies both ways until both directions have ended, or one side is gone.
func join(conn net.Conn, early io.Reader, guest net.Conn) {
	there := make(chan struct{})
	go func() {
		defer close(there)
		_, err := io.Copy(guest, early)
		finish(guest, err)
	}()
	_, err := io.Copy(conn, guest)
	finish(conn, err)
	<-there
}

// finish passes the end of one direction on. After an error there is nothing worth waiting for.
func finish(to net.Conn, err error) {
	half, ok := to.(interface{ CloseWrite() error })
	if err == nil && ok && half.CloseWrite() == nil {
		return
	}
	_ = to.Close()
}
