package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus/internal/login/logintest"
)

// A person with an ID token runs a command by the command line, and the record says who it was.
func TestLogin(t *testing.T) {
	idp := logintest.New(t)
	s := newServer(t, "TARTARUS_OIDC_ISSUER="+idp.URL, "TARTARUS_OIDC_CLIENT_ID="+logintest.Client, "TARTARUS_OIDC_ROLES=engineering=developer,staff=reader")
	file := filepath.Join(t.TempDir(), "token")
	as := func(claims map[string]any, args ...string) (string, int) {
		if err := os.WriteFile(file, []byte(idp.Token(claims)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return s.cli(append([]string{"--api-key-file", file}, args...)...)
	}
	if out, code := as(map[string]any{"groups": []string{"staff", "engineering"}}, "run", "--template", "tiny", "--", "echo", "hello"); code != 0 || out != "hello\n" {
		t.Errorf("run: %d %s", code, out)
	}
	if out, code := as(map[string]any{"groups": "staff"}, "create", "--template", "tiny"); code == 0 || !strings.Contains(out, "this needs the role developer") {
		t.Errorf("a reader's create: %d %s", code, out)
	}
	if out, code := as(map[string]any{"groups": "guests"}, "ps"); code == 0 || !strings.Contains(out, "given no role") {
		t.Errorf("a guest: %d %s", code, out)
	}
	idp.Rotate("ES256")
	if out, code := as(map[string]any{"groups": "staff"}, "ps"); code != 0 {
		t.Errorf("under a key that is new: %d %s", code, out)
	}
	out, code := s.cli("audit", "ls", "--json")
	for _, want := range []string{`"kind": "person"`, `"id": "oidc:ann"`, `"name": "ann@example.com"`, `"login.failure"`} {
		if code != 0 || !strings.Contains(strings.ReplaceAll(out, `":"`, `": "`), want) {
			t.Errorf("the record lacks %s: %d\n%s", want, code, out)
		}
	}
}
