package users_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/users"
)

func TestNoUserIsLentTwice(t *testing.T) {
	r := users.Range{Dir: filepath.Join(t.TempDir(), "claims"), First: 200_000, Count: 20}
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	owner := t.TempDir()
	var mu sync.Mutex
	var wg sync.WaitGroup
	seen := map[int]bool{}
	for range r.Count {
		wg.Go(func() {
			uid, err := r.Claim(owner)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || seen[uid] || uid < r.First || uid >= r.First+r.Count {
				t.Errorf("user %d, seen %t, %v", uid, seen[uid], err)
			}
			seen[uid] = true
		})
	}
	wg.Wait()
	if _, err := r.Claim(owner); !tartarus.Is(err, tartarus.Unavailable) {
		t.Errorf("one more than there are: %v", err)
	}
	if err := r.Release(200_003, "/somebody/else"); err != nil {
		t.Error(err)
	}
	if _, err := r.Claim(owner); !tartarus.Is(err, tartarus.Unavailable) {
		t.Errorf("another's claim was released: %v", err)
	}
	for range 2 {
		if err := r.Release(200_003, owner); err != nil {
			t.Error(err)
		}
	}
	if uid, err := r.Claim(owner); uid != 200_003 || err != nil {
		t.Errorf("after a release: %d, %v", uid, err)
	}
}

func TestClaimOfAnOwnerThatIsGoneCountsForNothing(t *testing.T) {
	r := users.Range{Dir: t.TempDir(), First: 5000, Count: 1}
	gone := filepath.Join(t.TempDir(), "machine")
	if err := os.Mkdir(gone, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Claim(gone); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Claim(t.TempDir()); !tartarus.Is(err, tartarus.Unavailable) {
		t.Errorf("claimed twice: %v", err)
	}
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Claim(t.TempDir()); err != nil {
		t.Error(err)
	}
}

func TestRangesWithRootAreRefused(t *testing.T) {
	for _, r := range []users.Range{
		{Dir: "/x", First: 0, Count: 10}, {Dir: "/x", First: 999, Count: 1}, {Dir: "x", First: 5000, Count: 1},
		{Dir: "/x", First: 5000}, {Dir: "/x", First: 1<<32 - 2, Count: 2},
	} {
		if err := r.Validate(); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
