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

// journalRows tells the row of each id. The rows are few, one per sandbox of the node, and an index of
// random ids would make a page of the file dirty with every change: this keeps them side by side. It belongs to the committer.
type journalRows struct {
	rows map[string]int64
	next int64
}

func (j *journalRows) load(c *conn) error {
	j.rows, j.next = map[string]int64{}, 1
	return c.query(func(row []driver.Value) (bool, error) {
		n := num(row[0])
		j.rows[str(row[1])], j.next = n, max(j.next, n+1)
		return true, nil
	}, "SELECT n, id FROM journal")
}

// Put stores a record over the one before. It is on the disk when Put returns nil.
func (j *Journal) Put(ctx context.Context, id string, record []byte) error {
	err := j.db.write(ctx, func(t *txn) error { return t.putJournal(id, record) })
	if err != nil {
		return fmt.Errorf("put journal record %s: %w", id, err)
	}
	return nil
}

func (t *txn) putJournal(id string, record []byte) error {
	if n, ok := t.journal.rows[id]; ok {
		_, err := t.exec("UPDATE journal SET record = ? WHERE n = ?", record, n)
		return err
	}
	n := t.journal.next
	_, err := t.exec("INSERT INTO journal (n, id, record) VALUES (?, ?, ?)", n, id, record)
	if err == nil {
		t.journal.rows[id] = n
		t.journal.next++
	}
	return err
}

// Delete forgets a record; absent is no error.
func (j *Journal) Delete(ctx context.Context, id string) error {
	err := j.db.write(ctx, func(t *txn) error {
		n, ok := t.journal.rows[id]
		if !ok {
			return nil
		}
		_, err := t.exec("DELETE FROM journal WHERE n = ?", n)
		delete(t.journal.rows, id)
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
