package redis

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

// Policies implements themis.Store.
type Policies struct{ db *DB }

// Policies returns the store's policy documents.
func (db *DB) Policies() *Policies { return &Policies{db} }

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
	text, err := json.Marshal(d)
	remove := 0
	if d.Removed {
		remove = 1
	}
	var v answer
	if err == nil {
		v, err = p.db.run(ctx, putPolicyScript, p.db.tag("p"), d.Name, expect, text, remove)
	}
	if err != nil {
		return themis.Document{}, fmt.Errorf("put policy %s: %w", d.Name, err)
	}
	switch a := v; a.text(0) {
	case "ok":
		d.Version, d.CreatedAt = a.number(1), moment(a.text(2))
		return d, nil
	case "absent":
		return themis.Document{}, noPolicy(d.Name)
	default:
		return themis.Document{}, tartarus.Errorf(tartarus.Conflict, "policy %s is at version %s, not %d", d.Name, a.text(1), expect)
	}
}

func noPolicy(name string) error { return tartarus.Errorf(tartarus.NotFound, "no policy %s", name) }

// decodePolicy reads a document as it is stored: when it was made, and the rest as JSON; its version is its name there.
func decodePolicy(version, text string) (themis.Document, error) {
	at, body, _ := strings.Cut(text, "|")
	var d themis.Document
	n, err := strconv.ParseInt(version, 10, 64)
	if err == nil {
		err = json.Unmarshal([]byte(body), &d)
	}
	if err != nil {
		return d, tartarus.Errorf(tartarus.Corrupt, "decode policy: %w", err)
	}
	d.Version, d.CreatedAt = n, moment(at)
	return d, nil
}

// Get implements themis.Store.
func (p *Policies) Get(ctx context.Context, name string, version int64) (themis.Document, error) {
	v, err := p.db.run(ctx, getPolicyScript, p.db.tag("p"), name, version)
	if err != nil {
		return themis.Document{}, fmt.Errorf("read policy %s: %w", name, err)
	}
	a := v
	if len(a) == 0 {
		return themis.Document{}, noPolicy(name)
	}
	d, err := decodePolicy(a.text(0), a.text(1))
	if err == nil && d.Removed {
		return themis.Document{}, noPolicy(name)
	}
	return d, err
}

// List implements themis.Store.
func (p *Policies) List(ctx context.Context) ([]themis.Document, error) {
	v, err := p.db.run(ctx, listPoliciesScript, p.db.tag("p"))
	if err != nil {
		return nil, fmt.Errorf("list policies: %w", err)
	}
	docs, err := decodePolicies(v.pairs())
	slices.SortFunc(docs, func(a, b themis.Document) int { return strings.Compare(a.Name, b.Name) })
	return docs, err
}

// History implements themis.Store.
func (p *Policies) History(ctx context.Context, name string) ([]themis.Document, error) {
	prefix := p.db.tag("p")
	var found map[string]string
	err := p.db.at(ctx, prefix, func(ctx context.Context, c *goredis.Client) (err error) {
		found, err = c.HGetAll(ctx, prefix+"doc:"+name).Result()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read policy %s: %w", name, err)
	}
	if len(found) == 0 {
		return nil, noPolicy(name)
	}
	pairs := make([][2]string, 0, len(found))
	for version, text := range found {
		pairs = append(pairs, [2]string{version, text})
	}
	docs, err := decodePolicies(pairs)
	slices.SortFunc(docs, func(a, b themis.Document) int { return int(b.Version - a.Version) })
	return docs, err
}

func decodePolicies(pairs [][2]string) ([]themis.Document, error) {
	docs := make([]themis.Document, 0, len(pairs))
	for _, p := range pairs {
		d, err := decodePolicy(p[0], p[1])
		if err != nil {
			return nil, err
		}
		docs = append(docs, d)
	}
	return docs, nil
}

// Revision implements themis.Store.
func (p *Policies) Revision(ctx context.Context) (int64, error) {
	prefix := p.db.tag("p")
	var n int64
	err := p.db.at(ctx, prefix, func(ctx context.Context, c *goredis.Client) (err error) {
		n, err = c.Get(ctx, prefix+"revision").Int64()
		return err
	})
	if err != nil && err != goredis.Nil {
		return 0, fmt.Errorf("read policy revision: %w", err)
	}
	return n, nil
}
