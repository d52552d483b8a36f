package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
)

// Shelf implements shelf.Store.
type Shelf struct{ db *DB }

// Shelf returns the store's small records.
func (db *DB) Shelf() *Shelf { return &Shelf{db} }

// Put implements shelf.Store.
func (s *Shelf) Put(ctx context.Context, name, key string, body []byte, expect int64) (int64, error) {
	if name == "" || key == "" || len(body) == 0 || expect < 0 {
		return 0, tartarus.Errorf(tartarus.Invalid, "a record needs a shelf, a name and a body")
	}
	err := s.db.write(ctx, func(t *txn) error {
		row, found, err := t.conn.one("SELECT revision FROM shelf WHERE shelf = ? AND name = ?", name, key)
		if err != nil {
			t.broken = err
			return err
		}
		current := int64(0)
		if found {
			current = num(row[0])
		}
		if current != expect {
			return tartarus.Errorf(tartarus.Conflict, "record %s of %s is at revision %d, not %d", key, name, current, expect)
		}
		_, err = t.exec(`INSERT INTO shelf (shelf, name, revision, body) VALUES (?1, ?2, ?3, ?4)
			ON CONFLICT (shelf, name) DO UPDATE SET revision = ?3, body = ?4`, name, key, expect+1, body)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("put record: %w", err)
	}
	return expect + 1, nil
}

// Get implements shelf.Store.
func (s *Shelf) Get(ctx context.Context, name, key string) (shelf.Record, error) {
	found, err := s.query(ctx, "shelf = ? AND name = ?", name, key)
	if err != nil {
		return shelf.Record{}, err
	}
	if len(found) == 0 {
		return shelf.Record{}, tartarus.Errorf(tartarus.NotFound, "no record %s in %s", key, name)
	}
	return found[0], nil
}

// List implements shelf.Store.
func (s *Shelf) List(ctx context.Context, name string) ([]shelf.Record, error) {
	return s.query(ctx, "shelf = ? ORDER BY name", name)
}

// Remove implements shelf.Store.
func (s *Shelf) Remove(ctx context.Context, name, key string) error {
	err := s.db.write(ctx, func(t *txn) error {
		_, err := t.exec("DELETE FROM shelf WHERE shelf = ? AND name = ?", name, key)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove record: %w", err)
	}
	return nil
}

func (s *Shelf) query(ctx context.Context, where string, args ...any) ([]shelf.Record, error) {
	out := []shelf.Record{}
	err := s.db.read(ctx, func(c *conn) error {
		return c.query(func(row []driver.Value) (bool, error) {
			out = append(out, shelf.Record{Name: str(row[0]), Revision: num(row[1]), Body: blob(row[2])})
			return true, nil
		}, "SELECT name, revision, body FROM shelf WHERE "+where, args...)
	})
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	return out, nil
}
