package sqlite

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"fmt"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/secret"
	"github.com/tartarus-sandbox/tartarus/internal/volume"
)

// named is what tenants have under names of their own: secrets and volumes, a kind each.
type named struct {
	db   *DB
	kind string
	max  int64 // of one tenant
}

// create adds one at version 1.
func (n named) create(ctx context.Context, tenant, id, name string, v any) error {
	if tenant == "" || tenant == hades.AnyTenant || id == "" || name == "" || id == name {
		return tartarus.Errorf(tartarus.Invalid, "%s %q needs an id, a name and a tenant", n.kind, id)
	}
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", n.kind, id, err)
	}
	err = n.db.write(ctx, func(t *txn) error {
		row, found, err := t.conn.one(`SELECT name FROM named WHERE kind = ?1 AND tenant = ?2 AND (name = ?3 OR id = ?4)`, n.kind, tenant, name, id)
		if err != nil {
			t.broken = err
			return err
		}
		if found {
			return tartarus.Errorf(tartarus.Conflict, "there is a %s %s", n.kind, str(row[0]))
		}
		count, err := t.conn.number("SELECT count(*) FROM named WHERE kind = ? AND tenant = ?", n.kind, tenant)
		if err != nil {
			t.broken = err
			return err
		}
		if count >= n.max {
			return tartarus.Errorf(tartarus.Exhausted, "there are %d %ss, which is the limit; remove one", count, n.kind)
		}
		_, err = t.exec("INSERT INTO named (kind, tenant, name, id, version, body) VALUES (?, ?, ?, ?, 1, ?)", n.kind, tenant, name, id, body)
		return err
	})
	if err != nil {
		return fmt.Errorf("create %s: %w", n.kind, err)
	}
	return nil
}

// update replaces the body of one that is at the version before.
func (n named) update(ctx context.Context, tenant, id string, version int64, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", n.kind, id, err)
	}
	err = n.db.write(ctx, func(t *txn) error {
		row, found, err := t.conn.one("SELECT version FROM named WHERE kind = ? AND tenant = ? AND id = ?", n.kind, tenant, id)
		if err != nil {
			t.broken = err
			return err
		}
		if !found {
			return n.none(id)
		}
		if was := num(row[0]); was != version-1 {
			return tartarus.Errorf(tartarus.Conflict, "%s %s is at version %d, not %d", n.kind, id, was, version-1)
		}
		_, err = t.exec("UPDATE named SET version = ?, body = ? WHERE kind = ? AND tenant = ? AND id = ?", version, body, n.kind, tenant, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("update %s: %w", n.kind, err)
	}
	return nil
}

// find reads one by id or name into v.
func (n named) find(ctx context.Context, tenant, ref string, v any) error {
	found := false
	err := n.each(ctx, func(body []byte) error { found = true; return json.Unmarshal(body, v) },
		"kind = ?1 AND tenant = ?2 AND (id = ?3 OR name = ?3) LIMIT 1", n.kind, tenant, ref)
	if err == nil && !found {
		err = n.none(ref)
	}
	return err
}

func (n named) none(ref string) error {
	return tartarus.Errorf(tartarus.NotFound, "there is no %s %.80q", n.kind, ref)
}

// list reads a page in the order of names.
func (n named) list(ctx context.Context, tenant, after string, limit int, each func(body []byte) error) error {
	if limit < 1 || limit > maxList {
		return tartarus.Errorf(tartarus.Invalid, "list %ss: limit must be 1 to %d, not %d", n.kind, maxList, limit)
	}
	return n.each(ctx, each, "kind = ? AND tenant = ? AND name > ? ORDER BY name LIMIT ?", n.kind, tenant, after, limit)
}

func (n named) each(ctx context.Context, fn func(body []byte) error, where string, args ...any) error {
	err := n.db.read(ctx, func(c *conn) error {
		return c.queryContext(ctx, func(row []driver.Value) (bool, error) {
			if err := fn(blob(row[0])); err != nil {
				return false, tartarus.Errorf(tartarus.Corrupt, "decode %s: %w", n.kind, err)
			}
			return true, nil
		}, "SELECT body FROM named WHERE "+where, args...)
	})
	if err != nil {
		return fmt.Errorf("read %ss: %w", n.kind, err)
	}
	return nil
}

// remove forgets one.
func (n named) remove(ctx context.Context, tenant, id string) error {
	err := n.db.write(ctx, func(t *txn) error {
		_, found, err := t.conn.one("SELECT 1 FROM named WHERE kind = ? AND tenant = ? AND id = ?", n.kind, tenant, id)
		if err != nil {
			t.broken = err
			return err
		}
		if !found {
			return n.none(id)
		}
		_, err = t.exec("DELETE FROM named WHERE kind = ? AND tenant = ? AND id = ?", n.kind, tenant, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove %s: %w", n.kind, err)
	}
	return nil
}

// Secrets implements secret.Store.
type Secrets struct{ named }

// Secrets returns the store's secrets.
func (db *DB) Secrets() *Secrets { return &Secrets{named{db, "secret", secret.MaxPerTenant}} }

// CreateSecret implements secret.Store.
func (s *Secrets) CreateSecret(ctx context.Context, r secret.Record) error {
	return s.create(ctx, r.Tenant, r.ID, r.Name, r)
}

// UpdateSecret implements secret.Store.
func (s *Secrets) UpdateSecret(ctx context.Context, r secret.Record) error {
	return s.update(ctx, r.Tenant, r.ID, r.Version, r)
}

// Secret implements secret.Store.
func (s *Secrets) Secret(ctx context.Context, tenant, ref string) (r secret.Record, err error) {
	err = s.find(ctx, tenant, ref, &r)
	return r, err
}

// Secrets implements secret.Store.
func (s *Secrets) Secrets(ctx context.Context, tenant, after string, limit int) ([]secret.Info, error) {
	out := []secret.Info{}
	err := s.list(ctx, tenant, after, limit, appendTo(&out))
	return out, err
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
	return s.create(ctx, v.Tenant, v.ID, v.Name, v)
}

// Volume implements volume.Store.
func (s *Volumes) Volume(ctx context.Context, tenant, ref string) (v volume.Volume, err error) {
	err = s.find(ctx, tenant, ref, &v)
	return v, err
}

// Volumes implements volume.Store.
func (s *Volumes) Volumes(ctx context.Context, tenant, after string, limit int) ([]volume.Volume, error) {
	out := []volume.Volume{}
	err := s.list(ctx, tenant, after, limit, appendTo(&out))
	return out, err
}

// RemoveVolume implements volume.Store.
func (s *Volumes) RemoveVolume(ctx context.Context, tenant, id string) error {
	return s.remove(ctx, tenant, id)
}

// appendTo decodes each body into one more element.
func appendTo[T any](out *[]T) func([]byte) error {
	return func(body []byte) error {
		var v T
		err := json.Unmarshal(body, &v)
		*out = append(*out, v)
		return err
	}
}
