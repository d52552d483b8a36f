package olympus

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/login"
	"github.com/tartarus-sandbox/tartarus/internal/recent"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// keyTTL is how long a key goes on working on this replica after it was revoked.
const keyTTL = 3 * time.Second

// knownKeys bounds the keys that are remembered, and the limiters.
const knownKeys = 4096

// gate lets requests in: it knows who asks and how often.
type gate struct {
	store  tenant.Store
	people *login.Issuer // nil lets none in
	dir    *tenants
	usage  *tenant.Usage
	rate   rate.Limit
	burst  int

	known    *recent.Cache[[sha256.Size]byte, tenant.Key]
	unknown  *recent.Cache[[sha256.Size]byte, struct{}] // its own, so that guesses cannot push out keys that are in use
	limiters *recent.Cache[string, *rate.Limiter]
}

// forget drops what is remembered of keys, so that a change counts at once on the replica that made it.
func (g *gate) forget() {
	g.known.Clear()
	g.unknown.Clear()
	g.limiters.Clear()
}

func newGate(cfg Config, dir *tenants, usage *tenant.Usage) *gate {
	return &gate{
		store: cfg.Keys, people: cfg.People, dir: dir, usage: usage, rate: rate.Limit(cfg.Rate), burst: cfg.Burst,
		known:    recent.New[[sha256.Size]byte, tenant.Key](knownKeys, keyTTL),
		unknown:  recent.New[[sha256.Size]byte, struct{}](knownKeys, keyTTL),
		limiters: recent.New[string, *rate.Limiter](knownKeys, time.Hour),
	}
}

var errNoKey = &tartarus.Error{Kind: tartarus.Unauthenticated, Message: "an API key is needed: send it as X-API-KEY"}
var errBadKey = &tartarus.Error{Kind: tartarus.Unauthenticated, Message: "the API key is not valid"}

var errDisabled = &tartarus.Error{Kind: tartarus.Unauthenticated, Code: "tenant_disabled", Message: "the tenant of the API key is disabled"}

// secretOf takes the API key, or the ID token in its place, from a request.
func secretOf(h http.Header) string {
	if s := h.Get(api.HeaderKey); s != "" {
		return s
	}
	if scheme, s, ok := strings.Cut(h.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(s)
	}
	return ""
}

// authenticate finds the key that a request was made with, or makes one of a person's ID token.
func (g *gate) authenticate(ctx context.Context, h http.Header, now time.Time) (tenant.Key, error) {
	secret := secretOf(h)
	if secret == "" {
		return tenant.Key{}, errNoKey
	}
	find := g.find
	if g.people != nil && login.Shaped(secret) {
		find = g.person
	} else if !keyShaped(secret) {
		return tenant.Key{}, errBadKey // not worth a look into the store
	}
	k, err := find(ctx, secret, now)
	if err != nil {
		return tenant.Key{}, err
	}
	if !k.Valid(now) {
		return tenant.Key{}, errBadKey
	}
	t, err := g.dir.find(ctx, k.Tenant, now)
	if err != nil {
		return tenant.Key{}, err
	}
	switch {
	case t.Disabled:
		return tenant.Key{}, errDisabled
	case k.Person && k.Tenant != tenant.Default && g.dir.dir != nil && t.CreatedAt.IsZero():
		// An issuer's administrator must not make tenants here, which would have no quota.
		return tenant.Key{}, &tartarus.Error{Kind: tartarus.Forbidden, Code: "no_tenant", Message: k.ID + " (" + k.Name + ") is of the tenant " + k.Tenant + ", which is not known here"}
	}
	if g.usage != nil && !k.Person {
		g.usage.Used(k.ID, now)
	}
	return k, nil
}

// find looks a key up.
func (g *gate) find(ctx context.Context, secret string, now time.Time) (tenant.Key, error) {
	sum := sha256.Sum256([]byte(secret))
	if k, ok := g.known.Get(sum, now); ok {
		return k, nil
	}
	if _, bad := g.unknown.Get(sum, now); bad {
		return tenant.Key{}, errBadKey
	}
	hash := hex.EncodeToString(sum[:])
	k, err := g.store.KeyByHash(ctx, hash)
	if tartarus.Is(err, tartarus.NotFound) {
		g.unknown.Put(sum, struct{}{}, now)
		return tenant.Key{}, errBadKey
	}
	if err != nil {
		return tenant.Key{}, err
	}
	// What the store found is compared once more in full, whatever its idea of finding is.
	if subtle.ConstantTimeCompare([]byte(k.Hash), []byte(hash)) != 1 {
		return tenant.Key{}, errBadKey
	}
	g.known.Put(sum, k, now)
	return k, nil
}

// person verifies an ID token. One that is refused is looked at again each time, because its key may be published a moment later.
func (g *gate) person(ctx context.Context, token string, now time.Time) (tenant.Key, error) {
	sum := sha256.Sum256([]byte(token))
	if k, ok := g.known.Get(sum, now); ok {
		return k, nil
	}
	k, err := g.people.Verify(ctx, token)
	if err == nil {
		g.known.Put(sum, k, now)
	}
	return k, err
}

// keyShaped reports whether s looks like a key that tenant.NewSecret makes.
func keyShaped(s string) bool {
	digits, ok := strings.CutPrefix(s, "e2b_")
	if !ok || len(digits) < 16 || len(digits) > 128 {
		return false
	}
	for i := range len(digits) {
		if c := digits[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// admit counts a request against its key's rate.
func (g *gate) admit(k tenant.Key, now time.Time) error {
	if g.rate < 0 && k.Rate == 0 {
		return nil
	}
	l, ok := g.limiters.Get(k.ID, now)
	if !ok {
		per, burst := g.rate, g.burst
		if k.Rate > 0 {
			per, burst = rate.Limit(k.Rate), max(1, k.Burst, int(k.Rate))
		}
		l = rate.NewLimiter(per, burst)
		g.limiters.Put(k.ID, l, now)
	}
	r := l.ReserveN(now, 1)
	if wait := r.DelayFrom(now); wait > 0 {
		r.CancelAt(now)
		return &tartarus.Error{Kind: tartarus.Exhausted, Message: "too many requests with this API key", RetryAfter: wait}
	}
	return nil
}
