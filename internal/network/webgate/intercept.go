package webgate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// replay is a connection of which some bytes were read already.
type replay struct {
	net.Conn
	read []byte
}

func (r *replay) Read(b []byte) (int, error) {
	if len(r.read) > 0 {
		n := copy(b, r.read)
		r.read = r.read[n:]
		return n, nil
	}
	return r.Conn.Read(b)
}

// intercept answers in the place of a server, so that headers can be put into requests to it. The server has to prove that it is the one
// that the client named before anything is sent to it.
func (g *Gate) intercept(ctx context.Context, v *visit, name string, hello []byte) error {
	if g.cfg.Authority == nil {
		return errors.New("headers are to be put in, and there is no authority to answer under")
	}
	near := tls.Server(&replay{Conn: v.near, read: hello}, &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return g.cfg.Authority.leaf(name, time.Now()) },
		NextProtos:     []string{"http/1.1"},
		MinVersion:     tls.VersionTLS12,
	})
	handshake, cancel := context.WithTimeout(ctx, patience)
	err := near.HandshakeContext(handshake)
	cancel()
	if err != nil {
		return fmt.Errorf("answer for %s: %w", name, err)
	}
	g.serveRequests(ctx, &webConn{Conn: near, visit: v, name: name, done: make(chan struct{}), up: &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			far, err := v.dial(ctx)
			if err != nil {
				return nil, err
			}
			secure := tls.Client(far, &tls.Config{ServerName: name, RootCAs: g.cfg.Roots, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12})
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			if err := secure.HandshakeContext(ctx); err != nil {
				far.Close()
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			return secure, nil
		},
		DisableCompression:    true,
		MaxConnsPerHost:       1,
		IdleConnTimeout:       idleRequest,
		ExpectContinueTimeout: patience,
	}})
	return nil
}

type headersKey struct{}
