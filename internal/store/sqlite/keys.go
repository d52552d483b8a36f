package sqlite

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"fmt"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// Keys implements tenant.Store.
type Keys struct{ db *DB }

// Keys returns the store's API keys.
func (db *DB) Keys() *Keys { return &Keys{db} }

// PutKey implements tenant.Store.
func (s *Keys) PutKey(ctx context.Context, k tenant.Key) error {
	if k.ID == "" || k.Hash == "" || k.Tenant == "" || k.Tenant == hades.AnyTenant {
		return tartarus.Errorf(tartarus.Invalid, "key %q needs an id, a hash and a tenant", k.ID)
	}
	body, err := json.Marshal(k)
	if err != nil {
		return fmt.Errorf("encode key %s: %w", k.ID, err)
	}
	err = s.db.write(ctx, func(t *txn) error {
		other, found, err := t.conn.one("SELECT id FROM keys WHERE hash = ? AND id <> ?", k.Hash, k.ID)
		if err != nil {
			t.broken = err
			return err
		}
		if found {
			return tartarus.Errorf(tartarus.Conflict, "key %s has the secret of key %s", k.ID, str(other[0]))
		}
		_, err = t.exec(`INSERT INTO keys (id, hash, tenant, created_at, body) VALUES (?1, ?2, ?3, ?4, ?5)
			ON CONFLICT (id) DO UPDATE SET hash = ?2, tenant = ?3, created_at = ?4, body = ?5`, k.ID, k.Hash, k.Tenant, k.CreatedAt, body)
		return err
	})
	if err != nil {
		return fmt.Errorf("put key %s: %w", k.ID, err)
	}
	return nil
}

// KeyByHash implements tenant.Store.
func (s *Keys) KeyByHash(ctx context.Context, hash string) (tenant.Key, error) {
	keys, err := s.query(ctx, "hash = ?", hash)
	if err != nil {
		return tenant.Key{}, err
	}
	if len(keys) == 0 {
		return tenant.Key{}, tartarus.Errorf(tartarus.NotFound, "no such key")
	}
	return keys[0], nil
}

// Keys implements tenant.Store.
func (s *Keys) Keys(ctx context.Context, name string) ([]tenant.Key, error) {
	if name == hades.AnyTenant {
		return s.query(ctx, "1 ORDER BY created_at, id")
	}
	return s.query(ctx, "tenant = ? ORDER BY created_at, id", name)
}

// RemoveKey implements tenant.Store.
func (s *Keys) RemoveKey(ctx context.Context, id string) error {
	err := s.db.write(ctx, func(t *txn) error {
		_, err := t.exec("DELETE FROM keys WHERE id = ?", id)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove key %s: %w", id, err)
	}
	return nil
}

func (s *Keys) query(ctx context.Context, where string, args ...any) ([]tenant.Key, error) {
	keys := []tenant.Key{}
	err := s.db.read(ctx, func(c *conn) error {
		return c.query(func(row []driver.Value) (bool, error) {
			var k tenant.Key
			if err := json.Unmarshal(blob(row[1]), &k); err != nil {
				return false, tartarus.Errorf(tartarus.Corrupt, "decode key: %w", err)
			}
			k.Hash = str(row[0])
			keys = append(keys, k)
			return true, nil
		}, "SELECT hash, body FROM keys WHERE "+where, args...)
	})
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	return keys, nil
}
