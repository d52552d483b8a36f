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
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// Keys implements tenant.Store.
type Keys struct{ db *DB }

// Keys returns the store's API keys.
func (db *DB) Keys() *Keys { return &Keys{db} }

// storedKey is a key with its hash, which the key's own JSON leaves out.
type storedKey struct {
	Hash string     `json:"hash"`
	Key  tenant.Key `json:"key"`
}

// PutKey implements tenant.Store.
func (s *Keys) PutKey(ctx context.Context, k tenant.Key) error {
	if k.ID == "" || k.Hash == "" || k.Tenant == "" || k.Tenant == hades.AnyTenant {
		return tartarus.Errorf(tartarus.Invalid, "key %q needs an id, a hash and a tenant", k.ID)
	}
	body, err := json.Marshal(storedKey{k.Hash, k})
	var v answer
	if err == nil {
		v, err = s.db.run(ctx, putKeyScript, s.db.tag("k"), k.ID, k.Hash, body)
	}
	if err != nil {
		return fmt.Errorf("put key %s: %w", k.ID, err)
	}
	if v.text(0) != "ok" {
		return tartarus.Errorf(tartarus.Conflict, "put key %s: another key has its secret", k.ID)
	}
	return nil
}

// KeyByHash implements tenant.Store.
func (s *Keys) KeyByHash(ctx context.Context, hash string) (tenant.Key, error) {
	body, err := s.db.field(ctx, s.db.tag("k"), "hashes", hash)
	switch {
	case err == goredis.Nil:
		return tenant.Key{}, tartarus.Errorf(tartarus.NotFound, "no such key")
	case err != nil:
		return tenant.Key{}, fmt.Errorf("read key: %w", err)
	}
	return decodeKey(body)
}

func decodeKey(body string) (tenant.Key, error) {
	var k storedKey
	if err := json.Unmarshal([]byte(body), &k); err != nil {
		return tenant.Key{}, tartarus.Errorf(tartarus.Corrupt, "decode key: %w", err)
	}
	k.Key.Hash = k.Hash
	return k.Key, nil
}

// Keys implements tenant.Store.
func (s *Keys) Keys(ctx context.Context, name string) ([]tenant.Key, error) {
	prefix := s.db.tag("k")
	var bodies []string
	err := s.db.at(ctx, prefix, func(ctx context.Context, c *goredis.Client) (err error) {
		bodies, err = c.HVals(ctx, prefix+"hashes").Result()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	keys := []tenant.Key{}
	for _, body := range bodies {
		k, err := decodeKey(body)
		if err != nil {
			return nil, err
		}
		if name == hades.AnyTenant || name == k.Tenant {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b tenant.Key) int {
		if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return keys, nil
}

// RemoveKey implements tenant.Store.
func (s *Keys) RemoveKey(ctx context.Context, id string) error {
	if _, err := s.db.run(ctx, removeKeyScript, s.db.tag("k"), id); err != nil {
		return fmt.Errorf("remove key %s: %w", id, err)
	}
	return nil
}
