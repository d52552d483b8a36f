package link

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Who a certificate says somebody is stands in its one DNS name, so that ordinary verification checks it.
const (
	olympusName = "olympus.tartarus.internal"
	nodeSuffix  = ".node.tartarus.internal"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	// NodeLife is how long a node's certificate is good. It is renewed when a third of that is left, so a node may be away for 10 days.
	NodeLife = 30 * 24 * time.Hour
	// replicaLife is that of a replica's own, which lives in its memory.
	replicaLife = 24 * time.Hour
	// clockSkew is how far behind the other side's clock may be.
	clockSkew = 10 * time.Minute
)

// authority signs the certificates of the fleet and the tokens to join it.
type authority struct {
	key   *ecdsa.PrivateKey
	cert  *x509.Certificate
	pool  *x509.CertPool
	mac   []byte // for tokens and for tickets of leases
	bytes []byte // key and certificate in PEM, as the vault has them
}

const authorityValue = "authority" // its name in the vault

// newAuthority makes one.
func newAuthority(now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Tartarus fleet", Organization: []string{"Tartarus"}},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: []string{"tartarus.internal"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make the fleet's authority: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	var out bytes.Buffer
	_ = pem.Encode(&out, &pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}) // a buffer takes everything
	_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	return parseAuthority(out.Bytes())
}

func parseAuthority(raw []byte) (*authority, error) {
	bad := func(err error) error { return tartarus.Errorf(tartarus.Corrupt, "read the fleet's authority: %w", err) }
	pair, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		return nil, bad(err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, bad(errors.New("it is no ECDSA authority"))
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, bad(err)
	}
	mac, err := hkdf.Key(sha256.New, der, nil, "tartarus fleet tokens", 32)
	if err != nil {
		return nil, bad(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(pair.Leaf)
	return &authority{key: key, cert: pair.Leaf, pool: pool, mac: mac, bytes: raw}, nil
}

// loadAuthority finds the fleet's authority. All replicas share the one in the vault; each keeps a copy in file, so that a vault that
// lost everything gets the same one back and no node has to join again. While the vault does not answer, the copy serves.
func loadAuthority(ctx context.Context, vault Vault, file string) (*authority, error) {
	copied, fileErr := os.ReadFile(file)
	if fileErr != nil && !errors.Is(fileErr, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the fleet's authority: %w", fileErr)
	}
	raw, err := vault.Get(ctx, authorityValue)
	switch {
	case err == nil:
	case tartarus.Is(err, tartarus.NotFound):
		if raw, err = createAuthority(ctx, vault, copied); err != nil {
			return nil, err
		}
	case fileErr == nil:
		return parseAuthority(copied)
	default:
		return nil, err
	}
	a, err := parseAuthority(raw)
	if err == nil && !bytes.Equal(raw, copied) {
		err = writeSecret(file, raw)
	}
	return a, err
}

// createAuthority puts one into an empty vault: the copy from before, or a new one. Of several replicas at once the first decides.
func createAuthority(ctx context.Context, vault Vault, raw []byte) ([]byte, error) {
	if raw == nil {
		made, err := newAuthority(time.Now())
		if err != nil {
			return nil, err
		}
		raw = made.bytes
	}
	err := vault.Create(ctx, authorityValue, raw, 0)
	if tartarus.Is(err, tartarus.Conflict) {
		return vault.Get(ctx, authorityValue)
	}
	return raw, err
}

// issue signs a certificate for the public key, in the name that says who it is.
func (a *authority) issue(name string, public any, life time.Duration, now time.Time) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(life), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", name, err)
	}
	return der, nil
}

// sign issues a node's certificate for the key of a certificate request, whatever name the request has.
func (a *authority) sign(node string, request []byte, now time.Time) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Invalid, "read certificate request: %w", err)
	}
	if _, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok {
		return nil, tartarus.Errorf(tartarus.Invalid, "the key of a node must be ECDSA")
	}
	return a.issue(node+nodeSuffix, csr.PublicKey, NodeLife, now)
}

// own makes a replica's certificate. It carries the authority, so that a node that joins can compare it with its token.
func (a *authority) own(now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := a.issue(olympusName, &key.PublicKey, replicaLife, now)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key, Leaf: leaf}, err
}

var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// nodeOf says which node a verified certificate belongs to.
func nodeOf(cert *x509.Certificate) (string, bool) {
	if len(cert.DNSNames) != 1 {
		return "", false
	}
	name, ok := strings.CutSuffix(cert.DNSNames[0], nodeSuffix)
	return name, ok && nodeName.MatchString(name)
}

// isOlympus reports whether a verified certificate is a replica's.
func isOlympus(cert *x509.Certificate) bool {
	return len(cert.DNSNames) == 1 && cert.DNSNames[0] == olympusName
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // never fails: crypto/rand aborts the program instead
	}
	return n
}

// writeSecret writes a file that only its owner reads, whole or not at all.
func writeSecret(file string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(file), err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(file), err)
	}
	return nil
}
