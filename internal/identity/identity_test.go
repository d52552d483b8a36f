package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

func derive(string) ([]byte, error) { return bytes.Repeat([]byte{7}, 32), nil }

func newSource(t *testing.T) *Source {
	t.Helper()
	s, err := New(derive, "https://api.sb.test", "sb.test")
	if err != nil {
		t.Fatal(err)
	}
	return &Source{Signer: s, Secret: func(_ context.Context, tenant, name string) (string, error) {
		if tenant == "acme" && name == "key" {
			return "hunter2", nil
		}
		return "", tartarus.Errorf(tartarus.NotFound, "none")
	}}
}

// verify checks a token as a service would, with nothing but the published key.
func verify(t *testing.T, k Key, token string) Claims {
	t.Helper()
	part := strings.Split(token, ".")
	if len(part) != 3 {
		t.Fatalf("not a token: %q", token)
	}
	bytesOf := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	sig, _ := base64.RawURLEncoding.DecodeString(part[2])
	sum := sha256.Sum256([]byte(part[0] + "." + part[1]))
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, bytesOf(k.X), bytesOf(k.Y)))
	if err != nil {
		t.Fatal(err)
	}
	if len(sig) != 64 || !ecdsa.Verify(public, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		t.Fatal("the signature does not hold")
	}
	head, _ := base64.RawURLEncoding.DecodeString(part[0])
	if !strings.Contains(string(head), k.ID) {
		t.Fatalf("the head %s does not name the key %s", head, k.ID)
	}
	body, _ := base64.RawURLEncoding.DecodeString(part[1])
	var c Claims
	if err := json.Unmarshal(body, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestToken(t *testing.T) {
	s := newSource(t)
	k, err := s.Signer.Key()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	token, err := s.Signer.Token("acme", "i1", "sts.example", now)
	if err != nil {
		t.Fatal(err)
	}
	c := verify(t, k, token)
	if c.Issuer != "https://api.sb.test" || c.Subject != "spiffe://sb.test/tenant/acme/sandbox/i1" || len(c.Audience) != 1 || c.Audience[0] != "sts.example" {
		t.Errorf("got %+v", c)
	}
	if left := time.Unix(c.Expires, 0).Sub(now); left <= 0 || left > 10*time.Minute {
		t.Errorf("it is good for %s", left)
	}
	again, err := New(derive, "x", "y")
	if err != nil || again.id != s.Signer.id {
		t.Errorf("another server has another key: %v", err)
	}
}

func TestFill(t *testing.T) {
	s := newSource(t)
	tokens := map[string]tartarus.IdentityToken{"aws": {Audience: "sts", Type: Type}}
	fill := func(text string) (string, error) { return s.Fill(t.Context(), "acme", "i1", tokens, text) }
	for text, want := range map[string]string{
		"plain": "plain", "": "", "Bearer ${e2b.secrets.key}": "Bearer hunter2", "${e2b.secrets.key}${e2b.secrets.key}!": "hunter2hunter2!", "${HOME} $": "${HOME} $",
	} {
		if got, err := fill(text); err != nil || got != want {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
	got, err := fill("Bearer ${e2b.identity.tokens.aws}")
	if err != nil {
		t.Fatal(err)
	}
	k, _ := s.Signer.Key()
	if c := verify(t, k, strings.TrimPrefix(got, "Bearer ")); c.Sandbox != "i1" {
		t.Errorf("got %+v", c)
	}
	for _, bad := range []string{"${e2b.secrets.none}", "${e2b.identity.tokens.none}", "${e2b.other}", "${e2b.secrets.key", "x${e2b.secrets.}"} {
		if got, err := fill("keep ${e2b.secrets.key} " + bad); err == nil || got != "" || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %q, %v", bad, got, err)
		}
		if err := Check(tokens, bad); tartarus.Is(err, tartarus.Invalid) != (bad != "${e2b.secrets.none}") {
			t.Errorf("check %s: %v", bad, err)
		}
	}
	if got := Secrets("${e2b.secrets.b} ${e2b.identity.tokens.aws} ${e2b.secrets.a}${e2b.secrets.b} ${e2b.secrets.open"); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("got %v", got)
	}
	if err := Check(tokens, "a ${e2b.secrets.key} ${e2b.identity.tokens.aws} ${HOME}"); err != nil {
		t.Error(err)
	}
	if _, err := s.Fill(t.Context(), "other", "i1", nil, "${e2b.secrets.key}"); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("another tenant: %v", err)
	}
}

func TestCheckTokens(t *testing.T) {
	for name, bad := range map[string]map[string]tartarus.IdentityToken{
		"name":     {"a}b": {Audience: "x", Type: Type}},
		"empty":    {"": {Audience: "x", Type: Type}},
		"audience": {"a": {Type: Type}},
		"type":     {"a": {Audience: "x", Type: "X.509"}},
	} {
		if err := CheckTokens(bad); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
