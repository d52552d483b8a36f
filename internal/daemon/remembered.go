package daemon

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/recent"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// remembered is a registry that goes on finding sandboxes while its store is away, from what this replica saw last. Where a
// sandbox is changes only by a resume, which needs the store, so what is remembered leads to the right node or, when the sandbox
// has ended, to one that says so. Nothing else of it outlives the store's absence.
type remembered struct {
	hades.Registry
	sandboxes *recent.Cache[string, tartarus.Sandbox]
	away      atomic.Int64 // when the store last did not answer, in Unix nanoseconds
}

// shunTime is how long a store that did not answer is not asked about what is remembered: one that hangs would hold up every request.
const shunTime = 3 * time.Second

// memoryTime is how long a store may be away until traffic to running sandboxes ends; rememberedSandboxes bounds the memory, at 1 KB each.
const (
	memoryTime          = 24 * time.Hour
	rememberedSandboxes = 100_000
)

func newRemembered(r hades.Registry) *remembered {
	return &remembered{Registry: r, sandboxes: recent.New[string, tartarus.Sandbox](rememberedSandboxes, memoryTime)}
}

// PutSandbox implements hades.Registry.
func (r *remembered) PutSandbox(ctx context.Context, sb tartarus.Sandbox) (int64, error) {
	rev, err := r.Registry.PutSandbox(ctx, sb)
	if err == nil {
		sb.Revision = rev
		r.note(sb)
	}
	return rev, err
}

// note remembers what can be reached, and forgets what has ended.
func (r *remembered) note(sb tartarus.Sandbox) {
	if sb.Phase.Ended() {
		r.sandboxes.Drop(sb.ID)
		return
	}
	r.sandboxes.Put(sb.ID, sb, time.Now())
}

// Sandbox implements hades.Registry.
func (r *remembered) Sandbox(ctx context.Context, tenant, id string) (tartarus.Sandbox, error) {
	now := time.Now()
	if now.UnixNano()-r.away.Load() < int64(shunTime) {
		if old, ok := r.recall(tenant, id, now); ok {
			return old, nil
		}
	}
	sb, err := r.Registry.Sandbox(ctx, tenant, id)
	switch {
	case err == nil:
		r.note(sb)
	case tartarus.Is(err, tartarus.NotFound):
		if tenant == hades.AnyTenant {
			r.sandboxes.Drop(id)
		}
	case tartarus.Is(err, tartarus.Unavailable):
		r.away.Store(time.Now().UnixNano())
		if old, ok := r.recall(tenant, id, now); ok {
			return old, nil
		}
	}
	return sb, err
}

func (r *remembered) recall(tenant, id string, now time.Time) (tartarus.Sandbox, bool) {
	sb, ok := r.sandboxes.Get(id, now)
	return sb, ok && (tenant == hades.AnyTenant || tenant == sb.Tenant)
}

// rememberedKeys goes on letting in keys that were good a while ago, when their store is away. A key revoked meanwhile works until the store
// is back, or keyMemory is over.
type rememberedKeys struct {
	tenant.Store
	keys *recent.Cache[string, tenant.Key]
	away atomic.Int64
}

// keyMemory is how long a key works without its store; rememberedKeyCount bounds the memory.
const (
	keyMemory          = time.Hour
	rememberedKeyCount = 10_000
)

func newRememberedKeys(s tenant.Store) *rememberedKeys {
	return &rememberedKeys{Store: s, keys: recent.New[string, tenant.Key](rememberedKeyCount, keyMemory)}
}

// KeyByHash implements tenant.Store.
func (r *rememberedKeys) KeyByHash(ctx context.Context, hash string) (tenant.Key, error) {
	now := time.Now()
	if now.UnixNano()-r.away.Load() < int64(shunTime) {
		if k, ok := r.keys.Get(hash, now); ok {
			return k, nil
		}
	}
	k, err := r.Store.KeyByHash(ctx, hash)
	switch {
	case err == nil:
		r.keys.Put(hash, k, now)
	case tartarus.Is(err, tartarus.NotFound):
		r.keys.Drop(hash)
	case tartarus.Is(err, tartarus.Unavailable):
		r.away.Store(time.Now().UnixNano())
		if old, ok := r.keys.Get(hash, now); ok {
			return old, nil
		}
	}
	return k, err
}
