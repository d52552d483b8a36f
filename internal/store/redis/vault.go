package redis

import (
	"context"
	"fmt"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tartarus-sandbox/tartarus"
)

// Vault implements link.Vault.
type Vault struct{ db *DB }

// Vault returns the store's small named values.
func (db *DB) Vault() *Vault { return &Vault{db} }

// Create implements link.Vault.
func (v *Vault) Create(ctx context.Context, name string, value []byte, ttl time.Duration) error {
	return v.put(ctx, "create", name, value, ttl)
}

// Set implements link.Vault.
func (v *Vault) Set(ctx context.Context, name string, value []byte, ttl time.Duration) error {
	return v.put(ctx, "set", name, value, ttl)
}

func (v *Vault) put(ctx context.Context, how, name string, value []byte, ttl time.Duration) error {
	if value == nil {
		value = []byte{}
	}
	a, err := v.db.run(ctx, putValueScript, v.db.tag("v"), how, name, value, max(0, ttl.Milliseconds()))
	if err != nil {
		return fmt.Errorf("%s value %s: %w", how, name, err)
	}
	if a.text(0) != "ok" {
		return tartarus.Errorf(tartarus.Conflict, "%s value %s: there is one", how, name)
	}
	return nil
}

// Get implements link.Vault.
func (v *Vault) Get(ctx context.Context, name string) ([]byte, error) {
	prefix := v.db.tag("v")
	var value []byte
	err := v.db.at(ctx, prefix, func(ctx context.Context, c *goredis.Client) (err error) {
		value, err = c.Get(ctx, prefix+"value:"+name).Bytes()
		return err
	})
	if err == goredis.Nil {
		return nil, tartarus.Errorf(tartarus.NotFound, "there is no value %s", name)
	}
	if err != nil {
		return nil, fmt.Errorf("read value %s: %w", name, err)
	}
	return value, nil
}

// List implements link.Vault. The names stand in a set of their own, because walking all keys of a shared server is not ours to do; a name whose
// value is over leaves the set when it is seen.
func (v *Vault) List(ctx context.Context, prefix string) (map[string][]byte, error) {
	a, err := v.db.run(ctx, listValuesScript, v.db.tag("v"), prefix)
	if err != nil {
		return nil, fmt.Errorf("list values: %w", err)
	}
	out := map[string][]byte{}
	for i := 0; i+1 < len(a); i += 2 {
		out[a.text(i)] = []byte(a.text(i + 1))
	}
	return out, nil
}
