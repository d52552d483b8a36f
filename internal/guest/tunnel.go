package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
	"github.com/tartarus-sandbox/tartarus/internal/guest/hostapi"
)

// loopbackDial is how long a program on the guest's own loopback may take to accept.
const loopbackDial = 5 * time.Second

// tunnel answers GET /tunnel?port=N: it makes the connection one to that port of the guest's loopback, which the host
// cannot reach by itself.
func (a *Agent) tunnel(w http.ResponseWriter, r *http.Request) {
	port, err := strconv.ParseUint(r.URL.Query().Get("port"), 10, 16)
	if err != nil || port == 0 {
		fault.HTTP(w, tartarus.Errorf(tartarus.Invalid, "port must be a number from 1 to 65535"))
		return
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), hostapi.TunnelProtocol) || r.ProtoMajor != 1 {
		fault.HTTP(w, tartarus.Errorf(tartarus.Invalid, "a tunnel needs HTTP/1.1 and Upgrade: %s", hostapi.TunnelProtocol))
		return
	}
	inner, err := dialLoopback(r.Context(), strconv.FormatUint(port, 10))
	if err != nil {
		status := http.StatusBadGateway
		if errors.Is(err, syscall.ECONNREFUSED) {
			status = http.StatusConflict // nobody listens; everything else is the guest's trouble
		}
		fault.Write(w, status, "port "+strconv.FormatUint(port, 10)+": "+err.Error())
		return
	}
	defer inner.Close()
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", hostapi.TunnelProtocol)
	w.WriteHeader(http.StatusSwitchingProtocols)
	outer, early, err := http.NewResponseController(w).Hijack()
	if err != nil {
		a.log.Warn("tunnel not opened", "error", err)
		return
	}
	defer outer.Close()
	if err := early.Flush(); err != nil {
		return
	}
	splice(outer, inner, early)
}

// dialLoopback tries IPv4 and then IPv6, where a program may listen alone.
func dialLoopback(ctx context.Context, port string) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, loopbackDial)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
	if errors.Is(err, syscall.ECONNREFUSED) {
		if six, err6 := d.DialContext(ctx, "tcp", net.JoinHostPort("::1", port)); err6 == nil {
			conn, err = six, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// splice carries bytes both ways until both directions have ended. An end is passed on as a half-close, and an error ends
// both.
func splice(outer net.Conn, inner *net.TCPConn, early io.Reader) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := io.Copy(outer, inner); err != nil {
			outer.Close()
		} else if half, ok := outer.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite() // it is closed soon anyway
		}
	}()
	// What the client sent behind its request waits in the server's buffer, so this reads through it.
	if _, err := io.Copy(inner, early); err != nil {
		inner.Close()
	} else {
		_ = inner.CloseWrite() // it is closed soon anyway
	}
	<-done
}
