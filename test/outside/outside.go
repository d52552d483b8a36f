// Package outside is the servers that stand for the internet in tests, in a network namespace of the caller's: a name server, a web server that proves
// its names by an authority of its own, and a SOCKS5 server. They answer at the addresses in Addresses, which the namespace has to have, and no other
// code of the tests runs in the namespace.
package outside

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Where the servers are, in a range kept for documentation (RFC 5737).
const (
	NameServer  = "198.51.100.53"
	WebServer   = "198.51.100.54"
	SocksServer = "198.51.100.55"
	// Domain is what the name server knows: every name below it is the web server.
	Domain = "outside.example"
	// User and Password let into the SOCKS5 server.
	User, Password = "me", "word"
)

// Addresses are all of them.
var Addresses = []string{NameServer, WebServer, SocksServer}

// Servers are the servers at work.
type Servers struct {
	tasks   chan func()
	closers []func()
	trust   []byte
	conns   sync.WaitGroup

	mu    sync.Mutex
	dials []string
}

// Serve starts the servers in the namespace that a file names.
func Serve(namespace string) (*Servers, error) {
	s := &Servers{tasks: make(chan func())}
	entered := make(chan error)
	go s.thread(namespace, entered)
	if err := <-entered; err != nil {
		return nil, fmt.Errorf("enter %s: %w", namespace, err)
	}
	s.closers = append(s.closers, func() { close(s.tasks) })
	for _, start := range []func() error{s.serveNames, s.serveWeb, s.serveSocks} {
		if err := start(); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// Close stops the servers.
func (s *Servers) Close() {
	for i := len(s.closers) - 1; i >= 0; i-- {
		s.closers[i]()
	}
	s.closers = nil
}

// Trust is the authority of the web server, in PEM.
func (s *Servers) Trust() []byte { return s.trust }

// Dialled returns what the SOCKS5 server was asked for since it was asked last.
func (s *Servers) Dialled() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.dials
	s.dials = nil
	return all
}

// thread does in the namespace what it is told. It is not given back: it ends with the goroutine, and the change of namespace with it.
func (s *Servers) thread(namespace string, entered chan<- error) {
	runtime.LockOSThread()
	ns, err := os.Open(namespace)
	if err == nil {
		err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		ns.Close()
	}
	entered <- err
	if err != nil {
		return
	}
	for task := range s.tasks {
		task()
	}
}

// within runs f in the namespace. Sockets that it makes stay there.
func (s *Servers) within(f func()) {
	done := make(chan struct{})
	s.tasks <- func() { defer close(done); f() }
	<-done
}

func (s *Servers) listen(addr string) (l net.Listener, err error) {
	s.within(func() { l, err = net.Listen("tcp", addr) })
	if err == nil {
		s.closers = append(s.closers, func() { l.Close() })
	}
	return l, err
}

// serveNames answers with the web server for every name of the domain, and knows no other.
func (s *Servers) serveNames() error {
	var pc net.PacketConn
	var err error
	s.within(func() { pc, err = net.ListenPacket("udp", NameServer+":53") })
	if err != nil {
		return err
	}
	s.closers = append(s.closers, func() { pc.Close() })
	l, err := s.listen(NameServer + ":53")
	if err != nil {
		return err
	}
	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		name := q.Question[0].Name
		switch {
		case !dns.IsSubDomain(Domain+".", name):
			m.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeA:
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(WebServer)}}
		}
		_ = w.WriteMsg(m)
	})
	for _, one := range []*dns.Server{{PacketConn: pc, Handler: answer}, {Listener: l, Handler: answer}} {
		go func() { _ = one.ActivateAndServe() }()
		s.closers = append(s.closers, func() { _ = one.Shutdown() })
	}
	return nil
}

// serveWeb answers requests with the host and headers they came with, as JSON.
func (s *Servers) serveWeb() error {
	cert, authority, err := newSite()
	if err != nil {
		return err
	}
	s.trust = authority
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"host": r.Host, "headers": r.Header})
	})
	for addr, secure := range map[string]bool{WebServer + ":443": true, WebServer + ":80": false} {
		l, err := s.listen(addr)
		if err != nil {
			return err
		}
		if secure {
			l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}})
		}
		web := &http.Server{Handler: echo, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
		go func() { _ = web.Serve(l) }()
		s.closers = append(s.closers, func() { _ = web.Close() })
	}
	return nil
}

// newSite makes an authority and a certificate of it for the names of the domain.
func newSite() (site tls.Certificate, authority []byte, err error) {
	now := time.Now()
	sign := func(t, parent *x509.Certificate, signer *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		key, e := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err = errors.Join(err, e); err != nil {
			return nil, nil
		}
		if parent == nil {
			parent, signer = t, key
		}
		t.SerialNumber, t.NotBefore, t.NotAfter = big.NewInt(time.Now().UnixNano()), now.Add(-time.Hour), now.Add(24*time.Hour)
		der, e := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer)
		err = errors.Join(err, e)
		return der, key
	}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "Outside"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	root, signer := sign(ca, nil, nil)
	der, key := sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: Domain}, DNSNames: []string{Domain, "*." + Domain},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, signer)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root}), err
}

// serveSocks connects those who log in to where they want to go, and remembers where that was.
func (s *Servers) serveSocks() error {
	l, err := s.listen(SocksServer + ":1080")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.closers = append(s.closers, func() { cancel(); l.Close(); s.conns.Wait() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.conns.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				_ = s.socks(c)
			})
		}
	}()
	return nil
}

func (s *Servers) socks(c net.Conn) error {
	var failed error
	read := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(c, b); err != nil {
			failed = err
		}
		return b
	}
	read(int(read(2)[1])) // methods (RFC 1928)
	_, _ = c.Write([]byte{5, 2})
	user := string(read(int(read(2)[1]))) // RFC 1929
	if pass := string(read(int(read(1)[0]))); failed != nil || user != User || pass != Password {
		_, _ = c.Write([]byte{1, 1})
		return errors.Join(failed, errors.New("wrong password"))
	}
	_, _ = c.Write([]byte{1, 0})
	host := ""
	switch read(4)[3] {
	case 1:
		host = net.IP(read(4)).String()
	case 3:
		host = string(read(int(read(1)[0])))
	}
	port := read(2)
	target := net.JoinHostPort(host, strconv.Itoa(int(port[0])<<8|int(port[1])))
	if failed != nil {
		return failed
	}
	var far net.Conn
	var err error
	s.within(func() { far, err = net.DialTimeout("tcp", target, 5*time.Second) })
	if err != nil {
		_, _ = c.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
		return err
	}
	defer far.Close()
	s.mu.Lock()
	s.dials = append(s.dials, target)
	s.mu.Unlock()
	if _, err := c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0}); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(far, c)
		_ = far.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(c, far)
	return err
}
