package edge_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/edge"
)

func leafFor(t *testing.T, ca *edge.CA, name string) *x509.Certificate {
	t.Helper()
	c, err := ca.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf
}

func trusts(ca *edge.CA) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.PEM())
	return pool
}

func TestCAIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := edge.LoadOrCreateCA(dir, "sb.test:8443")
	if err != nil {
		t.Fatal(err)
	}
	again, err := edge.LoadOrCreateCA(dir, "SB.test")
	if err != nil || !bytes.Equal(ca.PEM(), again.PEM()) {
		t.Fatalf("a second start has another authority: %v", err)
	}
	for name, want := range map[string]os.FileMode{"": os.ModeDir | 0o700, "ca.key": 0o600, "ca.pem": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
			t.Errorf("%q has mode %v, %v; want %v", name, info.Mode(), err, want)
		}
	}
	if files, _ := os.ReadDir(dir); len(files) != 2 {
		t.Errorf("left lying about: %v", files)
	}
	if raw, err := os.ReadFile(ca.File()); err != nil || !bytes.Equal(raw, ca.PEM()) || bytes.Contains(raw, []byte("PRIVATE")) {
		t.Errorf("what is published is not the certificate alone: %v", err)
	}
	if _, err := edge.LoadOrCreateCA(dir, "other.test"); !tartarus.Is(err, tartarus.Conflict) {
		t.Errorf("another domain: %v", err)
	}
	// Somebody deletes the public half: it comes back.
	if err := os.Remove(ca.File()); err != nil {
		t.Fatal(err)
	}
	if _, err := edge.LoadOrCreateCA(dir, "sb.test"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ca.File()); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.key"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := edge.LoadOrCreateCA(dir, "sb.test"); !tartarus.Is(err, tartarus.Corrupt) {
		t.Errorf("garbage: %v", err)
	}
}

// Two processes that start at once have one authority.
func TestCAIsMadeOnce(t *testing.T) {
	dir := t.TempDir()
	made := make([]*edge.CA, 8)
	var group sync.WaitGroup
	for i := range made {
		group.Go(func() {
			ca, err := edge.LoadOrCreateCA(dir, "sb.test")
			if err != nil {
				t.Error(err)
				return
			}
			made[i] = ca
		})
	}
	group.Wait()
	for _, ca := range made {
		if ca == nil || !bytes.Equal(ca.PEM(), made[0].PEM()) {
			t.Fatal("there are two authorities")
		}
	}
}

func TestCertificates(t *testing.T) {
	ca, err := edge.LoadOrCreateCA(t.TempDir(), "sb.test")
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafFor(t, ca, "3000-iabc.sb.test")
	for name, ok := range map[string]bool{
		"3000-iabc.sb.test": true, "api.sb.test": true, "sb.test": true, "127.0.0.1": true, "::1": true,
		"a.b.sb.test": false, "evil.test": false, "10.0.0.1": false,
	} {
		_, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: trusts(ca)})
		if (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if leafFor(t, ca, "") != leaf || leafFor(t, ca, "whatever.test") != leaf {
		t.Error("each name gets a certificate of its own")
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life > 100*24*time.Hour || leaf.IsCA {
		t.Errorf("lives %s, authority %v", life, leaf.IsCA)
	}
}

// The authority's own key cannot vouch for any other site or machine.
func TestCAIsConstrained(t *testing.T) {
	dir := t.TempDir()
	ca, err := edge.LoadOrCreateCA(dir, "sb.test")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	stolen, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, template := range map[string]*x509.Certificate{
		"bank.example": {DNSNames: []string{"bank.example"}},
		"192.168.0.1":  {IPAddresses: []net.IP{net.IPv4(192, 168, 0, 1)}},
	} {
		template.SerialNumber, template.NotAfter = big.NewInt(1), time.Now().Add(time.Hour)
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		der, err := x509.CreateCertificate(rand.Reader, template, stolen.Leaf, &stolen.PrivateKey.(*ecdsa.PrivateKey).PublicKey, stolen.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		leaf, _ := x509.ParseCertificate(der)
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: trusts(ca)}); err == nil {
			t.Errorf("%s would be trusted", name)
		}
	}
}

// Clients take no wildcard below a domain of one label, so every name there has its own certificate.
func TestCertificatesOfOneLabel(t *testing.T) {
	ca, err := edge.LoadOrCreateCA(t.TempDir(), "localhost")
	if err != nil {
		t.Fatal(err)
	}
	a := leafFor(t, ca, "3000-iabc.localhost")
	if len(a.DNSNames) != 1 || a.DNSNames[0] != "3000-iabc.localhost" || leafFor(t, ca, "3000-IABC.localhost.") != a {
		t.Errorf("got %v", a.DNSNames)
	}
	if _, err := a.Verify(x509.VerifyOptions{DNSName: "3000-iabc.localhost", Roots: trusts(ca)}); err != nil {
		t.Error(err)
	}
	if other := leafFor(t, ca, "3001-iabc.localhost"); other == a {
		t.Error("two names share a certificate")
	}
	if odd := leafFor(t, ca, "no-sandbox.localhost"); len(odd.DNSNames) != 2 {
		t.Errorf("names that are no sandbox's are signed: %v", odd.DNSNames)
	}
}

// A new certificate is there before the old one ends.
func TestCertificatesAreRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, err := edge.LoadOrCreateCA(t.TempDir(), "sb.test")
		if err != nil {
			t.Fatal(err)
		}
		first := leafFor(t, ca, "a.sb.test")
		time.Sleep(59 * 24 * time.Hour)
		if leafFor(t, ca, "a.sb.test") != first {
			t.Error("renewed too early")
		}
		time.Sleep(2 * 24 * time.Hour)
		second := leafFor(t, ca, "a.sb.test")
		if second == first || time.Until(second.NotAfter) < 80*24*time.Hour {
			t.Errorf("ends %s, at %s", second.NotAfter, time.Now())
		}
	})
}

func writePair(t *testing.T, dir, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	write(t, filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func write(t *testing.T, file string, data []byte) {
	t.Helper()
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOperatorsCertificateIsReloaded(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if _, err := edge.LoadCertFiles(cert, key, slog.New(slog.DiscardHandler)); err == nil {
		t.Fatal("files that are not there were loaded")
	}
	synctest.Test(t, func(t *testing.T) { // the files' times are the real clock's, how often they are looked at is not
		writePair(t, dir, "one.test")
		files, err := edge.LoadCertFiles(cert, key, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		served := func() string {
			time.Sleep(2 * time.Second)
			c, err := files.GetCertificate(nil)
			if err != nil {
				t.Fatal(err)
			}
			return c.Leaf.DNSNames[0]
		}
		if got := served(); got != "one.test" {
			t.Errorf("got %s", got)
		}
		write(t, cert, []byte("half of a change"))
		for range 2 {
			if got := served(); got != "one.test" {
				t.Errorf("during a change: got %s", got)
			}
		}
		writePair(t, dir, "two.longer.test")
		if got := served(); got != "two.longer.test" {
			t.Errorf("after a change: got %s", got)
		}
		if err := os.Remove(cert); err != nil {
			t.Fatal(err)
		}
		if got := served(); got != "two.longer.test" {
			t.Errorf("after a loss: got %s", got)
		}
	})
}
