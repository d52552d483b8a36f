package snapshot_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/store/dir"
)

// pile merges by putting the layers' contents behind each other.
func pile(_ context.Context, runtime string, chain []snapshot.Layer, to string) error {
	if runtime != "piling" {
		return errors.New("another runtime")
	}
	var all []byte
	for _, l := range chain {
		b, err := os.ReadFile(filepath.Join(l.Dir, "memory"))
		if err != nil {
			return err
		}
		all = append(all, b...)
	}
	return os.WriteFile(filepath.Join(to, "memory"), all, 0o600)
}

type chainRig struct {
	*testing.T
	cfg   snapshot.Config
	store *snapshot.Store
}

func newChains(t *testing.T, change func(*snapshot.Config)) *chainRig {
	r := &chainRig{T: t, cfg: snapshot.Config{Dir: t.TempDir(), Node: "n", Merge: pile}}
	if change != nil {
		change(&r.cfg)
	}
	r.open()
	return r
}

// open opens the folder as a later process would.
func (r *chainRig) open() {
	r.Helper()
	var err error
	if r.store, err = snapshot.New(r.cfg); err != nil {
		r.Fatal(err)
	}
}

func (r *chainRig) make(id, parent, content string) {
	r.Helper()
	m := snapshot.Meta{ID: id, Kind: snapshot.Sandbox, Tenant: "t", Runtime: "piling", Parent: parent}
	if _, err := r.store.Create(r.Context(), m, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "memory"), []byte(content), 0o600)
	}); err != nil {
		r.Fatal(err)
	}
}

func (r *chainRig) remove(ids ...string) {
	r.Helper()
	for _, id := range ids {
		if err := r.store.Remove(r.Context(), id); err != nil {
			r.Fatal(err)
		}
	}
}

// here says which snapshots have a folder.
func (r *chainRig) here() string {
	r.Helper()
	entries, err := os.ReadDir(r.cfg.Dir)
	if err != nil {
		r.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if e.Name() != "tmp" {
			out = append(out, e.Name())
		}
	}
	return strings.Join(out, " ")
}

func (r *chainRig) is(what, got, want string) {
	r.Helper()
	if got != want {
		r.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// chain is the ids of a chain, the whole one first.
func (r *chainRig) chain(id string) string {
	r.Helper()
	layers, release, err := r.store.Chain(id)
	if err != nil {
		r.Fatal(err)
	}
	defer release()
	var out []string
	for _, l := range layers {
		out = append(out, l.ID)
	}
	return strings.Join(out, " ")
}

// TestChainStaysTogether holds that what another snapshot builds on stays though it was removed, over a restart too, and goes with the last that needs it.
func TestChainStaysTogether(t *testing.T) {
	r := newChains(t, nil)
	r.make("aa", "", "1")
	r.make("bb", "aa", "2")
	r.remove("aa")
	r.make("cc", "bb", "3")
	r.remove("bb")
	r.is("in use", r.here(), "aa bb cc")
	r.is("chain", r.chain("cc"), "aa bb cc")
	if _, err := r.store.Open("aa"); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("a removed one can be opened: %v", err)
	}
	r.open()
	if err := r.store.Keep(t.Context(), snapshot.Sandbox, map[string]bool{"cc": true}); err != nil {
		t.Fatal(err)
	}
	r.is("after a restart", r.here(), "aa bb cc")
	if n := r.store.Layers("cc"); n != 3 {
		t.Errorf("%d layers", n)
	}
	m := snapshot.Meta{ID: "dd", Kind: snapshot.Sandbox, Runtime: "piling", Parent: "gone"}
	if _, err := r.store.Create(t.Context(), m, func(string) error { return nil }); !tartarus.Is(err, tartarus.Conflict) {
		t.Errorf("changes to what is not here: %v", err)
	}
	r.remove("cc")
	r.is("at the end", r.here(), "")
}

// TestFlatten makes a chain one whole snapshot under the same id, unless somebody reads it.
func TestFlatten(t *testing.T) {
	r := newChains(t, nil)
	r.make("aa", "", "1")
	r.make("bb", "aa", "2")
	r.make("cc", "bb", "3")
	r.remove("aa", "bb")
	_, release, err := r.store.Hold("cc")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Flatten(t.Context(), "cc"); !tartarus.Is(err, tartarus.Unavailable) {
		t.Errorf("while it is read: %v", err)
	}
	r.is("while it is read", r.chain("cc"), "aa bb cc")
	release()
	if err := r.store.Flatten(t.Context(), "cc"); err != nil {
		t.Fatal(err)
	}
	r.is("whole", r.here(), "cc")
	r.is("chain", r.chain("cc"), "cc")
	for range 2 { // the second time in a later process
		snap, err := r.store.Open("cc")
		if err != nil || snap.Parent != "" || snap.Size() != 3 {
			t.Fatalf("%+v, %v", snap.Manifest, err)
		}
		b, err := os.ReadFile(filepath.Join(snap.Dir(), "memory"))
		if err != nil || string(b) != "123" {
			t.Errorf("holds %q, %v", b, err)
		}
		if err := r.store.Flatten(t.Context(), "cc"); err != nil {
			t.Error(err)
		}
		r.open()
	}
	if left, err := os.ReadDir(filepath.Join(r.cfg.Dir, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestFlattenAtOnce has several ask for it at the same time: one does it, and all are content.
func TestFlattenAtOnce(t *testing.T) {
	r := newChains(t, nil)
	r.make("aa", "", "1")
	r.make("bb", "aa", "2")
	r.remove("aa")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := r.store.Flatten(context.Background(), "bb"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r.is("whole", r.here(), "bb")
}

// TestFlattenThatFails leaves the chain as it was.
func TestFlattenThatFails(t *testing.T) {
	full := errors.New("disk full")
	r := newChains(t, func(c *snapshot.Config) {
		c.Merge = func(context.Context, string, []snapshot.Layer, string) error { return full }
	})
	r.make("aa", "", "1")
	r.make("bb", "aa", "2")
	r.remove("aa")
	if err := r.store.Flatten(t.Context(), "bb"); !errors.Is(err, full) {
		t.Error(err)
	}
	r.is("chain", r.chain("bb"), "aa bb")
	if left, err := os.ReadDir(filepath.Join(r.cfg.Dir, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	r.cfg.Merge = nil
	r.open()
	if err := r.store.Flatten(t.Context(), "bb"); !tartarus.Is(err, tartarus.Unsupported) {
		t.Errorf("where nobody can: %v", err)
	}
}

// TestChainThatLacksALayer says which.
func TestChainThatLacksALayer(t *testing.T) {
	r := newChains(t, nil)
	r.make("aa", "", "1")
	r.make("bb", "aa", "2")
	r.make("cc", "bb", "3")
	if err := os.RemoveAll(filepath.Join(r.cfg.Dir, "aa")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, err := r.store.Chain("cc"); !tartarus.Is(err, tartarus.Corrupt) || !strings.Contains(err.Error(), "aa") {
			t.Errorf("got %v", err)
		}
		r.open()
	}
}

// TestCopiesAreWhole holds that nothing in an object store builds on something else.
func TestCopiesAreWhole(t *testing.T) {
	blobs, err := dir.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := newChains(t, func(c *snapshot.Config) { c.Blobs = blobs })
	r.make("aa", "", "1")
	r.make("bb", "aa", "2")
	r.remove("aa")
	if err := r.store.Upload(t.Context(), "bb"); err != nil {
		t.Fatal(err)
	}
	r.is("here", r.here(), "bb")
	copies, err := r.store.Copies(t.Context(), snapshot.Sandbox)
	if err != nil || len(copies) != 1 || copies[0].Parent != "" || copies[0].Size() != 2 {
		t.Errorf("%+v, %v", copies, err)
	}
}
