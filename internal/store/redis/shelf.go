package redis

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
)

// Shelf implements shelf.Store. A shelf is one hash; it may lie anywhere in a cluster.
type Shelf struct{ db *DB }

// Shelf returns the store's small records.
func (db *DB) Shelf() *Shelf { return &Shelf{db} }

func (s *Shelf) prefix(name string) string { return s.db.tag("s:" + name) }

// Put implements shelf.Store.
func (s *Shelf) Put(ctx context.Context, name, key string, body []byte, expect int64) (int64, error) {
	if name == "" || key == "" || len(body) == 0 || expect < 0 {
		return 0, tartarus.Errorf(tartarus.Invalid, "a record needs a shelf, a name and a body")
	}
	v, err := s.db.run(ctx, putRecordScript, s.prefix(name), key, body, expect)
	if err != nil {
		return 0, fmt.Errorf("put record: %w", err)
	}
	if v.text(0) != "ok" {
		return 0, fmt.Errorf("put record: %w", tartarus.Errorf(tartarus.Conflict, "record %s of %s is at revision %s, not %d", key, name, v.text(1), expect))
	}
	return expect + 1, nil
}

// Get implements shelf.Store.
func (s *Shelf) Get(ctx context.Context, name, key string) (shelf.Record, error) {
	text, err := s.db.field(ctx, s.prefix(name), "records", key)
	switch {
	case err == goredis.Nil:
		return shelf.Record{}, tartarus.Errorf(tartarus.NotFound, "no record %s in %s", key, name)
	case err != nil:
		return shelf.Record{}, fmt.Errorf("read record: %w", err)
	}
	return decodeRecord(key, text)
}

func decodeRecord(key, text string) (shelf.Record, error) {
	digits, body, ok := strings.Cut(text, "|")
	revision, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil {
		return shelf.Record{}, tartarus.Errorf(tartarus.Corrupt, "record %s has no revision", key)
	}
	return shelf.Record{Name: key, Revision: revision, Body: []byte(body)}, nil
}

// List implements shelf.Store.
func (s *Shelf) List(ctx context.Context, name string) ([]shelf.Record, error) {
	prefix := s.prefix(name)
	var found map[string]string
	err := s.db.at(ctx, prefix, func(ctx context.Context, c *goredis.Client) (err error) {
		found, err = c.HGetAll(ctx, prefix+"records").Result()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	out := make([]shelf.Record, 0, len(found))
	for key, text := range found {
		r, err := decodeRecord(key, text)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b shelf.Record) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Remove implements shelf.Store.
func (s *Shelf) Remove(ctx context.Context, name, key string) error {
	prefix := s.prefix(name)
	err := s.db.at(ctx, prefix, func(ctx context.Context, c *goredis.Client) error {
		return c.HDel(ctx, prefix+"records", key).Err()
	})
	if err != nil {
		return fmt.Errorf("remove record: %w", err)
	}
	return nil
}
