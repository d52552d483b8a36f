package link

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// identity is a node's key, certificate and the authority it trusts, in one file that only root reads.
type identity struct {
	file string
	node string

	mu   sync.Mutex
	cert *tls.Certificate
	pool *x509.CertPool
	root *x509.Certificate
}

// loadIdentity reads the file; none is tartarus.NotFound.
func loadIdentity(file, node string) (*identity, error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, tartarus.Errorf(tartarus.NotFound, "this node has not joined a fleet")
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	id := &identity{file: file, node: node}
	return id, id.parse(raw)
}

func (id *identity) parse(raw []byte) error {
	bad := func(err error) error {
		return tartarus.Errorf(tartarus.Corrupt, "read identity %s: %w; remove it and join again", id.file, err)
	}
	pair, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		return bad(err)
	}
	if len(pair.Certificate) != 2 {
		return bad(errors.New("it does not hold two certificates"))
	}
	root, err := x509.ParseCertificate(pair.Certificate[1])
	if err != nil {
		return bad(err)
	}
	if name, ok := nodeOf(pair.Leaf); !ok || name != id.node {
		return tartarus.Errorf(tartarus.Conflict, "this machine joined the fleet as node %s and is configured as %s; join again with a new token, or take the old name", name, id.node)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	id.mu.Lock()
	defer id.mu.Unlock()
	id.cert, id.pool, id.root = &pair, pool, root
	return nil
}

// current returns the certificate to show.
func (id *identity) current() *tls.Certificate {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.cert
}

// stale reports whether the certificate should be renewed.
func (id *identity) stale(now time.Time) bool {
	leaf := id.current().Leaf
	return now.After(leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 3))
}

// over reports whether the certificate is good for nothing any more.
func (id *identity) over(now time.Time) bool { return now.After(id.current().Leaf.NotAfter) }

// become takes another identity of the same node on.
func (id *identity) become(fresh *identity) {
	id.mu.Lock()
	defer id.mu.Unlock()
	id.cert, id.pool, id.root = fresh.cert, fresh.pool, fresh.root
}

// request makes a new key and the request for its certificate.
func request(node string) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: node}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	return key, csr, nil
}

// take writes a new key with its certificate and uses it from now on.
func (id *identity) take(key *ecdsa.PrivateKey, a certificateAnswer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	var out bytes.Buffer
	_ = pem.Encode(&out, &pem.Block{Type: "PRIVATE KEY", Bytes: der}) // a buffer takes everything
	_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate})
	_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: a.Authority})
	if err := id.parse(out.Bytes()); err != nil {
		return err
	}
	return writeSecret(id.file, out.Bytes())
}

// dialConfig is how the node shows itself to replicas and checks that they are.
func (id *identity) dialConfig() *tls.Config {
	id.mu.Lock()
	defer id.mu.Unlock()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: id.pool, ServerName: olympusName,
		Certificates: []tls.Certificate{*id.cert}, NextProtos: []string{protoSession},
	}
}

// listenConfig is the same for the node's own listener.
func (id *identity) listenConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{protoJoin},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			id.mu.Lock()
			defer id.mu.Unlock()
			return &tls.Config{
				MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: id.pool,
				Certificates: []tls.Certificate{*id.cert}, NextProtos: []string{protoJoin},
			}, nil
		},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.current(), nil },
	}
}

// joinFleet gets a first certificate from a replica with a join token. The token says which authority is the right one, so
// nobody in between can stand in for it.
func joinFleet(ctx context.Context, addr, node, token, file string) (*identity, error) {
	c, _, _, err := readToken(token)
	if err != nil {
		return nil, err
	}
	key, csr, err := request(node)
	if err != nil {
		return nil, err
	}
	cl := newClient(func(ctx context.Context) (net.Conn, error) {
		d := tls.Dialer{Config: &tls.Config{
			MinVersion: tls.VersionTLS13, ServerName: olympusName, NextProtos: []string{protoJoin},
			InsecureSkipVerify: true, // VerifyConnection does it, with the authority that the token names
			VerifyConnection:   func(s tls.ConnectionState) error { return pinned(s, c.Pin) },
		}}
		return d.DialContext(ctx, "tcp", addr)
	})
	defer cl.CloseIdleConnections()
	var out certificateAnswer
	if err := call(ctx, cl, "join", joinArgs{Token: token, Node: node, Request: csr}, &out); err != nil {
		return nil, wrap(tartarus.Unavailable, err, "join the fleet at %s", addr)
	}
	id := &identity{file: file, node: node}
	return id, id.take(key, out)
}

// pinned checks that a replica shows a certificate of the authority that a token names.
func pinned(s tls.ConnectionState, pin string) error {
	if len(s.PeerCertificates) != 2 || pinOf(s.PeerCertificates[1]) != pin {
		return tartarus.Errorf(tartarus.Forbidden, "the server is not of the fleet that the join token is for")
	}
	pool := x509.NewCertPool()
	pool.AddCert(s.PeerCertificates[1])
	_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: olympusName, Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err
}
