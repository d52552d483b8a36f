// Package logintest is an OpenID Connect issuer on loopback for tests: it has a discovery document and a key set, and signs whatever it is told to,
// also what no issuer should. Its tokens are as real as any; only nobody logs in.
package logintest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Client is for whom the issuer makes tokens where nothing else is said.
const Client = "tartarus"

// Issuer is a server until the test ends.
type Issuer struct {
	URL string

	t  testing.TB
	mu sync.Mutex
	// signing are private keys, the newest last; those that are published are also in public.
	signing []jose.JSONWebKey
	public  []jose.JSONWebKey
	away    bool
	asked   map[string]int
}

// New starts an issuer with one key of RSA.
func New(t testing.TB) *Issuer {
	i := &Issuer{t: t, asked: map[string]int{}}
	server := httptest.NewServer(i)
	t.Cleanup(server.Close)
	i.URL = server.URL
	i.Rotate(jose.RS256)
	return i
}

// ServeHTTP answers as an issuer does.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked[r.URL.Path]++
	var out any
	switch {
	case i.away:
		http.Error(w, "down for maintenance", http.StatusServiceUnavailable)
		return
	case r.URL.Path == "/.well-known/openid-configuration":
		out = map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"RS256", "ES256"}}
	case r.URL.Path == "/keys":
		out = jose.JSONWebKeySet{Keys: i.public}
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

// Away makes the issuer fail, or work again.
func (i *Issuer) Away(away bool) {
	i.mu.Lock()
	i.away = away
	i.mu.Unlock()
}

// Asked is how often a path was asked for.
func (i *Issuer) Asked(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked[path]
}

// Rotate makes a key that signs from now on, and publishes it.
func (i *Issuer) Rotate(algorithm jose.SignatureAlgorithm) {
	k := i.key(algorithm)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.signing, i.public = append(i.signing, k), append(i.public, k.Public())
}

// Withdraw publishes the newest key only.
func (i *Issuer) Withdraw() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.public = i.public[len(i.public)-1:]
}

func (i *Issuer) key(algorithm jose.SignatureAlgorithm) jose.JSONWebKey {
	i.t.Helper()
	var key crypto.Signer
	var err error
	if algorithm == jose.RS256 {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		i.t.Fatal(err)
	}
	var id [8]byte
	rand.Read(id[:])
	return jose.JSONWebKey{Key: key, KeyID: fmt.Sprintf("%x", id), Algorithm: string(algorithm), Use: "sig"}
}

// Claims are those of a good token, changed; nil takes one away.
func (i *Issuer) Claims(changes map[string]any) map[string]any {
	now := time.Now()
	out := map[string]any{
		"iss": i.URL, "aud": Client, "sub": "ann", "email": "ann@example.com", "email_verified": true,
		"iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
	}
	maps.Copy(out, changes)
	maps.DeleteFunc(out, func(_ string, v any) bool { return v == nil })
	return out
}

// Token signs the claims of a good token, changed, under the newest key.
func (i *Issuer) Token(changes map[string]any) string {
	i.t.Helper()
	i.mu.Lock()
	key := i.signing[len(i.signing)-1]
	i.mu.Unlock()
	return i.sign(key, i.Claims(changes))
}

// Forged signs under a key that is nobody's, and says that it is the newest of the issuer's where named is true.
func (i *Issuer) Forged(named bool, changes map[string]any) string {
	i.t.Helper()
	i.mu.Lock()
	newest := i.signing[len(i.signing)-1]
	i.mu.Unlock()
	key := i.key(jose.SignatureAlgorithm(newest.Algorithm))
	if named {
		key.KeyID = newest.KeyID
	}
	return i.sign(key, i.Claims(changes))
}

// Symmetric signs by HMAC with the bytes of the issuer's public key, which a verifier falls for that believes what a token says of its algorithm.
func (i *Issuer) Symmetric(changes map[string]any) string {
	i.t.Helper()
	i.mu.Lock()
	newest := i.public[len(i.public)-1]
	i.mu.Unlock()
	public, err := newest.MarshalJSON()
	if err != nil {
		i.t.Fatal(err)
	}
	return i.sign(jose.JSONWebKey{Key: public, KeyID: newest.KeyID, Algorithm: string(jose.HS256)}, i.Claims(changes))
}

// Unsigned is a token of the algorithm none.
func (i *Issuer) Unsigned(changes map[string]any) string {
	i.t.Helper()
	body, err := json.Marshal(i.Claims(changes))
	if err != nil {
		i.t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(body) + "."
}

func (i *Issuer) sign(key jose.JSONWebKey, claims map[string]any) string {
	i.t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(key.Algorithm), Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		i.t.Fatal(err)
	}
	body, err := json.Marshal(claims)
	if err != nil {
		i.t.Fatal(err)
	}
	signed, err := signer.Sign(body)
	if err != nil {
		i.t.Fatal(err)
	}
	out, err := signed.CompactSerialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return out
}
