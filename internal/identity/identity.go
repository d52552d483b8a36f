// Package identity signs tokens by which a sandbox can prove to a service outside who it is. A token is made for one request, says for
// whom it is, and ends within minutes; the key that signs never leaves the control plane, and what checks it is published.
package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Type is the one kind of token there is: a SPIFFE identity as a JSON Web Token.
const Type = "JWT-SVID"

const (
	life = 5 * time.Minute
	// early makes a token good a little before it was made, for services whose clock is behind.
	early = 30 * time.Second
)

// Signer makes tokens under ES256, which every service that takes tokens of others knows.
type Signer struct {
	issuer string
	trust  string // trust domain
	key    *ecdsa.PrivateKey
	id     string // of the key
}

// New makes a signer. derive makes key material that all servers agree on; issuer is the URL that the key set is published below, and trust
// the domain that identities belong to.
func New(derive func(purpose string) ([]byte, error), issuer, trust string) (*Signer, error) {
	const tries = 8 // a random number of 256 bits is no key of P-256 once in 2^32
	for i := range tries {
		raw, err := derive(fmt.Sprintf("identity tokens %d", i))
		if err != nil {
			return nil, err
		}
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw)
		if err != nil {
			continue
		}
		point, err := key.PublicKey.Bytes()
		if err != nil {
			return nil, fmt.Errorf("make identity key: %w", err)
		}
		sum := sha256.Sum256(point)
		return &Signer{issuer: issuer, trust: trust, key: key, id: base64.RawURLEncoding.EncodeToString(sum[:8])}, nil
	}
	return nil, tartarus.Errorf(tartarus.Internal, "no identity key could be derived")
}

// Claims are what a token says.
type Claims struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"` // spiffe://TRUST/tenant/TENANT/sandbox/ID
	Audience  []string `json:"aud"`
	IssuedAt  int64    `json:"iat"`
	NotBefore int64    `json:"nbf"`
	Expires   int64    `json:"exp"`
	ID        string   `json:"jti"`
	Tenant    string   `json:"tenant"`
	Sandbox   string   `json:"sandbox"`
}

// Token makes a token for a sandbox.
func (s *Signer) Token(tenant, sandbox, audience string, now time.Time) (string, error) {
	var id [12]byte
	rand.Read(id[:])
	body, err := json.Marshal(Claims{
		Issuer: s.issuer, Subject: "spiffe://" + s.trust + "/tenant/" + tenant + "/sandbox/" + sandbox, Audience: []string{audience},
		IssuedAt: now.Unix(), NotBefore: now.Add(-early).Unix(), Expires: now.Add(life).Unix(),
		ID: base64.RawURLEncoding.EncodeToString(id[:]), Tenant: tenant, Sandbox: sandbox,
	})
	if err != nil {
		return "", fmt.Errorf("make identity token: %w", err)
	}
	head := `{"alg":"ES256","typ":"JWT","kid":"` + s.id + `"}`
	text := base64.RawURLEncoding.EncodeToString([]byte(head)) + "." + base64.RawURLEncoding.EncodeToString(body)
	sum := sha256.Sum256([]byte(text))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", fmt.Errorf("sign identity token: %w", err)
	}
	sig := make([]byte, 64) // RFC 7518, 3.4
	r.FillBytes(sig[:32])
	v.FillBytes(sig[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// Issuer is the URL that tokens name as theirs.
func (s *Signer) Issuer() string { return s.issuer }

// Key is a public key as key sets have it (RFC 7517).
type Key struct {
	Type      string `json:"kty"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
	ID        string `json:"kid"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	Y         string `json:"y"`
}

// Key is what checks the signer's tokens.
func (s *Signer) Key() (Key, error) {
	point, err := s.key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		return Key{}, fmt.Errorf("encode identity key: %w", err)
	}
	return Key{
		Type: "EC", Use: "sig", Algorithm: "ES256", ID: s.id, Curve: "P-256",
		X: base64.RawURLEncoding.EncodeToString(point[1:33]), Y: base64.RawURLEncoding.EncodeToString(point[33:]),
	}, nil
}
