package tenant_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// Each role has all rights of those below it and none of those above; what is no role has none, and nothing is a right that no role has.
func TestRolesCover(t *testing.T) {
	order := []tenant.Role{tenant.Reader, tenant.Developer, tenant.Operator, tenant.Admin}
	for i, has := range order {
		for j, want := range order {
			if got := has.Covers(want); got != (i >= j) {
				t.Errorf("%s covers %s: %v", has, want, got)
			}
		}
		for _, none := range []tenant.Role{"", "king", "Admin", "anyone"} {
			if none.Covers(has) {
				t.Errorf("%q covers %s", none, has)
			}
		}
	}
	if tenant.Role("").Covers("") || tenant.Role("king").Covers("king") {
		t.Error("what is no role covers itself")
	}
}

func TestKeysAreValidForTheirTime(t *testing.T) {
	now := time.Now()
	for name, tt := range map[string]struct {
		key  tenant.Key
		want bool
	}{
		"for ever":           {tenant.Key{}, true},
		"until later":        {tenant.Key{ExpiresAt: now.Add(time.Nanosecond)}, true},
		"until now":          {tenant.Key{ExpiresAt: now}, false},
		"expired":            {tenant.Key{ExpiresAt: now.Add(-time.Hour)}, false},
		"revoked":            {tenant.Key{RevokedAt: now.Add(-time.Hour)}, false},
		"revoked from later": {tenant.Key{RevokedAt: now.Add(time.Hour), ExpiresAt: now.Add(2 * time.Hour)}, false}, // another clock's: better at once than never
	} {
		if got := tt.key.Valid(now); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Secrets have the shape that SDKs check, no two are the same, and what is stored of one does not lead back to it.
func TestSecrets(t *testing.T) {
	shape := regexp.MustCompile(`^e2b_[0-9a-f]{40}$`)
	seen := map[string]bool{}
	for range 1000 {
		s := tenant.NewSecret()
		if !shape.MatchString(s) || seen[s] {
			t.Fatalf("got %q", s)
		}
		seen[s] = true
	}
	const want = "dcc440e3b6947bac79e4eba7b5859c2f2f96d026f354eb4aa474de6fb23d8beb" // by sha256sum
	if got := tenant.HashSecret("e2b_test"); got != want {
		t.Errorf("got %s", got)
	}
	raw, err := json.Marshal(tenant.Key{ID: "k", Hash: "0123456789abcdef", Person: true})
	if err != nil || strings.Contains(string(raw), "0123456789abcdef") || strings.Contains(string(raw), "erson") {
		t.Errorf("a key as JSON is %s, %v", raw, err)
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "default": true, "a-b-9": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "a-": false, "A": false, "a.b": false, "a/b": false, "..": false, "*": false, "a b": false, "a\n": false, "ä": false,
		strings.Repeat("a", 64): false,
	} {
		if tenant.ValidName(name) != want {
			t.Errorf("%q is a name: %v", name, !want)
		}
	}
}
