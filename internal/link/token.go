package link

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// MaxTokenLife bounds how long a join token may be good.
const MaxTokenLife = 24 * time.Hour

// tokenPrefix tells a join token from an API key, for people and for scanners of secrets.
const tokenPrefix = "ttj_"

// claims are what a join token says. It is signed by the authority, so nothing is stored before it is spent.
type claims struct {
	Nonce string `json:"n"`
	Ends  int64  `json:"e"`           // Unix seconds
	Node  string `json:"w,omitempty"` // the one node that may use it; empty: any that is not there yet
	Pin   string `json:"p"`           // SHA-256 of the authority's certificate
}

// pinOf is what a token says of the authority, so that a node that joins knows the right one.
func pinOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// token makes a join token.
func (a *authority) token(node string, ends time.Time) string {
	var nonce [15]byte
	rand.Read(nonce[:])
	body, err := json.Marshal(claims{Nonce: base64.RawURLEncoding.EncodeToString(nonce[:]), Ends: ends.Unix(), Node: node, Pin: pinOf(a.cert)})
	if err != nil {
		panic(err) // texts and a number can always be encoded
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(body) + "." + base64.RawURLEncoding.EncodeToString(a.seal("join", body))
}

// readToken takes a token apart without the means to check it.
func readToken(token string) (c claims, body, sum []byte, err error) {
	bad := tartarus.Errorf(tartarus.Unauthenticated, "this is not a join token; `tartarus node token` makes one")
	text, ok := strings.CutPrefix(strings.TrimSpace(token), tokenPrefix)
	first, second, dotted := strings.Cut(text, ".")
	if !ok || !dotted || len(text) > 1024 {
		return c, nil, nil, bad
	}
	if body, err = base64.RawURLEncoding.DecodeString(first); err != nil {
		return c, nil, nil, bad
	}
	if sum, err = base64.RawURLEncoding.DecodeString(second); err != nil {
		return c, nil, nil, bad
	}
	if json.Unmarshal(body, &c) != nil || c.Nonce == "" || c.Pin == "" {
		return c, nil, nil, bad
	}
	return c, body, sum, nil
}

// checkToken reports whether node may join with a token at now. That it was not used before is the vault's to say.
func (a *authority) checkToken(token, node string, now time.Time) (claims, error) {
	c, body, sum, err := readToken(token)
	switch {
	case err != nil:
		return c, err
	case !hmac.Equal(sum, a.seal("join", body)):
		return c, tartarus.Errorf(tartarus.Unauthenticated, "the join token is not this fleet's")
	case now.Unix() >= c.Ends:
		return c, tartarus.Errorf(tartarus.Unauthenticated, "the join token's time is over; `tartarus node token` makes a new one")
	case c.Node != "" && c.Node != node:
		return c, tartarus.Errorf(tartarus.Unauthenticated, "the join token is for node %s, not for %s", c.Node, node)
	}
	return c, nil
}

// seal authenticates a text of the control plane that others carry.
func (a *authority) seal(use string, body []byte) []byte {
	h := hmac.New(sha256.New, a.mac)
	h.Write([]byte(use + "\n"))
	h.Write(body)
	return h.Sum(nil)
}

// ticket proves to any replica that this lease was handed to this node. Without it a node could end another's jobs: fencing tokens are
// small numbers.
func (a *authority) ticket(node string, l acheron.Lease) []byte {
	body := binary.BigEndian.AppendUint64(nil, uint64(l.Token))
	body = append(body, strconv.Quote(node)+strconv.Quote(l.Job.ID)...)
	return a.seal("lease", body)
}
