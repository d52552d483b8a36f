package redis

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/secret"
	"github.com/tartarus-sandbox/tartarus/internal/volume"
)

// named is what tenants have under names of their own: secrets and volumes, each under a tag of its own.
type named struct {
	db   *DB
	kind string
	max  int // of one tenant
}

func (n named) put(ctx context.Context, tenant, id, name string, version int64, v any) error {
	if tenant == "" || tenant == hades.AnyTenant || id == "" || name == "" || id == name || strings.Contains(name, "|") {
		return tartarus.Errorf(tartarus.Invalid, "%s %q needs an id, a name and a tenant", n.kind, id)
	}
	body, err := json.Marshal(v)
	var a answer
	if err == nil {
		a, err = n.db.run(ctx, putNamedScript, n.db.tag(n.kind), tenant, id, name, version, body, n.max)
	}
	if err != nil {
		return fmt.Errorf("put %s %s: %w", n.kind, id, err)
	}
	switch a.text(0) {
	case "ok":
		return nil
	case "taken":
		return tartarus.Errorf(tartarus.Conflict, "there is a %s %s", n.kind, name)
	case "full":
		return tartarus.Errorf(tartarus.Exhausted, "there are %d %ss, which is the limit; remove one", a.number(1), n.kind)
	case "absent":
		return n.none(id)
	}
	return tartarus.Errorf(tartarus.Conflict, "%s %s is at version %d, not %d", n.kind, id, a.number(1), version-1)
}

func (n named) none(ref string) error {
	return tartarus.Errorf(tartarus.NotFound, "there is no %s %.80q", n.kind, ref)
}

func (n named) find(ctx context.Context, tenant, ref string, v any) error {
	a, err := n.db.run(ctx, getNamedScript, n.db.tag(n.kind), tenant, ref)
	if err != nil {
		return fmt.Errorf("read %s: %w", n.kind, err)
	}
	if len(a) == 0 {
		return n.none(ref)
	}
	_, err = n.decode(a.text(0), v)
	return err
}

// decode reads version|name|body.
func (n named) decode(text string, v any) (name string, err error) {
	_, rest, _ := strings.Cut(text, "|")
	name, body, _ := strings.Cut(rest, "|")
	if err := json.Unmarshal([]byte(body), v); err != nil {
		return name, tartarus.Errorf(tartarus.Corrupt, "decode %s: %w", n.kind, err)
	}
	return name, nil
}

// list reads all of a tenant, which are few, and cuts the page out.
func list[T any](ctx context.Context, n named, tenant, after string, limit int) ([]T, error) {
	if limit < 1 {
		return nil, tartarus.Errorf(tartarus.Invalid, "list %ss: limit must be at least 1, not %d", n.kind, limit)
	}
	prefix := n.db.tag(n.kind)
	var bodies []string
	err := n.db.at(ctx, prefix, func(ctx context.Context, c *goredis.Client) (err error) {
		bodies, err = c.HVals(ctx, prefix+"named:"+tenant).Result()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %ss: %w", n.kind, err)
	}
	type entry struct {
		name string
		v    T
	}
	entries := make([]entry, 0, len(bodies))
	for _, body := range bodies {
		var e entry
		if e.name, err = n.decode(body, &e.v); err != nil {
			return nil, err
		}
		if e.name > after {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	out := make([]T, 0, min(limit, len(entries)))
	for _, e := range entries[:min(limit, len(entries))] {
		out = append(out, e.v)
	}
	return out, nil
}

func (n named) remove(ctx context.Context, tenant, id string) error {
	a, err := n.db.run(ctx, removeNamedScript, n.db.tag(n.kind), tenant, id)
	if err != nil {
		return fmt.Errorf("remove %s %s: %w", n.kind, id, err)
	}
	if a.text(0) != "ok" {
		return n.none(id)
	}
	return nil
}

// Secrets implements secret.Store.
type Secrets struct{ named }

// Secrets returns the store's secrets.
func (db *DB) Secrets() *Secrets { return &Secrets{named{db, "secret", secret.MaxPerTenant}} }

// CreateSecret implements secret.Store.
func (s *Secrets) CreateSecret(ctx context.Context, r secret.Record) error {
	return s.put(ctx, r.Tenant, r.ID, r.Name, 1, r)
}

// UpdateSecret implements secret.Store.
func (s *Secrets) UpdateSecret(ctx context.Context, r secret.Record) error {
	return s.put(ctx, r.Tenant, r.ID, r.Name, r.Version, r)
}

// Secret implements secret.Store.
func (s *Secrets) Secret(ctx context.Context, tenant, ref string) (r secret.Record, err error) {
	err = s.find(ctx, tenant, ref, &r)
	return r, err
}

// Secrets implements secret.Store.
func (s *Secrets) Secrets(ctx context.Context, tenant, after string, limit int) ([]secret.Info, error) {
	return list[secret.Info](ctx, s.named, tenant, after, limit)
}

// RemoveSecret implements secret.Store.
func (s *Secrets) RemoveSecret(ctx context.Context, tenant, id string) error {
	return s.remove(ctx, tenant, id)
}

// Volumes implements volume.Store.
type Volumes struct{ named }

// Volumes returns the store's volumes.
func (db *DB) Volumes() *Volumes { return &Volumes{named{db, "volume", volume.MaxPerTenant}} }

// CreateVolume implements volume.Store.
func (s *Volumes) CreateVolume(ctx context.Context, v volume.Volume) error {
	return s.put(ctx, v.Tenant, v.ID, v.Name, 1, v)
}

// Volume implements volume.Store.
func (s *Volumes) Volume(ctx context.Context, tenant, ref string) (v volume.Volume, err error) {
	err = s.find(ctx, tenant, ref, &v)
	return v, err
}

// Volumes implements volume.Store.
func (s *Volumes) Volumes(ctx context.Context, tenant, after string, limit int) ([]volume.Volume, error) {
	return list[volume.Volume](ctx, s.named, tenant, after, limit)
}

// RemoveVolume implements volume.Store.
func (s *Volumes) RemoveVolume(ctx context.Context, tenant, id string) error {
	return s.remove(ctx, tenant, id)
}
