// Package secret keeps values that tenants give and nobody gets back: they are used on the host, in the headers of what leaves a
// sandbox, and shown to nobody. What a store holds is sealed under a key that the store does not have, and bound to the
// secret it belongs to, so that a copied or swapped record opens nothing.
package secret

import (
	"context"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Info is what may be told of a secret.
type Info struct {
	ID        string            `json:"id"` // IDPrefix and 20 letters and digits
	Tenant    string            `json:"tenant"`
	Name      string            `json:"name"`    // unique within the tenant, lower case
	Version   int64             `json:"version"` // 1 at first, one more with each new value
	Metadata  map[string]string `json:"metadata,omitempty"`
	CreatedAt time.Time         `json:"createdAt"`
	UpdatedAt time.Time         `json:"updatedAt"`
}

// Record is a secret as a store holds it.
type Record struct {
	Info
	Sealed []byte `json:"sealed"` // by a Sealer, for this id and version
}

// Store keeps records. Methods may be called concurrently, and what a change has acknowledged survives a crash. Only the
// newest version of a secret is kept: an older value is of use only to who should not have it.
type Store interface {
	// CreateSecret adds a secret at version 1. A name or id that the tenant has is tartarus.Conflict, one secret more than
	// MaxPerTenant is tartarus.Exhausted.
	CreateSecret(ctx context.Context, r Record) error
	// UpdateSecret puts r in the place of the version before it. An unknown id is tartarus.NotFound, another version than the
	// one before tartarus.Conflict. Name and CreatedAt stay as they were.
	UpdateSecret(ctx context.Context, r Record) error
	// Secret finds a tenant's secret by id or by name; none is tartarus.NotFound.
	Secret(ctx context.Context, tenant, ref string) (Record, error)
	// Secrets lists at most limit of a tenant's secrets whose name comes after another, in the order of their names.
	Secrets(ctx context.Context, tenant, after string, limit int) ([]Info, error)
	// RemoveSecret forgets a secret and its value; an unknown id is tartarus.NotFound.
	RemoveSecret(ctx context.Context, tenant, id string) error
}

// Bounds of what a secret may be. Those of metadata are the wire protocol's.
const (
	IDPrefix     = "sec_"
	MaxPerTenant = 1000
	MaxValue     = 16 << 10 // a header line of common servers holds 8 to 16 KiB
	maxName      = 128
	maxEntries   = 32
	maxKey       = 128
	maxEntry     = 1024
	maxMetadata  = 8192
)

// NewID makes an identifier.
func NewID() string { return IDPrefix + tartarus.NewTemplateID() }

// CleanName gives a name's stored form: lower case. Names appear in placeholders and in paths of the API.
func CleanName(name string) (string, error) {
	name = strings.ToLower(name)
	if name == "" || len(name) > maxName || strings.HasPrefix(name, IDPrefix) || strings.Trim(name, ".") == "" {
		return "", errName
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return "", errName
		}
	}
	return name, nil
}

var errName = &tartarus.Error{
	Kind: tartarus.Invalid, Message: "name must be 1 to 128 letters, digits and any of - _ . and not begin with " + IDPrefix,
}

// CheckMetadata holds metadata against its bounds.
func CheckMetadata(m map[string]string) error {
	if len(m) > maxEntries {
		return tartarus.Errorf(tartarus.Invalid, "metadata may have %d entries, not %d", maxEntries, len(m))
	}
	total := 0
	for k, v := range m {
		if k == "" || len(k) > maxKey || len(v) > maxEntry {
			return tartarus.Errorf(tartarus.Invalid, "metadata %.40q: a key has 1 to %d bytes and a value at most %d", k, maxKey, maxEntry)
		}
		total += len(k) + len(v)
	}
	if total > maxMetadata {
		return tartarus.Errorf(tartarus.Invalid, "metadata may have %d bytes, not %d", maxMetadata, total)
	}
	return nil
}

// checkValue refuses what could not be sent in a header anyway. Its message never shows the value.
func checkValue(value string) error {
	if value == "" || len(value) > MaxValue {
		return tartarus.Errorf(tartarus.Invalid, "value must have 1 to %d bytes", MaxValue)
	}
	return nil
}
