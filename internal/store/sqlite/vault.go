package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Vault implements link.Vault.
type Vault struct{ db *DB }

// Vault returns the store's small named values.
func (db *DB) Vault() *Vault { return &Vault{db} }

// ends is when a value put now is over; 0 is never.
func ends(now time.Time, ttl time.Duration) int64 {
	if ttl <= 0 {
		return 0
	}
	return now.Add(ttl).UnixNano()
}

// Create implements link.Vault.
func (v *Vault) Create(ctx context.Context, name string, value []byte, ttl time.Duration) error {
	now := time.Now()
	err := v.db.write(ctx, func(t *txn) error {
		_, found, err := t.conn.one("SELECT 1 FROM vault WHERE name = ? AND (ends = 0 OR ends > ?)", name, now.UnixNano())
		if err != nil {
			t.broken = err
			return err
		}
		if found {
			return tartarus.Errorf(tartarus.Conflict, "there is a value %s", name)
		}
		return putValue(t, name, value, ends(now, ttl))
	})
	if err != nil {
		return fmt.Errorf("create value %s: %w", name, err)
	}
	return nil
}

// Set implements link.Vault. It takes away what is over, too: there are never many values.
func (v *Vault) Set(ctx context.Context, name string, value []byte, ttl time.Duration) error {
	now := time.Now()
	err := v.db.write(ctx, func(t *txn) error {
		if _, err := t.exec("DELETE FROM vault WHERE ends > 0 AND ends <= ?", now.UnixNano()); err != nil {
			return err
		}
		return putValue(t, name, value, ends(now, ttl))
	})
	if err != nil {
		return fmt.Errorf("set value %s: %w", name, err)
	}
	return nil
}

func putValue(t *txn, name string, value []byte, ends int64) error {
	if value == nil {
		value = []byte{}
	}
	_, err := t.exec("INSERT INTO vault (name, ends, value) VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE SET ends = ?2, value = ?3", name, ends, value)
	return err
}

// Get implements link.Vault.
func (v *Vault) Get(ctx context.Context, name string) ([]byte, error) {
	found, err := v.query(ctx, "name = ?", name)
	if err != nil {
		return nil, err
	}
	value, ok := found[name]
	if !ok {
		return nil, tartarus.Errorf(tartarus.NotFound, "there is no value %s", name)
	}
	return value, nil
}

// List implements link.Vault.
func (v *Vault) List(ctx context.Context, prefix string) (map[string][]byte, error) {
	all, err := v.query(ctx, "name >= ?", prefix)
	for name := range all {
		if !strings.HasPrefix(name, prefix) {
			delete(all, name)
		}
	}
	return all, err
}

func (v *Vault) query(ctx context.Context, where, arg string) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := v.db.read(ctx, func(c *conn) error {
		return c.query(func(row []driver.Value) (bool, error) {
			out[str(row[0])] = append([]byte{}, blob(row[1])...)
			return true, nil
		}, "SELECT name, value FROM vault WHERE "+where+" AND (ends = 0 OR ends > ?)", arg, time.Now().UnixNano())
	})
	if err != nil {
		return nil, fmt.Errorf("read values: %w", err)
	}
	return out, nil
}
