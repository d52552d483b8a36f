package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"sync/atomic"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

// Policies implements themis.Store.
type Policies struct{ db *DB }

// Policies returns the store's policy documents.
func (db *DB) Policies() *Policies { return &Policies{db} }

// policyRevision is the newest row of the policies: every change adds one and none is ever taken away. It is kept
// in memory because every admission asks for it.
type policyRevision struct{ n atomic.Int64 }

func (r *policyRevision) load(c *conn) error {
	n, err := c.number("SELECT max(n) FROM policies")
	r.n.Store(n)
	return err
}

// Put implements themis.Store.
func (p *Policies) Put(ctx context.Context, name string, body []byte, author string, expect int64) (themis.Document, error) {
	if name == "" || len(body) == 0 {
		return themis.Document{}, tartarus.Errorf(tartarus.Invalid, "policy %q needs a name and a body", name)
	}
	return p.add(ctx, themis.Document{Name: name, Body: body, Author: author}, expect)
}

// Remove implements themis.Store.
func (p *Policies) Remove(ctx context.Context, name, author string, expect int64) error {
	_, err := p.add(ctx, themis.Document{Name: name, Author: author, Removed: true}, expect)
	return err
}

func (p *Policies) add(ctx context.Context, d themis.Document, expect int64) (themis.Document, error) {
	err := p.db.write(ctx, func(t *txn) error {
		row, found, err := t.conn.one("SELECT version, removed FROM policies WHERE name = ? ORDER BY version DESC LIMIT 1", d.Name)
		if err != nil {
			t.broken = err
			return fmt.Errorf("read policy %s: %w", d.Name, err)
		}
		last, current := int64(0), int64(0)
		if found {
			if last = num(row[0]); num(row[1]) == 0 {
				current = last
			}
		}
		if current == 0 && d.Removed {
			return noPolicy(d.Name)
		}
		if current != expect {
			return tartarus.Errorf(tartarus.Conflict, "policy %s is at version %d, not %d", d.Name, current, expect)
		}
		d.Version, d.CreatedAt = last+1, t.now.UTC().Round(0)
		if _, err := t.exec("INSERT INTO policies (name, version, author, created_at, removed, body) VALUES (?, ?, ?, ?, ?, ?)",
			d.Name, d.Version, d.Author, d.CreatedAt, d.Removed, d.Body); err != nil {
			return fmt.Errorf("store policy %s: %w", d.Name, err)
		}
		n := t.conn.last
		t.after = append(t.after, func() { p.db.policy.n.Store(n) })
		return nil
	})
	if err != nil {
		return themis.Document{}, err
	}
	return d, nil
}

func noPolicy(name string) error { return tartarus.Errorf(tartarus.NotFound, "no policy %s", name) }

// Get implements themis.Store.
func (p *Policies) Get(ctx context.Context, name string, version int64) (themis.Document, error) {
	q, args := "name = ? ORDER BY version DESC LIMIT 1", []any{name}
	if version != 0 {
		q, args = "name = ? AND version = ?", []any{name, version}
	}
	docs, err := p.query(ctx, q, args...)
	switch {
	case err != nil:
		return themis.Document{}, err
	case len(docs) == 0 || docs[0].Removed:
		return themis.Document{}, noPolicy(name)
	}
	return docs[0], nil
}

// List implements themis.Store.
func (p *Policies) List(ctx context.Context) ([]themis.Document, error) {
	return p.query(ctx, "version = (SELECT max(version) FROM policies o WHERE o.name = policies.name) AND removed = 0 ORDER BY name")
}

// History implements themis.Store.
func (p *Policies) History(ctx context.Context, name string) ([]themis.Document, error) {
	docs, err := p.query(ctx, "name = ? ORDER BY version DESC", name)
	if err == nil && len(docs) == 0 {
		err = noPolicy(name)
	}
	return docs, err
}

// Revision implements themis.Store.
func (p *Policies) Revision(context.Context) (int64, error) { return p.db.policy.n.Load(), nil }

func (p *Policies) query(ctx context.Context, where string, args ...any) ([]themis.Document, error) {
	docs := []themis.Document{}
	err := p.db.read(ctx, func(c *conn) error {
		return c.query(func(row []driver.Value) (bool, error) {
			docs = append(docs, themis.Document{Name: str(row[0]), Version: num(row[1]), Author: str(row[2]),
				CreatedAt: moment(row[3]), Removed: num(row[4]) != 0, Body: blob(row[5])})
			return true, nil
		}, "SELECT name, version, author, created_at, removed, body FROM policies WHERE "+where, args...)
	})
	if err != nil {
		return nil, fmt.Errorf("read policies: %w", err)
	}
	return docs, nil
}
