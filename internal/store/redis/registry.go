package redis

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// Registry implements hades.Registry.
type Registry struct{ db *DB }

// Registry returns the store's registry.
func (db *DB) Registry() *Registry { return &Registry{db} }

// shard is the prefix of a sandbox's keys.
func (r *Registry) shard(ctx context.Context, id string) (string, error) {
	n, err := r.db.registryShards(ctx)
	if err != nil {
		return "", err
	}
	h := fnv.New32a()
	h.Write([]byte(id))
	return r.db.shardTag(int(h.Sum32() % uint32(n))), nil
}

func (db *DB) shardTag(i int) string { return db.tag("r" + strconv.Itoa(i)) }

// PutSandbox implements hades.Registry.
func (r *Registry) PutSandbox(ctx context.Context, sb tartarus.Sandbox) (int64, error) {
	if err := hades.CheckSandbox(sb); err != nil {
		return 0, err
	}
	expect := sb.Revision
	sb.Revision++
	body, err := packSandbox(sb)
	if err != nil {
		return 0, err
	}
	shard, err := r.shard(ctx, sb.ID)
	var v answer
	if err == nil {
		v, err = r.db.run(ctx, putSandboxScript, shard, sb.ID, expect, filed(sb), body)
	}
	if err != nil {
		return 0, fmt.Errorf("put sandbox %s: %w", sb.ID, err)
	}
	if a := v; a.text(0) != "ok" {
		return 0, tartarus.Errorf(tartarus.Conflict, "put sandbox %s: it is at revision %s, not %d", sb.ID, a.text(1), expect)
	}
	return sb.Revision, nil
}

// member is a sandbox's place in the index sets: sorted as bytes, they are in the order of listings.
func member(t time.Time, id string) string { return place(t) + id }

const placeLen = 16

func place(t time.Time) string {
	n := int64(0)
	if !t.IsZero() {
		n = t.UnixNano()
	}
	// Moved by half the range, negative times come first.
	return fmt.Sprintf("%0*x", placeLen, uint64(n)^(1<<63))
}

// cursor reads a member back.
func cursor(member string) hades.Cursor {
	if len(member) < placeLen {
		return hades.Cursor{}
	}
	var b [8]byte
	if _, err := hex.Decode(b[:], []byte(member[:placeLen])); err != nil {
		return hades.Cursor{}
	}
	n := uint64(0)
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	c := hades.Cursor{ID: member[placeLen:]}
	if at := int64(n ^ (1 << 63)); at != 0 {
		c.StartedAt = time.Unix(0, at).UTC()
	}
	return c
}

// filed is where a sandbox stands in the index sets: its place, its phase, and the sets, between zero bytes, which none of them holds.
func filed(sb tartarus.Sandbox) string {
	return strings.Join(append([]string{place(hades.ListedAt(sb)), string(sb.Phase)}, sets(sb)...), "\x00")
}

// sets are the index sets a sandbox is in: one for each way a listing may walk. Each has one for every phase.
func sets(sb tartarus.Sandbox) []string {
	names := []string{everySet(), tenantSet(sb.Tenant)}
	if sb.Node != "" {
		names = append(names, nodeSet(sb.Node))
	}
	for k, v := range sb.Metadata {
		names = append(names, labelSet(sb.Tenant, k, v))
	}
	slices.Sort(names) // the same sandbox is always filed in the same words
	return names
}

func everySet() string               { return "a:" }
func tenantSet(tenant string) string { return "t:" + noZero(tenant) + ":" }
func nodeSet(node string) string     { return "n:" + noZero(node) + ":" }
func labelSet(tenant, key, value string) string {
	return fmt.Sprintf("l:%d:%s:%d:%s:%s:", len(tenant), noZero(tenant), len(key), noZero(key), noZero(value))
}

// noZero writes a text without zero bytes, and different texts differently.
func noZero(s string) string {
	if !strings.ContainsAny(s, "\x00\x01") {
		return s
	}
	return zeros.Replace(s)
}

var zeros = strings.NewReplacer("\x00", "\x01\x02", "\x01", "\x01\x01")

// Sandbox implements hades.Registry.
func (r *Registry) Sandbox(ctx context.Context, tenant, id string) (tartarus.Sandbox, error) {
	shard, err := r.shard(ctx, id)
	var body string
	if err == nil {
		body, err = r.db.field(ctx, shard, "sbs", id)
	}
	if err != nil && err != goredis.Nil {
		return tartarus.Sandbox{}, fmt.Errorf("read sandbox %s: %w", id, err)
	}
	var sb tartarus.Sandbox
	if err == nil {
		if sb, err = unpackSandbox(body); err != nil {
			return tartarus.Sandbox{}, err
		}
	}
	if sb.ID == "" || tenant != sb.Tenant && tenant != hades.AnyTenant {
		return tartarus.Sandbox{}, tartarus.Errorf(tartarus.NotFound, "no sandbox %s", id)
	}
	return sb, nil
}

// RemoveSandbox implements hades.Registry.
func (r *Registry) RemoveSandbox(ctx context.Context, id string) error {
	shard, err := r.shard(ctx, id)
	if err == nil {
		_, err = r.db.run(ctx, removeSandboxScript, shard, id)
	}
	if err != nil {
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	return nil
}

// PutNode implements hades.Registry.
func (r *Registry) PutNode(ctx context.Context, n hades.Node, ttl time.Duration) error {
	if n.Name == "" || ttl <= 0 || ttl > math.MaxInt64/2 {
		return tartarus.Errorf(tartarus.Invalid, "node %q needs a name and a lease, not %s", n.Name, ttl)
	}
	n.LeaseEnds = time.Time{}
	body, err := json.Marshal(n)
	if err == nil {
		_, err = r.db.run(ctx, putNodeScript, r.db.tag("n"), n.Name, body, ttl.Microseconds())
	}
	if err != nil {
		return fmt.Errorf("put node %s: %w", n.Name, err)
	}
	return nil
}

// Nodes implements hades.Registry.
func (r *Registry) Nodes(ctx context.Context) ([]hades.Node, error) {
	prefix := r.db.tag("n")
	var found []string
	err := r.db.at(ctx, prefix, func(ctx context.Context, c *goredis.Client) (err error) {
		found, err = c.HVals(ctx, prefix+"nodes").Result()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read nodes: %w", err)
	}
	nodes := make([]hades.Node, 0, len(found))
	for _, text := range found {
		ends, body, _ := strings.Cut(text, "|")
		var n hades.Node
		if err := json.Unmarshal([]byte(body), &n); err != nil {
			return nil, tartarus.Errorf(tartarus.Corrupt, "decode node: %w", err)
		}
		n.LeaseEnds = moment(ends)
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b hades.Node) int { return strings.Compare(a.Name, b.Name) })
	return nodes, nil
}

// RemoveNode implements hades.Registry.
func (r *Registry) RemoveNode(ctx context.Context, name string) error {
	prefix := r.db.tag("n")
	err := r.db.at(ctx, prefix, func(ctx context.Context, c *goredis.Client) error {
		return c.HDel(ctx, prefix+"nodes", name).Err()
	})
	if err != nil {
		return fmt.Errorf("remove node %s: %w", name, err)
	}
	return nil
}
