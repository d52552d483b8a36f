package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
)

// Journal is a node's durable memory: one opaque record per id.
type Journal struct{ db *DB }

// Journal returns the store's journal.
func (db *DB) Journal() *Journal { return &Journal{db} }

// Put stores a record over the one before. It is on the disk when Put returns nil.
func (j *Journal) Put(ctx context.Context, id string, record []byte) error {
	err := j.db.write(ctx, func(t *txn) error {
		_, err := t.exec("INSERT INTO journal (id, record) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET record = ?2", id, record)
		return err
	})
	if err != nil {
		return fmt.Errorf("put journal record %s: %w", id, err)
	}
	return nil
}

// Delete forgets a record; absent is no error.
func (j *Journal) Delete(ctx context.Context, id string) error {
	err := j.db.write(ctx, func(t *txn) error {
		_, err := t.exec("DELETE FROM journal WHERE id = ?", id)
		return err
	})
	if err != nil {
		return fmt.Errorf("delete journal record %s: %w", id, err)
	}
	return nil
}

// All returns every record by id.
func (j *Journal) All(ctx context.Context) (map[string][]byte, error) {
	all := map[string][]byte{}
	err := j.db.read(ctx, func(c *conn) error {
		return c.queryContext(ctx, func(row []driver.Value) (bool, error) {
			all[str(row[0])] = blob(row[1])
			return true, nil
		}, "SELECT id, record FROM journal")
	})
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	return all, nil
}
