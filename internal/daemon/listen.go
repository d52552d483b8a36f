package daemon

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// stopTime is how long requests under way may take when the process stops; streams of sandboxes are cut after it.
const stopTime = 5 * time.Second

// serveControl starts the API and, when configured, the edge.
func (d *Daemon) serveControl(ctx context.Context, g *errgroup.Group, p *parts, api net.Listener) error {
	g.Go(func() error { return p.api.Run(ctx) })
	g.Go(func() error { return d.serveLocal(ctx, p) })
	g.Go(func() error { return serveHTTP(ctx, api, newServer(p.edge.Wrap(p.api.Handler()))) })
	return nil
}

// newServer is an HTTP/1.1 and cleartext HTTP/2 server with bounds against slow and idle clients. Bodies and answers may take as long as they
// like: they are streams of sandboxes.
func newServer(h http.Handler) *http.Server {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: h, Protocols: protocols,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 64 << 10,
	}
}

// serveHTTP serves until ctx ends, then lets requests under way finish for a moment.
func serveHTTP(ctx context.Context, l net.Listener, s *http.Server) error {
	stopped := make(chan struct{})
	serving, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(stopped)
		<-serving.Done()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		if s.Shutdown(last) != nil {
			_ = s.Close()
		}
	}()
	err := s.Serve(l)
	cancel()
	<-stopped
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// hostMemoryMB is the memory of this machine.
func hostMemoryMB() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 1024
	}
	return int64(uint64(info.Totalram) * uint64(info.Unit) >> 20)
}
