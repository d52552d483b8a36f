package recent_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tartarus-sandbox/tartarus/internal/recent"
)

func TestExpires(t *testing.T) {
	c := recent.New[string, int](10, time.Second)
	now := time.Unix(1000, 0)
	c.Put("a", 1, now)
	if v, ok := c.Get("a", now.Add(999*time.Millisecond)); !ok || v != 1 {
		t.Fatalf("young value: got %d %v", v, ok)
	}
	if _, ok := c.Get("a", now.Add(time.Second)); ok {
		t.Fatal("a value outlived its time")
	}
	c.Put("a", 2, now)
	c.Drop("a")
	if _, ok := c.Get("a", now); ok {
		t.Fatal("a dropped value came back")
	}
}

// Against a plain map: never more than size values, never a value other than the last one put, and what was put last is there.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(2, 12).Draw(t, "size")
		c := recent.New[int, int](size, time.Minute)
		model := map[int]int{}
		now := time.Unix(0, 0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			k := rapid.IntRange(0, 20).Draw(t, "key")
			switch rapid.IntRange(0, 4).Draw(t, "op") {
			case 0, 1:
				v := rapid.Int().Draw(t, "value")
				c.Put(k, v, now)
				model[k] = v
				if got, ok := c.Get(k, now); !ok || got != v {
					t.Fatalf("just put %d: got %d %v", v, got, ok)
				}
			case 2:
				c.Drop(k)
				delete(model, k)
			default:
				if got, ok := c.Get(k, now); ok && got != model[k] {
					t.Fatalf("key %d: got %d, want %d", k, got, model[k])
				} else if _, there := model[k]; ok && !there {
					t.Fatalf("key %d came back", k)
				}
			}
			if c.Len() > size {
				t.Fatalf("%d values in a cache of %d", c.Len(), size)
			}
		}
	})
}
