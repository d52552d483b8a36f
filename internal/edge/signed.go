package edge

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/recent"
)

// signed finds the sandbox of a signed /files URL that names none: with one base URL for all sandboxes, SDKs make such URLs. The
// signature is over the sandbox's own token, so that exactly one sandbox can have made it; the agent there checks it again, with its expiry.
type signed struct {
	registry hades.Registry
	found    *recent.Cache[string, string] // signature to sandbox
	tries    *rate.Limiter                 // of signatures that are not known, from all clients together

	mu     sync.Mutex
	tokens []token
	read   time.Time
}

type token struct{ id, secret string }

const (
	// maxSigned bounds how many sandboxes are tried: 20,000 hashes take about 5 ms.
	maxSigned = 20_000
	// signedTTL is how long a signature leads to its sandbox without another look.
	signedTTL = time.Minute
	// tokensTTL is how old the list of tokens may be when a signature matches, missTTL when none does.
	tokensTTL = 30 * time.Second
	missTTL   = 500 * time.Millisecond
)

func newSigned(registry hades.Registry) *signed {
	return &signed{registry: registry, found: recent.New[string, string](4096, signedTTL), tries: rate.NewLimiter(50, 100)}
}

// target finds out for whom a request for /files is. One without a signature is not for a sandbox.
func (s *signed) target(r *http.Request) (target, error) {
	q := r.URL.Query()
	// A plus sign that was not escaped arrives as a blank.
	signature := strings.ReplaceAll(q.Get("signature"), " ", "+")
	if signature == "" {
		return target{}, nil
	}
	method, operation := r.Method, "read"
	if method == http.MethodOptions {
		method = r.Header.Get("Access-Control-Request-Method") // a browser asks before it uploads
	}
	if method == http.MethodPost {
		operation = "write"
	}
	now := time.Now()
	key := operation + " " + signature
	if id, ok := s.found.Get(key, now); ok {
		return target{id, tartarus.AgentPort}, nil
	}
	if !s.tries.AllowN(now, 1) {
		return target{}, tartarus.Errorf(tartarus.Exhausted, "too many signatures that are not known")
	}
	prefix := q.Get("path") + ":" + operation + ":" + q.Get("username") + ":"
	suffix := ""
	if exp := q.Get("signature_expiration"); exp != "" {
		suffix = ":" + exp
	}
	for _, age := range []time.Duration{tokensTTL, missTTL} {
		tokens, err := s.list(r.Context(), age, now)
		if err != nil {
			return target{}, err
		}
		for _, t := range tokens {
			if subtle.ConstantTimeCompare([]byte(sign(prefix, t.secret, suffix)), []byte(signature)) == 1 {
				s.found.Put(key, t.id, now)
				return target{t.id, tartarus.AgentPort}, nil
			}
		}
	}
	return target{}, errGone
}

// sign is the signature that SDKs make.
func sign(prefix, secret, suffix string) string {
	sum := sha256.Sum256([]byte(prefix + secret + suffix))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// list returns the tokens of what runs, read again if they are older than age.
func (s *signed) list(ctx context.Context, age time.Duration, now time.Time) ([]token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.read.IsZero() && now.Sub(s.read) < age {
		return s.tokens, nil
	}
	q := hades.Query{Tenant: hades.AnyTenant, Phases: []tartarus.Phase{tartarus.Running, tartarus.Snapshotting}, Limit: 1000}
	var tokens []token
	for len(tokens) < maxSigned {
		page, err := s.registry.ListSandboxes(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, sb := range page.Sandboxes {
			if sb.Secrets.AgentToken != "" {
				tokens = append(tokens, token{sb.ID, sb.Secrets.AgentToken})
			}
		}
		if page.Next == (hades.Cursor{}) {
			break
		}
		q.After = page.Next
	}
	s.tokens, s.read = tokens, now
	return tokens, nil
}
