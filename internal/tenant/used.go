package tenant

import (
	"context"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
)

// Usage remembers when keys were last used. It is written now and then, beside the keys and not into them: a write for each request would
// cost more than the request, and one that comes late must not undo a change of the key.
type Usage struct {
	store shelf.Store

	mu   sync.Mutex
	last map[string]time.Time
}

const usageShelf = "keys.used"

// NewUsage makes a memory of uses.
func NewUsage(store shelf.Store) *Usage { return &Usage{store: store, last: map[string]time.Time{}} }

// Used notes that a key was used.
func (u *Usage) Used(key string, now time.Time) {
	u.mu.Lock()
	u.last[key] = now
	u.mu.Unlock()
}

// Flush writes what was noted. What cannot be written is noted still.
func (u *Usage) Flush(ctx context.Context) error {
	u.mu.Lock()
	noted := u.last
	u.last = map[string]time.Time{}
	u.mu.Unlock()
	var failed error
	for key, at := range noted {
		if failed == nil {
			failed = u.write(ctx, key, at)
		}
		if failed != nil {
			u.mu.Lock()
			if u.last[key].Before(at) {
				u.last[key] = at
			}
			u.mu.Unlock()
		}
	}
	return failed
}

func (u *Usage) write(ctx context.Context, key string, at time.Time) error {
	for range changeTries {
		rec, err := u.store.Get(ctx, usageShelf, key)
		if err != nil && !tartarus.Is(err, tartarus.NotFound) {
			return err
		}
		if err == nil && !parse(rec.Body).Before(at) {
			return nil
		}
		_, err = u.store.Put(ctx, usageShelf, key, []byte(at.UTC().Format(time.RFC3339Nano)), rec.Revision)
		if !tartarus.Is(err, tartarus.Conflict) {
			return err
		}
	}
	return nil // many replicas write it at once: any of theirs will do
}

func parse(body []byte) time.Time {
	t, err := time.Parse(time.RFC3339Nano, string(body))
	if err != nil {
		return time.Time{}
	}
	return t
}

// Fill sets LastUsed of keys.
func (u *Usage) Fill(ctx context.Context, keys []Key) error {
	found, err := u.store.List(ctx, usageShelf)
	if err != nil {
		return err
	}
	at := make(map[string]time.Time, len(found))
	for _, rec := range found {
		at[rec.Name] = parse(rec.Body)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range keys {
		keys[i].LastUsed = at[keys[i].ID]
		if mine := u.last[keys[i].ID]; mine.After(keys[i].LastUsed) {
			keys[i].LastUsed = mine
		}
	}
	return nil
}

// Forget drops what is known of a key.
func (u *Usage) Forget(ctx context.Context, key string) error {
	return u.store.Remove(ctx, usageShelf, key)
}
