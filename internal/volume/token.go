package volume

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Tokens signs and checks the bearer tokens of volumes' content: JSON Web Tokens under HS256.
type Tokens struct{ key []byte }

// NewTokens makes a signer of a key that all servers share and nobody else has.
func NewTokens(key []byte) (*Tokens, error) {
	if len(key) < sha256.Size {
		return nil, tartarus.Errorf(tartarus.Invalid, "the key of volume tokens has %d bytes, not %d", len(key), sha256.Size)
	}
	return &Tokens{key}, nil
}

// Claims is what a token grants.
type Claims struct {
	Volume   string `json:"sub"`
	Tenant   string `json:"tenant"`
	Audience string `json:"aud"`
	ReadOnly bool   `json:"ro,omitempty"`
	Expires  int64  `json:"exp"` // seconds since 1970
}

const (
	audience = "tartarus:volume"
	// tokenLife is how long a token is good: longer than programs usually run, and a lost one still ends. Asking for the
	// volume again gives a new one.
	tokenLife = 7 * 24 * time.Hour
	// tokenHeader is {"alg":"HS256","typ":"JWT"}: the one kind that is made, and the only one that is accepted.
	tokenHeader = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
	maxToken    = 2048
)

// Sign makes a token for a volume.
func (t *Tokens) Sign(v Volume, readOnly bool, now time.Time) string {
	body, err := json.Marshal(Claims{Volume: v.ID, Tenant: v.Tenant, Audience: audience, ReadOnly: readOnly, Expires: now.Add(tokenLife).Unix()})
	if err != nil {
		panic(err) // strings and numbers
	}
	text := tokenHeader + "." + base64.RawURLEncoding.EncodeToString(body)
	return text + "." + base64.RawURLEncoding.EncodeToString(t.sum(text))
}

func (t *Tokens) sum(text string) []byte {
	h := hmac.New(sha256.New, t.key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

var errToken = &tartarus.Error{
	Kind: tartarus.Unauthenticated, Message: "the volume's token is not valid: ask for the volume again to get a new one",
}

// Check reads a token. One that we did not sign, or that has ended, is tartarus.Unauthenticated.
func (t *Tokens) Check(token string, now time.Time) (Claims, error) {
	i := strings.LastIndexByte(token, '.')
	if len(token) > maxToken || i < 0 {
		return Claims{}, errToken
	}
	text := token[:i]
	sum, err := base64.RawURLEncoding.DecodeString(token[i+1:])
	body, ours := strings.CutPrefix(text, tokenHeader+".")
	if err != nil || !ours || !hmac.Equal(sum, t.sum(text)) {
		return Claims{}, errToken
	}
	raw, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil {
		return Claims{}, errToken
	}
	var c Claims
	if json.Unmarshal(raw, &c) != nil || c.Audience != audience || c.Volume == "" || now.Unix() >= c.Expires {
		return Claims{}, errToken
	}
	return c, nil
}
