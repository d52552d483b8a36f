package dir_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/store/dir"
	"github.com/tartarus-sandbox/tartarus/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T) *dir.Store {
	s, err := dir.New(filepath.Join(t.TempDir(), "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBlobs(t *testing.T) {
	storetest.Blobs(t, func(t *testing.T) snapshot.Blobs { return open(t) })
}

// TestNames holds that no name leads out of the folder.
func TestNames(t *testing.T) {
	s := open(t)
	for _, name := range []string{"", "../x", "a/../../x", "/etc/passwd", "a//b", "a/", ".hidden", "A", "a\x00", strings.Repeat("a", 513)} {
		if err := s.Put(t.Context(), name, strings.NewReader("x")); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("put %q: %v", name, err)
		}
		if _, err := s.Get(t.Context(), name); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("get %q: %v", name, err)
		}
	}
}

// TestLeftBehind holds that what a killed writer leaves is not listed, and goes in time.
func TestLeftBehind(t *testing.T) {
	root := t.TempDir()
	s, err := dir.New(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{".partial-old": 25 * time.Hour, ".partial-new": 0} {
		path := filepath.Join(root, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.List(t.Context(), "", func(b snapshot.Blob) error { t.Errorf("%s is listed", b.Name); return nil }); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(root)
	if err != nil || len(left) != 1 || left[0].Name() != ".partial-new" {
		t.Errorf("left: %v, %v", left, err)
	}
}
