// Package tenant is who may do what: tenants and their API keys. A key is shown once, when it is made; only its
// SHA-256 is ever stored, which is enough for 160 random bits.
package tenant

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// Default is the tenant of the first key, and of a machine that one person uses.
const Default = "default"

// Role is what a key may do.
type Role string

// The roles, each with all rights of the ones after it.
const (
	Admin     Role = "admin"     // tenants and keys
	Operator  Role = "operator"  // nodes, queue, quarantine, across tenants
	Developer Role = "developer" // sandboxes and templates of its tenant
	Reader    Role = "reader"    // looks at them
)

var rank = map[Role]int{Admin: 4, Operator: 3, Developer: 2, Reader: 1}

// Covers reports whether r has all rights of want. Unknown roles have none.
func (r Role) Covers(want Role) bool { return rank[r] > 0 && rank[r] >= rank[want] }

// Key is an API key as the store knows it.
type Key struct {
	ID        string    `json:"id"`
	Hash      string    `json:"-"` // hex SHA-256 of the secret
	Tenant    string    `json:"tenant"`
	Name      string    `json:"name,omitempty"`
	Role      Role      `json:"role"`
	Exec      bool      `json:"exec"`               // may run processes and touch files in sandboxes
	Rate      float64   `json:"rate,omitempty"`     // requests per second; 0 is what the server allows every key
	Burst     int       `json:"burst,omitempty"`    // requests at once; 0 goes with Rate
	Replaces  string    `json:"replaces,omitempty"` // id of the key that was rotated into this one
	CreatedAt time.Time `json:"createdAt"`
	ExpiresAt time.Time `json:"expiresAt,omitzero"`
	RevokedAt time.Time `json:"revokedAt,omitzero"`
	LastUsed  time.Time `json:"lastUsed,omitzero"`

	// Person says that it is none of the store's: its holder logged in elsewhere.
	Person bool `json:"-"`
}

// Valid reports whether the key may be used at now.
func (k Key) Valid(now time.Time) bool {
	return k.RevokedAt.IsZero() && (k.ExpiresAt.IsZero() || now.Before(k.ExpiresAt))
}

// Store keeps keys. All methods may be called concurrently; what a method has acknowledged survives a crash.
type Store interface {
	// PutKey stores a new or changed key by its ID. Another key with the same hash is tartarus.Conflict.
	PutKey(ctx context.Context, k Key) error
	// KeyByHash finds a key; none is tartarus.NotFound. Revoked and expired keys are found too.
	KeyByHash(ctx context.Context, hash string) (Key, error)
	// Keys lists the keys of a tenant, or of all with hades.AnyTenant, by creation.
	Keys(ctx context.Context, tenant string) ([]Key, error)
	// RemoveKey forgets a key; absent is no error.
	RemoveKey(ctx context.Context, id string) error
}

// NewSecret makes an API key's secret: e2b_ and 40 lower-case hex digits, the shape that the SDKs check for.
func NewSecret() string {
	var b [20]byte
	rand.Read(b[:])
	return "e2b_" + hex.EncodeToString(b[:])
}

// HashSecret is how a secret is stored and looked up.
func HashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}
