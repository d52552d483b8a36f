// Package volume is storage that outlives sandboxes: folders of a tenant that programs fill over the API and sandboxes mount.
// Nothing that a caller or a guest names leads out of its volume's folder, and no volume grows over its quota.
package volume

import (
	"context"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Volume is one of them.
type Volume struct {
	ID        string    `json:"id"` // IDPrefix and 20 letters and digits; also the name of its folder
	Tenant    string    `json:"tenant"`
	Name      string    `json:"name"` // unique within the tenant
	CreatedAt time.Time `json:"createdAt"`
}

// Store keeps what volumes there are. Methods may be called concurrently, and what a change has acknowledged survives a crash.
type Store interface {
	// CreateVolume adds a volume. A name or id that the tenant has is tartarus.Conflict, one more than MaxPerTenant is
	// tartarus.Exhausted.
	CreateVolume(ctx context.Context, v Volume) error
	// Volume finds a tenant's volume by id or by name; none is tartarus.NotFound.
	Volume(ctx context.Context, tenant, ref string) (Volume, error)
	// Volumes lists at most limit of a tenant's volumes whose name comes after another, in the order of their names.
	Volumes(ctx context.Context, tenant, after string, limit int) ([]Volume, error)
	// RemoveVolume forgets a volume; an unknown id is tartarus.NotFound.
	RemoveVolume(ctx context.Context, tenant, id string) error
}

// Bounds of what a volume may be.
const (
	IDPrefix     = "vol_"
	MaxPerTenant = 1000
	maxName      = 128
)

// NewID makes an identifier.
func NewID() string { return IDPrefix + tartarus.NewTemplateID() }

// ValidID reports whether s has the shape of an identifier, and may so be the name of a folder.
func ValidID(s string) bool {
	rest, ok := strings.CutPrefix(s, IDPrefix)
	return ok && len(rest) == 20 && tartarus.ValidID(rest)
}

// CheckName refuses names that cannot be told from ids or do not fit into a path.
func CheckName(name string) error {
	bad := strings.ContainsFunc(name, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.'
	})
	if bad || name == "" || len(name) > maxName || strings.HasPrefix(name, IDPrefix) || strings.Trim(name, ".") == "" {
		return tartarus.Errorf(tartarus.Invalid, "name must be 1 to %d letters, digits and any of - _ . and not begin with %s", maxName, IDPrefix)
	}
	return nil
}
