package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// outside is a network namespace that stands for the internet. Its addresses are of the ranges kept for documentation (RFC 5737): a name server, a
// web server that proves its names by an authority of its own, and a SOCKS5 server.
type outside struct {
	t     *testing.T
	trust string // file with the authority in PEM
	tasks chan func() error
	dials chan string // what the SOCKS5 server was asked for
}

const (
	outsideName = "e2eout0"
	outsideHost = "198.51.100.129"
	outsideEnd  = "198.51.100.130"
	nameServer  = "203.0.113.53"
	webServer   = "203.0.113.80"
	socksServer = "203.0.113.108"
)

// newOutside makes it, or skips the test where this host's own networks are in the way. At most one is there at a time.
func newOutside(t *testing.T) *outside {
	t.Helper()
	binary(t) // skips where no sandbox can run
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), outsideName+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	o := &outside{t: t, tasks: make(chan func() error), dials: make(chan string, 100)}
	o.clear()
	o.free()
	t.Cleanup(o.clear)
	steps := []string{
		"netns add " + outsideName,
		"link add " + outsideName + " type veth peer name eth0 netns " + outsideName,
		"addr add " + outsideHost + "/30 dev " + outsideName, "link set " + outsideName + " up",
		"-n " + outsideName + " addr add " + outsideEnd + "/30 dev eth0", "-n " + outsideName + " link set eth0 up", "-n " + outsideName + " link set lo up",
		"-n " + outsideName + " route add default via " + outsideHost,
	}
	for _, a := range []string{nameServer, webServer, socksServer} {
		steps = append(steps, "-n "+outsideName+" addr add "+a+"/32 dev lo", "route add "+a+"/32 via "+outsideEnd+" dev "+outsideName)
	}
	for _, s := range steps {
		if out, err := exec.Command("ip", strings.Fields(s)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", s, err, out)
		}
	}
	go o.thread()
	t.Cleanup(func() { close(o.tasks) })
	o.serveNames()
	o.serveWeb()
	o.serveSocks()
	return o
}

// free looks whether something on this host is in the ranges used here.
func (o *outside) free() {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		o.t.Fatal(err)
	}
	for _, a := range addrs {
		for _, want := range []string{outsideHost, nameServer} {
			if n, ok := a.(*net.IPNet); ok && n.Contains(net.ParseIP(want)) {
				o.t.Skipf("needs %s, which is in this host's own network %s", want, n)
			}
		}
	}
}

func (o *outside) clear() {
	_ = exec.Command("ip", "link", "del", outsideName).Run()
	_ = exec.Command("ip", "netns", "del", outsideName).Run()
}

// thread does in the namespace what it is told, on a thread that is not given back.
func (o *outside) thread() {
	runtime.LockOSThread()
	ns, err := os.Open("/run/netns/" + outsideName)
	if err == nil {
		err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		ns.Close()
	}
	for task := range o.tasks {
		if err != nil {
			o.t.Error(err)
		}
		if err := task(); err != nil {
			o.t.Error(err)
		}
	}
}

// within runs f in the namespace. Sockets that it makes stay there.
func (o *outside) within(f func() error) {
	done := make(chan struct{})
	o.tasks <- func() error { defer close(done); return f() }
	<-done
}

func (o *outside) listen(addr string) (l net.Listener) {
	o.t.Helper()
	o.within(func() (err error) { l, err = net.Listen("tcp", addr); return err })
	if l == nil {
		o.t.FailNow()
	}
	o.t.Cleanup(func() { l.Close() })
	return l
}

// serveNames answers with the web server for every name of outside.example, and knows no other.
func (o *outside) serveNames() {
	var pc net.PacketConn
	o.within(func() (err error) { pc, err = net.ListenPacket("udp", nameServer+":53"); return err })
	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		name := q.Question[0].Name
		switch {
		case !strings.HasSuffix(name, ".outside.example."):
			m.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeA:
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(webServer)}}
		}
		_ = w.WriteMsg(m)
	})
	udp, tcp := &dns.Server{PacketConn: pc, Handler: answer}, &dns.Server{Listener: o.listen(nameServer + ":53"), Handler: answer}
	for _, s := range []*dns.Server{udp, tcp} {
		go func() { _ = s.ActivateAndServe() }()
		o.t.Cleanup(func() { _ = s.Shutdown() })
	}
}

// serveWeb answers requests to *.outside.example with the headers they came with.
func (o *outside) serveWeb() {
	cert, authority := newSite(o.t)
	o.trust = filepath.Join(o.t.TempDir(), "outside.pem")
	if err := os.WriteFile(o.trust, authority, 0o600); err != nil {
		o.t.Fatal(err)
	}
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"host": r.Host, "headers": r.Header})
	})
	for addr, secure := range map[string]bool{webServer + ":443": true, webServer + ":80": false} {
		l := o.listen(addr)
		if secure {
			l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}})
		}
		s := &http.Server{Handler: echo, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
		go func() { _ = s.Serve(l) }()
		o.t.Cleanup(func() { _ = s.Close() })
	}
}

// newSite makes an authority and a certificate of it for *.outside.example.
func newSite(t *testing.T) (tls.Certificate, []byte) {
	t.Helper()
	make := func(tmpl, parent *x509.Certificate, signer *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if parent == nil {
			parent, signer = tmpl, key
		}
		tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		return der, key
	}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "Outside"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	authority, signer := make(ca, nil, nil)
	der, key := make(&x509.Certificate{
		Subject: pkix.Name{CommonName: "outside.example"}, DNSNames: []string{"*.outside.example"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, signer)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority})
}

// serveSocks connects those who log in as me, with the password word, to where they want to go, and remembers where that was.
func (o *outside) serveSocks() {
	l := o.listen(socksServer + ":1080")
	var conns sync.WaitGroup
	o.t.Cleanup(func() { l.Close(); conns.Wait() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				_ = o.socks(c)
			})
		}
	}()
}

func (o *outside) socks(c net.Conn) error {
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
	if pass := string(read(int(read(1)[0]))); failed != nil || user != "me" || pass != "word" {
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
	target := net.JoinHostPort(host, portText(read(2)))
	if failed != nil {
		return failed
	}
	var far net.Conn
	var err error
	o.within(func() error { far, err = net.DialTimeout("tcp", target, 10*time.Second); return nil })
	if err != nil {
		_, _ = c.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
		return err
	}
	defer far.Close()
	o.dials <- target
	if _, err := c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0}); err != nil {
		return err
	}
	go func() { _, _ = io.Copy(far, c); _ = far.(*net.TCPConn).CloseWrite() }()
	_, err = io.Copy(c, far)
	if errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

// dialled returns what the SOCKS5 server was asked for since it was asked last.
func (o *outside) dialled() (all []string) {
	for {
		select {
		case d := <-o.dials:
			all = append(all, d)
		default:
			return all
		}
	}
}

// portText reads a port in network order.
func portText(b []byte) string { return strconv.Itoa(int(b[0])<<8 | int(b[1])) }
