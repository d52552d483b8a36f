// Package recent remembers answers for a short time, so that a hot path need not ask a store for each request. Its memory is
// bounded whatever is asked, and nothing older than its time is ever returned.
package recent

import (
	"sync"
	"time"
)

// Cache maps keys to values that were true a short while ago. All methods may be called concurrently.
type Cache[K comparable, V any] struct {
	half int
	ttl  time.Duration

	mu sync.Mutex
	// Two generations stand in for a list by age: what is used moves to young, and when that is full, old is let go as a whole.
	young, old map[K]entry[V]
}

type entry[V any] struct {
	value V
	ends  time.Time
}

// New makes a cache of at most size values, each of which is good for ttl.
func New[K comparable, V any](size int, ttl time.Duration) *Cache[K, V] {
	return &Cache[K, V]{half: max(size/2, 1), ttl: ttl, young: map[K]entry[V]{}}
}

// Get returns what was put under k, if it is still good at now.
func (c *Cache[K, V]) Get(k K, now time.Time) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.young[k]
	if !ok {
		if e, ok = c.old[k]; ok {
			delete(c.old, k)
			c.insert(k, e)
		}
	}
	if !ok || !now.Before(e.ends) {
		var zero V
		return zero, false
	}
	return e.value, true
}

// Put remembers v under k from now on.
func (c *Cache[K, V]) Put(k K, v V, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.old, k)
	c.insert(k, entry[V]{v, now.Add(c.ttl)})
}

func (c *Cache[K, V]) insert(k K, e entry[V]) {
	if _, there := c.young[k]; !there && len(c.young) >= c.half {
		c.young, c.old = make(map[K]entry[V], c.half), c.young
	}
	c.young[k] = e
}

// Drop forgets k.
func (c *Cache[K, V]) Drop(k K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.young, k)
	delete(c.old, k)
}

// Clear forgets everything.
func (c *Cache[K, V]) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.young, c.old = map[K]entry[V]{}, nil
}

// Len is how many values are held, good or not.
func (c *Cache[K, V]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.young) + len(c.old)
}
