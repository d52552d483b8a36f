package secret

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
)

// memory is a store that works, for this package's own tests; the real ones have their suite in storetest.
type memory struct {
	mu sync.Mutex
	m  map[string]Record
}

func (s *memory) CreateSecret(_ context.Context, r Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.m {
		if o.Tenant == r.Tenant && o.Name == r.Name {
			return tartarus.Errorf(tartarus.Conflict, "taken")
		}
	}
	s.m[r.ID] = r
	return nil
}

func (s *memory) UpdateSecret(_ context.Context, r Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[r.ID].Version != r.Version-1 {
		return tartarus.Errorf(tartarus.Conflict, "moved on")
	}
	s.m[r.ID] = r
	return nil
}

func (s *memory) Secret(_ context.Context, tenant, ref string) (Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.m {
		if r.Tenant == tenant && (r.ID == ref || r.Name == ref) {
			return r, nil
		}
	}
	return Record{}, tartarus.Errorf(tartarus.NotFound, "none")
}

func (s *memory) Secrets(context.Context, string, string, int) ([]Info, error) { return nil, nil }
func (s *memory) RemoveSecret(_ context.Context, _, id string) error           { delete(s.m, id); return nil }

func newVault(t *testing.T) (*Vault, *memory) {
	t.Helper()
	k, err := LoadKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	s := &memory{m: map[string]Record{}}
	return NewVault(s, k), s
}

func TestVault(t *testing.T) {
	v, s := newVault(t)
	made, err := v.Create(t.Context(), "a", "My-Key", "hunter2", map[string]string{"env": "test"})
	if err != nil || made.Name != "my-key" || made.Version != 1 {
		t.Fatalf("got %+v, %v", made, err)
	}
	if strings.Contains(string(s.m[made.ID].Sealed), "hunter2") {
		t.Fatal("the store has the value in the clear")
	}
	for _, ref := range []string{"my-key", "MY-KEY", made.ID} {
		if got, err := v.Value(t.Context(), "a", ref); err != nil || got != "hunter2" {
			t.Fatalf("%s: got %q, %v", ref, got, err)
		}
	}
	if _, err := v.Value(t.Context(), "b", made.ID); !tartarus.Is(err, tartarus.NotFound) {
		t.Fatalf("another tenant got %v", err)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := v.Update(t.Context(), "a", "my-key", "again", nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got, _ := v.Info(t.Context(), "a", "my-key"); got.Version != 5 || got.Metadata["env"] != "test" {
		t.Fatalf("got %+v", got)
	}
}

// A record that was moved to another secret or back to an older version does not open, and another key opens nothing.
func TestSealedIsBound(t *testing.T) {
	v, s := newVault(t)
	one, _ := v.Create(t.Context(), "a", "one", "first", nil)
	two, _ := v.Create(t.Context(), "a", "two", "second", nil)
	swapped := s.m[two.ID]
	swapped.Sealed = s.m[one.ID].Sealed
	older := s.m[one.ID]
	older.Version = 2
	cut := s.m[one.ID]
	cut.Sealed = cut.Sealed[:8]
	for name, r := range map[string]Record{"swapped": swapped, "older": older, "cut": cut} {
		if value, err := v.sealer.open(r); !tartarus.Is(err, tartarus.Corrupt) {
			t.Errorf("%s: got %q, %v", name, value, err)
		}
	}
	other, err := LoadKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.open(s.m[one.ID]); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("another key: %v", err)
	}
}

func TestKeyFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	a, err := LoadKey(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(file); info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %o", info.Mode().Perm())
	}
	b, err := LoadKey(file)
	if err != nil || a.tag != b.tag {
		t.Fatalf("a second look gave another key: %v", err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by others: %v", err)
	}
	os.Remove(file)
	if err := os.WriteFile(file, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(file); !tartarus.Is(err, tartarus.Corrupt) {
		t.Errorf("nonsense: %v", err)
	}
}

func TestBadSecrets(t *testing.T) {
	v, _ := newVault(t)
	many := map[string]string{}
	for i := range 33 {
		many[strings.Repeat("k", i+1)] = ""
	}
	for name, try := range map[string]func() error{
		"name":   func() error { _, err := v.Create(t.Context(), "a", "no{brace}", "x", nil); return err },
		"prefix": func() error { _, err := v.Create(t.Context(), "a", "SEC_x", "x", nil); return err },
		"dots":   func() error { _, err := v.Create(t.Context(), "a", "..", "x", nil); return err },
		"empty":  func() error { _, err := v.Create(t.Context(), "a", "x", "", nil); return err },
		"long": func() error {
			_, err := v.Create(t.Context(), "a", "x", strings.Repeat("x", MaxValue+1), nil)
			return err
		},
		"entries": func() error { _, err := v.Create(t.Context(), "a", "x", "x", many); return err },
		"long entry": func() error {
			_, err := v.Create(t.Context(), "a", "x", "x", map[string]string{"k": strings.Repeat("x", 1025)})
			return err
		},
	} {
		if err := try(); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
