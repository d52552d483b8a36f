package login

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

const (
	// askTime bounds one question to the issuer.
	askTime = 10 * time.Second
	// askAgain is how long nobody is asked again after a question that came to nothing.
	askAgain = 2 * time.Second
	// fresh is how long keys are good without asking for them again, so that one that the issuer has withdrawn is not good for long.
	fresh = 10 * time.Minute
	// stale is how long they are good while the issuer is away.
	stale = 24 * time.Hour
	// asks is how often a key that is not known may lead to a question: tokens under keys of any name can be made by everybody.
	asks = 5 * time.Second
	// maxAnswer bounds what the issuer answers; key sets have some kilobytes.
	maxAnswer = 1 << 20
)

var (
	errAway    = errors.New("the issuer does not answer")
	errTooSoon = errors.New("the issuer was asked for its keys a moment ago")
)

// keys are the issuer's, found through its discovery document and asked for again when they are old, or when one comes that is not among them.
type keys struct {
	issuer string
	client *http.Client

	asking *semaphore.Weighted // whoever asks for all others

	mu    sync.Mutex
	set   oidc.KeySet // nil before the first answer
	since time.Time   // of set
	tried time.Time   // when the issuer was last asked in vain
}

func newKeys(issuer string, client *http.Client) *keys {
	return &keys{issuer: issuer, client: client, asking: semaphore.NewWeighted(1)}
}

// VerifySignature implements oidc.KeySet.
func (k *keys) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	set, err := k.current(ctx)
	if err != nil {
		return nil, err
	}
	return set.VerifySignature(ctx, token)
}

// known is the set that there is, how old it is, and whether it is time to ask for another one.
func (k *keys) known() (set oidc.KeySet, age time.Duration, ask bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	age = now.Sub(k.since)
	return k.set, age, (k.set == nil || age > fresh) && now.Sub(k.tried) > askAgain
}

// current is the set of keys to verify with. One of all who need another one asks for it; the others wait only when there is none.
func (k *keys) current(ctx context.Context) (oidc.KeySet, error) {
	set, age, ask := k.known()
	if set != nil && (!ask || !k.asking.TryAcquire(1)) {
		return usable(set, age)
	}
	if set == nil {
		if err := k.asking.Acquire(ctx, 1); err != nil {
			return nil, fmt.Errorf("%w: %w", errAway, err)
		}
	}
	defer k.asking.Release(1)
	if set, age, ask = k.known(); !ask { // somebody else did meanwhile
		return usable(set, age)
	}
	next, err := k.discover(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		k.set, k.since = next, time.Now()
		return next, nil
	}
	k.tried = time.Now()
	if set == nil {
		return nil, err
	}
	return usable(set, age)
}

func usable(set oidc.KeySet, age time.Duration) (oidc.KeySet, error) {
	if set == nil || age > stale {
		return nil, errAway
	}
	return set, nil
}

// discover asks the issuer where its keys are, and for the keys themselves: an empty set in the place of one that works would be none if the
// issuer went away in between.
func (k *keys) discover(ctx context.Context) (oidc.KeySet, error) {
	// Others wait for the answer who have not gone away.
	ctx, cancel := context.WithTimeout(oidc.ClientContext(context.WithoutCancel(ctx), k.client), askTime)
	defer cancel()
	provider, err := oidc.NewProvider(ctx, k.issuer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAway, err)
	}
	var about struct {
		Keys string `json:"jwks_uri"`
	}
	if err := provider.Claims(&about); err != nil {
		return nil, fmt.Errorf("%w: %w", errAway, err)
	}
	rare := *k.client
	rare.Transport = &limited{next: k.client.Transport, limit: rate.NewLimiter(rate.Every(asks), 2)}
	set := oidc.NewRemoteKeySet(oidc.ClientContext(context.WithoutCancel(ctx), &rare), about.Keys)
	// Nothing is signed by this: what counts is whether keys came.
	const unsigned = "eyJhbGciOiJSUzI1NiJ9.e30.AA" // {"alg":"RS256"}.{}
	if _, err := set.VerifySignature(ctx, unsigned); errors.Is(err, errAway) || ctx.Err() != nil {
		return nil, fmt.Errorf("%w: %w", errAway, err)
	}
	return set, nil
}

// watched remembers why a signature could not be verified, which the verifier tells in words only.
type watched struct {
	keys oidc.KeySet
	err  error
}

// VerifySignature implements oidc.KeySet.
func (w *watched) VerifySignature(ctx context.Context, token string) (payload []byte, err error) {
	payload, w.err = w.keys.VerifySignature(ctx, token)
	return payload, w.err
}

// limited lets a few questions through at first and then one from time to time.
type limited struct {
	next  http.RoundTripper
	limit *rate.Limiter
}

// RoundTrip implements http.RoundTripper.
func (l *limited) RoundTrip(r *http.Request) (*http.Response, error) {
	if !l.limit.Allow() {
		return nil, errTooSoon
	}
	return l.next.RoundTrip(r)
}

// careful asks only where the answer can be trusted, redirections included, and takes only answers that are JSON of a bounded size. Everything else
// is as if there was no answer.
type careful struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (c *careful) RoundTrip(r *http.Request) (*http.Response, error) {
	if !safe(r.URL) {
		return nil, fmt.Errorf("%w: %s://%s is neither https nor this machine", errAway, r.URL.Scheme, r.URL.Host)
	}
	res, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAway, err)
	}
	if res.StatusCode >= 300 && res.StatusCode < 400 {
		return res, nil
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errAway, err)
	case res.StatusCode != http.StatusOK || len(body) > maxAnswer || !json.Valid(body):
		return nil, fmt.Errorf("%w as it should: status %d, %d bytes", errAway, res.StatusCode, len(body))
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	return res, nil
}

// CloseIdleConnections is called by http.Client of that name.
func (c *careful) CloseIdleConnections() {
	if t, ok := c.next.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}
