package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newTree makes a volume beside which lies a file that nobody may reach.
func newTree(t *testing.T, quota int64) (*Tree, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("owners can only be set by root")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "outside"), []byte("outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := OpenLibrary(dir, quota)
	if err != nil {
		t.Fatal(err)
	}
	id := NewID()
	if err := l.Make(id); err != nil {
		t.Fatal(err)
	}
	tree, release, err := l.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return tree, filepath.Join(dir, id)
}

var anybody = Owner{UID: 1000, GID: 1000, Mode: 0o644}

func put(t *testing.T, tree *Tree, p, text string) {
	t.Helper()
	if err := tree.Upload(t.Context(), p, strings.NewReader(text), anybody); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, tree *Tree, p string) string {
	t.Helper()
	f, err := tree.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTree(t *testing.T) {
	tree, dir := newTree(t, 1<<20)
	if err := tree.MkdirAll("/a/b", Owner{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	put(t, tree, "a/b/f", "hello")
	if err := tree.WriteAt("/a/b/f", []byte("XY"), 4); err != nil {
		t.Fatal(err)
	}
	if got := read(t, tree, "a/b/../b/f"); got != "hellXY" {
		t.Fatalf("got %q", got)
	}
	at, err := tree.Stat("a/b/f")
	if err != nil || at.Size != 6 || at.UID != 1000 || at.Mode != unix.S_IFREG|0o644 {
		t.Fatalf("got %+v, %v", at, err)
	}
	mode := uint32(0o4755)
	when := time.Unix(1e9, 5)
	if err := tree.Set("a/b/f", Change{Mode: &mode, Mtime: &when}); err != nil {
		t.Fatal(err)
	}
	if at, _ := tree.Stat("a/b/f"); at.Mode&unix.S_ISUID != 0 || at.Mode&0o777 != 0o755 || !at.Mtime.Equal(when) {
		t.Fatalf("got %+v", at)
	}
	if err := tree.Rename("a/b/f", "g", false); err != nil {
		t.Fatal(err)
	}
	entries, err := tree.List("/", 10)
	if err != nil || len(entries) != 2 {
		t.Fatalf("got %v, %v", entries, err)
	}
	if _, err := tree.List("/", 1); !tartarus.Is(err, tartarus.TooLarge) {
		t.Fatalf("a folder over the limit: %v", err)
	}
	for name, err := range map[string]error{
		"a folder as a file": tree.Upload(t.Context(), "a", strings.NewReader(""), anybody),
		"the root":           tree.RemoveAll("/"),
		"a full folder":      tree.Remove("a", true),
		"a file as a folder": tree.Mkdir("g/x", anybody),
		"no folder above":    tree.Mkdir("x/y", anybody),
		"there already":      tree.Create("g", anybody),
		"a NUL":              tree.Mkdir("a\x00b", anybody),
		"a long name":        tree.Mkdir(strings.Repeat("x", 256), anybody),
		"our own names":      tree.Create(temporary+"x", anybody),
	} {
		if err == nil || tartarus.Is(err, tartarus.Internal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := tree.RemoveAll("a"); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Fatalf("left are %v, %v", left, err)
	}
}

// Whatever way a guest has laid out, nothing outside is read, changed or made.
func TestNothingLeadsOut(t *testing.T) {
	tree, dir := newTree(t, 1<<20)
	outside := filepath.Join(filepath.Dir(dir), "outside")
	for name, target := range map[string]string{"abs": outside, "rel": "../outside", "up": "..", "root": "/", "deep": "x/../../outside"} {
		if err := tree.Symlink(target, name, anybody); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.Mkdir("x", Owner{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	mode := uint32(0o777)
	for _, p := range []string{"abs", "rel", "deep", "up/outside", "root" + outside} {
		for what, err := range map[string]error{
			"open":     func() error { _, err := tree.Open(p); return err }(),
			"write":    tree.WriteAt(p, []byte("x"), 0),
			"truncate": tree.Truncate(p, 0),
			"mkdir":    tree.Mkdir(p+"/d", anybody),
			"list":     func() error { _, err := tree.List(p, 10); return err }(),
			"link":     tree.Link(p+"/outside", "linked"),
			"rename":   tree.Rename("up/outside", "taken", false),
		} {
			if err == nil {
				t.Errorf("%s of %s went through", what, p)
			}
		}
		_ = tree.Set(p, Change{Mode: &mode}) // of the link itself it may succeed
		_ = tree.Upload(t.Context(), p, strings.NewReader("x"), anybody)
		_ = tree.RemoveAll("up/outside")
	}
	put(t, tree, "/../../outside", "the volume's own")
	b, err := os.ReadFile(outside)
	info, serr := os.Stat(outside)
	if err != nil || serr != nil || string(b) != "outside" || info.Mode().Perm() != 0o600 {
		t.Fatalf("the file outside is %q, %v, %v", b, info, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(entries) != 2 {
		t.Fatalf("beside the volume are %v", entries)
	}
}

func TestQuota(t *testing.T) {
	const quota = 64 << 10
	tree, dir := newTree(t, quota)
	put(t, tree, "f", strings.Repeat("x", 20<<10))
	for name, err := range map[string]error{
		"upload":   tree.Upload(t.Context(), "g", strings.NewReader(strings.Repeat("x", quota)), anybody),
		"write":    tree.WriteAt("f", make([]byte, quota), 0),
		"hole":     tree.WriteAt("f", []byte("x"), 1<<40),
		"truncate": tree.Truncate("f", 1<<40),
	} {
		if !tartarus.Is(err, tartarus.TooLarge) || !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: %v", name, err)
		}
	}
	put(t, tree, "f", strings.Repeat("y", 30<<10)) // while both are there, and then the old one is given back
	put(t, tree, "f", "z")
	var made int
	var err error
	for made = 0; err == nil && made < 100; made++ {
		err = tree.Create(fmt.Sprint(made), anybody)
	}
	if made >= quota/inodeCost || !tartarus.Is(err, tartarus.TooLarge) {
		t.Fatalf("%d empty files, %v", made, err)
	}
	for i := range made - 1 {
		if err := tree.Remove(fmt.Sprint(i), false); err != nil {
			t.Fatal(err)
		}
	}
	if used, _ := tree.Usage(); used != 2*inodeCost+1 {
		t.Fatalf("%d bytes are used", used)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Fatalf("left are %v", entries)
	}
	// Many at once do not get past it together.
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			_ = tree.Upload(t.Context(), fmt.Sprint("p", i), bytes.NewReader(make([]byte, 10<<10)), anybody)
		})
	}
	all.Wait()
	var total int64
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, _ error) error {
		info, _ := d.Info()
		if d.Type().IsRegular() {
			total += info.Size()
		}
		total += inodeCost
		return nil
	})
	if used, _ := tree.Usage(); total > quota || used != total {
		t.Fatalf("%d bytes are there, %d counted", total, used)
	}
}

// An upload that breaks off leaves what was there.
func TestUploadIsWhole(t *testing.T) {
	tree, dir := newTree(t, 1<<20)
	put(t, tree, "f", "before")
	for _, gone := range []error{errors.New("gone"), io.ErrUnexpectedEOF} { // the second is what a request's body says
		broken := io.MultiReader(strings.NewReader("half"), readerFunc(func([]byte) (int, error) { return 0, gone }))
		if err := tree.Upload(t.Context(), "f", broken, anybody); !errors.Is(err, gone) {
			t.Fatalf("got %v, want %v", err, gone)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tree.Upload(ctx, "f", strings.NewReader("x"), anybody); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if got := read(t, tree, "f"); got != "before" {
		t.Fatalf("got %q", got)
	}
	// What a killed server leaves is swept when the volume is opened again.
	if err := os.WriteFile(filepath.Join(dir, temporary+"left"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := openTree(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Fatalf("left are %v", entries)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestLibrary(t *testing.T) {
	l, err := OpenLibrary(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"", "..", "vol_", "vol_../../../../../../x", "vol_aaaaaaaaaaaaaaaaaaaA", NewID()} {
		if _, _, err := l.Open(id); !tartarus.Is(err, tartarus.NotFound) {
			t.Errorf("%q: %v", id, err)
		}
	}
	id := NewID()
	if err := l.Make(id); err != nil {
		t.Fatal(err)
	}
	a, releaseA, err := l.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	b, releaseB, err := l.Open(id)
	if err != nil || a != b {
		t.Fatalf("two trees, or %v", err)
	}
	releaseA()
	releaseA()
	if _, err := b.Stat("/"); err != nil {
		t.Fatalf("closed under its user: %v", err)
	}
	if err := l.Remove(id); err != nil {
		t.Fatal(err)
	}
	if err := b.Create("f", anybody); err == nil {
		t.Error("a removed volume takes files")
	}
	releaseB()
	if err := l.Remove(id); err != nil {
		t.Errorf("removing again: %v", err)
	}
}

func TestTokens(t *testing.T) {
	now := time.Unix(1e9, 0)
	k, err := NewTokens(bytes.Repeat([]byte("k"), 32))
	if err != nil {
		t.Fatal(err)
	}
	other, _ := NewTokens(bytes.Repeat([]byte("o"), 32))
	v := Volume{ID: NewID(), Tenant: "acme"}
	token := k.Sign(v, true, now)
	c, err := k.Check(token, now.Add(tokenLife-time.Second))
	if err != nil || c.Volume != v.ID || c.Tenant != "acme" || !c.ReadOnly {
		t.Fatalf("got %+v, %v", c, err)
	}
	for name, bad := range map[string]string{
		"ended":    k.Sign(v, false, now.Add(-tokenLife)),
		"foreign":  other.Sign(v, false, now),
		"none":     "eyJhbGciOiJub25lIn0." + strings.Split(token, ".")[1] + ".",
		"cut":      token[:len(token)-1],
		"unsigned": token[:strings.LastIndexByte(token, '.')+1],
		"empty":    "",
		"long":     strings.Repeat("a.", 2000),
		"swapped":  strings.Split(token, ".")[0] + "." + strings.Split(k.Sign(Volume{ID: NewID()}, false, now), ".")[1] + "." + strings.Split(token, ".")[2],
	} {
		if _, err := k.Check(bad, now); !tartarus.Is(err, tartarus.Unauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewTokens([]byte("short")); err == nil {
		t.Error("a short key was taken")
	}
}
