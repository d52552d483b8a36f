package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

const (
	// headerTime bounds how long a client may take to send the head of a request. Bodies and answers may take as long as they like: they
	// are streams of sandboxes.
	headerTime = 10 * time.Second
	// keepTime is how long an idle connection is kept: longer than the 300 s for which the Python SDK keeps its own, so that it is the
	// client who closes, and never in the face of a request.
	keepTime = 310 * time.Second
	// maxHeader bounds the head of a request; browsers send up to 64 KiB of cookies alone.
	maxHeader = 128 << 10
	// maxStreams bounds the requests on one HTTP/2 connection: what the SDKs send at once by default.
	maxStreams = 2000
	// stopTime is how long requests under way may take when the server stops.
	stopTime = 5 * time.Second
)

// NewServer makes a server for h that speaks HTTP/1.1 and HTTP/2, over TLS or, for clients that know, without it.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: h, Protocols: protocols, ReadHeaderTimeout: headerTime, IdleTimeout: keepTime, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams,
			// A megabyte in flight per upload fills a gigabit at 8 ms; the connection as a whole may hold four.
			MaxReceiveBufferPerStream: 1 << 20, MaxReceiveBufferPerConnection: 4 << 20,
			// A client that vanished without a word is noticed, and its streams end.
			SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second,
		},
	}
}

// ServeTLS serves h on l with certificates from certificate until ctx ends.
func (e *Edge) ServeTLS(ctx context.Context, l net.Listener, h http.Handler, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) error {
	s := NewServer(h, e.log)
	s.TLSConfig = &tls.Config{GetCertificate: certificate, MinVersion: tls.VersionTLS12}
	return Serve(ctx, l, s)
}

// Serve serves on l, over TLS where s has certificates, until ctx ends. Then it takes nothing new, gives requests under way a moment, and
// closes what is left.
func Serve(ctx context.Context, l net.Listener, s *http.Server) error {
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
	var err error
	if s.TLSConfig != nil {
		err = s.ServeTLS(l, "", "")
	} else {
		err = s.Serve(l)
	}
	cancel()
	<-stopped
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
