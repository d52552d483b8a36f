package edge

import (
	"bytes"
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
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/recent"
)

// CAFile is the certificate that clients are told to trust, in the folder of the authority; caKeyFile holds its key and a copy of it.
const (
	CAFile    = "ca.pem"
	caKeyFile = "ca.key"
)

const (
	caLife = 10 * 365 * 24 * time.Hour
	// leafLife is how long a certificate is good; a new one is made when a third of that is left. Clients refuse more than 825 days.
	leafLife = 90 * 24 * time.Hour
	// clockSkew is how far behind a client's clock may be.
	clockSkew = time.Hour
	// maxLeaves bounds the certificates for single names that are held.
	maxLeaves = 1024
)

// CA is a certificate authority of one's own that can vouch for one domain and for this machine, and for nothing else: whoever
// steals its key cannot stand in for any other site.
type CA struct {
	domain string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	file   string

	mu     sync.Mutex
	leaf   *ecdsa.PrivateKey // of all leaves; made anew by each process
	leaves *recent.Cache[string, *tls.Certificate]
}

// LoadOrCreateCA opens the authority in dir, or makes one there that is bound to domain (with or without a port). Two processes that do
// it at once get the same one. An authority for another domain is tartarus.Conflict.
func LoadOrCreateCA(dir, domain string) (*CA, error) {
	name, err := bareDomain(domain)
	if err != nil {
		return nil, err
	}
	if name == "" {
		return nil, tartarus.Errorf(tartarus.Invalid, "a certificate authority needs a domain")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of the certificate authority: %w", err)
	}
	file := filepath.Join(dir, caKeyFile)
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createCA(file, name); err != nil {
			return nil, err
		}
		raw, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("read certificate authority: %w", err)
	}
	ca, err := parseCA(raw, name, file)
	if err != nil {
		return nil, err
	}
	return ca, ca.publish(filepath.Join(dir, CAFile))
}

// createCA writes a new authority. When another process is quicker, its authority stays.
func createCA(file, domain string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Tartarus CA for " + domain, Organization: []string{"Tartarus"}},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: []string{domain}, PermittedIPRanges: loopback(),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("make certificate authority: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	var out bytes.Buffer
	_ = pem.Encode(&out, &pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}) // a buffer takes everything
	_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	tmp, err := writeTemp(file, out.Bytes(), 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	if err := os.Link(tmp, file); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write certificate authority: %w", err)
	}
	return nil
}

// writeTemp writes data beside file and returns where, safely on the disk.
func writeTemp(file string, data []byte, mode fs.FileMode) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*") // made with 0600
	if err != nil {
		return "", fmt.Errorf("write %s: %w", filepath.Base(file), err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		_ = os.Remove(f.Name())
		return "", fmt.Errorf("write %s: %w", filepath.Base(file), err)
	}
	return f.Name(), nil
}

// parseCA reads what createCA wrote.
func parseCA(raw []byte, domain, file string) (*CA, error) {
	damaged := func(err error) error {
		return tartarus.Errorf(tartarus.Corrupt, "%s does not hold a certificate authority (%w); move it away to have a new one made", file, err)
	}
	pair, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		return nil, damaged(err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, damaged(errors.New("not of our making"))
	}
	if !slices.Contains(pair.Leaf.PermittedDNSDomains, domain) {
		return nil, tartarus.Errorf(tartarus.Conflict, "the certificate authority in %s is for %s, not for %s; move it away to have a new one made",
			file, strings.Join(pair.Leaf.PermittedDNSDomains, " "), domain)
	}
	leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return &CA{
		domain: domain, cert: pair.Leaf, key: key, leaf: leaf, file: filepath.Join(filepath.Dir(file), CAFile),
		leaves: recent.New[string, *tls.Certificate](maxLeaves, leafLife*2/3),
	}, nil
}

// publish writes the certificate where people find it, unless it is there.
func (c *CA) publish(file string) error {
	want := c.PEM()
	if have, err := os.ReadFile(file); err == nil && bytes.Equal(have, want) {
		return nil
	}
	tmp, err := writeTemp(file, want, 0o644)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, file); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write %s: %w", CAFile, err)
	}
	return nil
}

// PEM is the certificate that clients trust.
func (c *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
}

// File is where the certificate lies.
func (c *CA) File() string { return c.file }

// GetCertificate gives a server the certificate for a client: that of the domain and all names below it, and of this machine. Under a
// domain of one label clients take no wildcards; each name there gets its own.
func (c *CA) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	names := []string{c.domain, "*." + c.domain}
	which := ""
	if !strings.Contains(c.domain, ".") && strings.HasSuffix(name, "."+c.domain) {
		if _, ok := parseHost(name, c.domain); ok {
			names, which = []string{name}, name
		}
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if leaf, ok := c.leaves.Get(which, now); ok {
		return leaf, nil
	}
	leaf, err := c.issue(names, now)
	if err != nil {
		return nil, err
	}
	c.leaves.Put(which, leaf, now)
	return leaf, nil
}

// issue makes a certificate.
func (c *CA) issue(names []string, now time.Time) (*tls.Certificate, error) {
	end := now.Add(leafLife)
	if c.cert.NotAfter.Before(end) {
		end = c.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore:   now.Add(-clockSkew), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, &c.leaf.PublicKey, c.key)
	if err != nil {
		return nil, fmt.Errorf("make certificate for %s: %w", names[0], err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read certificate for %s: %w", names[0], err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, c.cert.Raw}, PrivateKey: c.leaf, Leaf: leaf}, nil
}

func loopback() []*net.IPNet {
	return []*net.IPNet{
		{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)},
		{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
	}
}

// serial is a random number of 127 bits, as RFC 5280 wants it: positive and at most 20 bytes.
func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:])
}
