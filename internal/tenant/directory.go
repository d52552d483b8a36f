package tenant

import (
	"context"
	"encoding/json"
	"regexp"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
)

// Tenant is a party that owns sandboxes, and does not see those of others.
type Tenant struct {
	Name      string            `json:"name"`               // lower-case letters, digits and dashes
	Title     string            `json:"title,omitempty"`    // for people
	Labels    map[string]string `json:"labels,omitempty"`   // read by policies
	Quota     Quota             `json:"quota"`              // what all its sandboxes together may take
	CreatedAt time.Time         `json:"createdAt"`          // the tenant of the first key has none
	Disabled  bool              `json:"disabled,omitempty"` // its keys do not work; its sandboxes live on until their time is up
}

// Quota bounds what a tenant takes at a time. 0 sets no bound.
type Quota struct {
	Sandboxes        int64 `json:"sandboxes,omitempty"`        // that run, or are about to
	VCPU             int64 `json:"vcpu,omitempty"`             // of these together
	MemoryMB         int64 `json:"memoryMB,omitempty"`         // likewise
	DiskMB           int64 `json:"diskMB,omitempty"`           // likewise, and of paused ones
	SnapshotMB       int64 `json:"snapshotMB,omitempty"`       // of memory and disk that paused sandboxes keep
	CreatesPerMinute int64 `json:"createsPerMinute,omitempty"` // within any 60 seconds
	Queue            int64 `json:"queue,omitempty"`            // creates that wait for a node
}

// Unbounded reports whether a quota bounds nothing.
func (q Quota) Unbounded() bool { return q == Quota{} }

const tenantShelf = "tenants"

var tenantName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ValidName reports whether s may name a tenant.
func ValidName(s string) bool { return tenantName.MatchString(s) }

// Directory is the tenants that are known by name. A key may belong to a tenant that is not in it: such a tenant has no quota.
type Directory struct {
	store shelf.Store
}

// NewDirectory makes a directory on a store.
func NewDirectory(store shelf.Store) *Directory { return &Directory{store} }

func (t Tenant) validate() error {
	if !ValidName(t.Name) {
		return tartarus.Errorf(tartarus.Invalid, "the name of a tenant must be 1 to 63 lower-case letters, digits and dashes")
	}
	if len(t.Title) > 256 || len(t.Labels) > 64 {
		return tartarus.Errorf(tartarus.Invalid, "a tenant may have a title of 256 bytes and 64 labels")
	}
	for k, v := range t.Labels {
		if k == "" || len(k) > 256 || len(v) > 256 {
			return tartarus.Errorf(tartarus.Invalid, "label %.40q: name and value have up to 256 bytes", k)
		}
	}
	q := t.Quota
	for name, n := range map[string]int64{"sandboxes": q.Sandboxes, "vcpu": q.VCPU, "memoryMB": q.MemoryMB, "diskMB": q.DiskMB,
		"snapshotMB": q.SnapshotMB, "createsPerMinute": q.CreatesPerMinute, "queue": q.Queue} {
		if n < 0 || n > 1<<40 {
			return tartarus.Errorf(tartarus.Invalid, "quota %s must be at least 0, which sets no bound", name)
		}
	}
	return nil
}

// Create enters a tenant. One that is there is tartarus.Conflict.
func (d *Directory) Create(ctx context.Context, t Tenant) error {
	if err := t.validate(); err != nil {
		return err
	}
	err := d.put(ctx, t, 0)
	if tartarus.Is(err, tartarus.Conflict) {
		return tartarus.Errorf(tartarus.Conflict, "tenant %s is there already", t.Name)
	}
	return err
}

func (d *Directory) put(ctx context.Context, t Tenant, expect int64) error {
	body, err := json.Marshal(t)
	if err != nil {
		return tartarus.Errorf(tartarus.Internal, "encode tenant: %w", err)
	}
	_, err = d.store.Put(ctx, tenantShelf, t.Name, body, expect)
	return err
}

// Get finds a tenant; none is tartarus.NotFound.
func (d *Directory) Get(ctx context.Context, name string) (Tenant, error) {
	t, _, err := d.get(ctx, name)
	return t, err
}

func (d *Directory) get(ctx context.Context, name string) (t Tenant, revision int64, err error) {
	if !ValidName(name) {
		return t, 0, tartarus.Errorf(tartarus.NotFound, "no tenant %.80q", name)
	}
	rec, err := d.store.Get(ctx, tenantShelf, name)
	if tartarus.Is(err, tartarus.NotFound) {
		return t, 0, tartarus.Errorf(tartarus.NotFound, "no tenant %s", name)
	}
	if err != nil {
		return t, 0, err
	}
	t, err = decodeTenant(rec)
	return t, rec.Revision, err
}

func decodeTenant(rec shelf.Record) (t Tenant, err error) {
	if err := json.Unmarshal(rec.Body, &t); err != nil {
		return t, tartarus.Errorf(tartarus.Corrupt, "decode tenant %s: %w", rec.Name, err)
	}
	return t, nil
}

// List returns all tenants by name.
func (d *Directory) List(ctx context.Context) ([]Tenant, error) {
	found, err := d.store.List(ctx, tenantShelf)
	if err != nil {
		return nil, err
	}
	out := make([]Tenant, 0, len(found))
	for _, rec := range found {
		t, err := decodeTenant(rec)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// changeTries bounds the race with others who change a tenant; each lost round means that another one succeeded.
const changeTries = 16

// Change alters a tenant as it is now. change may be called more than once.
func (d *Directory) Change(ctx context.Context, name string, change func(*Tenant)) (Tenant, error) {
	for range changeTries {
		t, revision, err := d.get(ctx, name)
		if err != nil {
			return t, err
		}
		change(&t)
		t.Name = name
		if err := t.validate(); err != nil {
			return t, err
		}
		if err := d.put(ctx, t, revision); !tartarus.Is(err, tartarus.Conflict) {
			return t, err
		}
	}
	return Tenant{}, tartarus.Errorf(tartarus.Unavailable, "tenant %s is changed by too many at once", name)
}

// Remove forgets a tenant; absent is no error.
func (d *Directory) Remove(ctx context.Context, name string) error {
	return d.store.Remove(ctx, tenantShelf, name)
}
