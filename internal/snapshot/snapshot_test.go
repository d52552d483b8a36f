package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, c snapshot.Config) *snapshot.Store {
	t.Helper()
	if c.Dir == "" {
		c.Dir = filepath.Join(t.TempDir(), "snapshots")
	}
	s, err := snapshot.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var meta = snapshot.Meta{
	Kind: snapshot.Named, Tenant: "acme", Sandbox: "isource", Runtime: "gvisor", Version: "v1", CPU: "epyc",
	Base: snapshot.BaseImage{TemplateID: "tpl", BuildID: "b1"}, Limits: tartarus.Resources{VCPU: 1, MemoryMB: 64},
}

// content is what the test's runtime writes: random pages, a short file, and one that is mostly a hole.
func content(seed byte) func(string) error {
	return func(dir string) error {
		rnd := rand.NewChaCha8([32]byte{seed})
		pages := make([]byte, 9<<20)
		if _, err := io.ReadFull(rnd, pages); err != nil {
			return err
		}
		sparse, err := os.Create(filepath.Join(dir, "ram"))
		if err != nil {
			return err
		}
		_, err = sparse.WriteAt(pages[:1000], 33<<20)
		return errors.Join(err, sparse.Truncate(100<<20), sparse.Close(),
			os.WriteFile(filepath.Join(dir, "pages.img"), pages, 0o600),
			os.WriteFile(filepath.Join(dir, "state.json"), []byte("{}"), 0o600))
	}
}

func create(t *testing.T, s *snapshot.Store, m snapshot.Meta, seed byte) snapshot.Snapshot {
	t.Helper()
	snap, err := s.Create(t.Context(), m, content(seed))
	if err != nil {
		t.Fatal("create: ", err)
	}
	return snap
}

func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	for _, name := range []string{"ram", "pages.img", "state.json"} {
		x, err := os.ReadFile(filepath.Join(a, name))
		if err != nil {
			t.Fatal(err)
		}
		y, err := os.ReadFile(filepath.Join(b, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(x, y) {
			t.Errorf("%s differs", name)
		}
	}
}

func TestCreateOpenRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s := open(t, snapshot.Config{Dir: dir})
	snap := create(t, s, meta, 1)
	if snap.Size() != 109<<20+2 || snap.Stored < 9<<20 || snap.Stored > 20<<20 {
		t.Errorf("size %d, stored %d", snap.Size(), snap.Stored)
	}
	again := open(t, snapshot.Config{Dir: dir}) // as after a restart
	got, err := again.Open(snap.ID)
	if err != nil || got.Sandbox != "isource" || got.Base.BuildID != "b1" || len(got.Files) != 3 {
		t.Fatalf("open: %+v, %v", got, err)
	}
	if _, err := again.Create(t.Context(), got.Meta, content(1)); !tartarus.Is(err, tartarus.Conflict) {
		t.Error("the same id again: ", err)
	}
	if used := again.Usage("acme"); used != snap.Stored {
		t.Errorf("usage %d, want %d", used, snap.Stored)
	}
	if err := again.Remove(t.Context(), snap.ID); err != nil {
		t.Fatal("remove: ", err)
	}
	if err := again.Remove(t.Context(), snap.ID); !tartarus.Is(err, tartarus.NotFound) {
		t.Error("removed twice: ", err)
	}
	onlyTmp(t, dir)
}

// onlyTmp holds that nothing but the empty folder for unfinished ones is there.
func onlyTmp(t *testing.T, dir string) {
	t.Helper()
	var left []string
	_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, _ error) error {
		if path != dir && path != filepath.Join(dir, "tmp") {
			left = append(left, path)
		}
		return nil
	})
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s := open(t, snapshot.Config{Dir: dir, MaxBytes: 1 << 20})
	boom := errors.New("no space left on device")
	_, err := s.Create(t.Context(), meta, func(d string) error { return errors.Join(content(1)(d), boom) })
	if !errors.Is(err, boom) {
		t.Error("failed write: ", err)
	}
	if _, err := s.Create(t.Context(), meta, content(1)); !tartarus.Is(err, tartarus.Exhausted) {
		t.Error("over the quota: ", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := s.Create(ctx, meta, func(d string) error { cancel(); return content(1)(d) }); err == nil {
		t.Error("a cancelled create succeeded")
	}
	bad := meta
	bad.ID = "../x"
	if _, err := s.Create(t.Context(), bad, content(1)); !tartarus.Is(err, tartarus.Invalid) {
		t.Error("bad id: ", err)
	}
	link := func(d string) error { return os.Symlink("/etc/passwd", filepath.Join(d, "x")) }
	if _, err := s.Create(t.Context(), meta, link); err == nil {
		t.Error("a link was taken for a file")
	}
	onlyTmp(t, dir)
	if n := len(s.List(snapshot.Filter{})); n > 0 {
		t.Errorf("%d are listed", n)
	}
}

func TestHold(t *testing.T) {
	s := open(t, snapshot.Config{})
	snap := create(t, s, meta, 1)
	held, release, err := s.Hold(snap.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), snap.ID); err != nil {
		t.Fatal("remove: ", err)
	}
	if _, err := s.Open(snap.ID); !tartarus.Is(err, tartarus.NotFound) {
		t.Error("a removed one is opened: ", err)
	}
	if _, err := os.Stat(filepath.Join(held.Dir(), "pages.img")); err != nil {
		t.Error("gone while in use: ", err)
	}
	release()
	release() // once more does nothing
	if _, err := os.Stat(held.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Error("still there: ", err)
	}
}

func TestScratchEndsWithTheProcess(t *testing.T) {
	dir := t.TempDir()
	s := open(t, snapshot.Config{Dir: dir})
	m := meta
	m.Scratch = true
	snap := create(t, s, m, 1)
	if _, err := s.Open(snap.ID); err != nil {
		t.Error(err)
	}
	if n := len(s.List(snapshot.Filter{})); n != 0 {
		t.Error("it is listed")
	}
	if _, err := open(t, snapshot.Config{Dir: dir}).Open(snap.ID); !tartarus.Is(err, tartarus.NotFound) {
		t.Error("it is there after a restart: ", err)
	}
}

func TestNames(t *testing.T) {
	s := open(t, snapshot.Config{})
	first, second := create(t, s, meta, 1), create(t, s, meta, 2)
	for _, snap := range []snapshot.Snapshot{first, second} {
		if err := s.Rename(t.Context(), snap.ID, "ready:default"); err != nil {
			t.Fatal(err)
		}
	}
	got := s.List(snapshot.Filter{Tenant: "acme", Name: "ready"})
	if len(got) != 1 || got[0].ID != second.ID {
		t.Errorf("the name means %+v", got)
	}
	if got := s.List(snapshot.Filter{Tenant: "another"}); len(got) != 0 {
		t.Errorf("another tenant sees %+v", got)
	}
	if got := s.List(snapshot.Filter{Sandbox: "isource"}); len(got) != 2 {
		t.Errorf("of the sandbox: %+v", got)
	}
	for in, want := range map[string]string{"a": "a:default", "a:v1.0": "a:v1.0"} {
		if got, err := snapshot.ParseName(in); err != nil || got != want {
			t.Errorf("%s is %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"", ":", "a:", "A", "a/b", "a:b:c", strings.Repeat("a", 129), "ä"} {
		if _, err := snapshot.ParseName(in); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// TestDamage holds that every kind of damage is found, and named.
func TestDamage(t *testing.T) {
	for name, c := range map[string]struct {
		do      func(t *testing.T, dir string)
		says    string
		atOnce  bool // Open sees it; what it does not see, Verify does
		corrupt tartarus.Kind
	}{
		"bit flip": {says: "chunk 1 of file pages.img", do: func(t *testing.T, dir string) {
			name := filepath.Join(dir, "files", "pages.img")
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			b[5<<20] ^= 4
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		"written into a hole": {says: "chunk 20 of file ram", do: func(t *testing.T, dir string) {
			f, err := os.OpenFile(filepath.Join(dir, "files", "ram"), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte{1}, 80<<20); err != nil {
				t.Fatal(err)
			}
		}},
		"truncated": {says: "file pages.img", atOnce: true, do: func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "files", "pages.img"), 8<<20); err != nil {
				t.Fatal(err)
			}
		}},
		"missing": {says: "lost its file pages.img", atOnce: true, do: func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "files", "pages.img")); err != nil {
				t.Fatal(err)
			}
		}},
		"manifest": {says: "manifest", atOnce: true, do: func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "manifest.json"), `"tenant":"acme"`, `"tenant":"evil"`)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, snapshot.Config{Dir: dir})
			snap := create(t, s, meta, 1)
			if _, err := s.Hash(t.Context(), snap.ID); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Verify(t.Context(), snap.ID); err != nil {
				t.Fatal("before: ", err)
			}
			c.do(t, filepath.Join(dir, snap.ID))
			_, err := s.Verify(t.Context(), snap.ID)
			if !tartarus.Is(err, tartarus.Corrupt) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), snap.ID) {
				t.Errorf("verify: %v", err)
			}
			if _, err := s.Open(snap.ID); c.atOnce != tartarus.Is(err, tartarus.Corrupt) {
				t.Errorf("open: %v", err)
			}
			if err := s.Remove(t.Context(), snap.ID); err != nil {
				t.Error("a damaged one cannot be removed: ", err)
			}
		})
	}
}

func edit(t *testing.T, name, old, now string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte(old)) {
		t.Fatalf("%s has no %s", name, old)
	}
	if err := os.WriteFile(name, bytes.Replace(b, []byte(old), []byte(now), 1), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestKilled holds that what a killed process was writing is gone after the next start, and what was whole is not.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	whole := create(t, open(t, snapshot.Config{Dir: dir}), meta, 1)
	for _, name := range []string{"tmp/half-123/files", "ihalf/files"} { // neither has a manifest
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "pages.img"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, snapshot.Config{Dir: dir})
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := s.Open(whole.ID); err != nil {
		t.Error(err)
	}
	if err := s.Keep(t.Context(), snapshot.Named, map[string]bool{whole.ID: true}); err != nil {
		t.Error(err)
	}
	if _, err := s.Open(whole.ID); err != nil {
		t.Error("a wanted one was removed: ", err)
	}
	if err := s.Keep(t.Context(), snapshot.Named, nil); err != nil {
		t.Error(err)
	}
	if _, err := s.Open(whole.ID); !tartarus.Is(err, tartarus.NotFound) {
		t.Error("an unwanted one was kept: ", err)
	}
}

// waitFor polls until a condition holds.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no ", what, " in time")
		}
	}
}
