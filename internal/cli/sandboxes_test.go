package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus/api"
)

func (x *fixture) makeOne(t *testing.T) string {
	t.Helper()
	if code := x.run(t, "create", "-q"); code != 0 {
		t.Fatalf("create: code %d", code)
	}
	id := strings.TrimSpace(x.out.String())
	x.out.Reset()
	return id
}

func TestCreateListInspectKill(t *testing.T) {
	x := newFixture(t)
	id := x.makeOne(t)
	if code := x.run(t, "ps"); code != 0 || !strings.Contains(x.out.String(), id) || !strings.Contains(x.out.String(), "user-kernel") ||
		!strings.Contains(x.out.String(), "HEAT") || !strings.Contains(x.out.String(), "inferno") {
		t.Errorf("ps: code %d: %s", code, x.out.String())
	}
	x.out.Reset()
	if code := x.run(t, "ls", "--json"); code != 0 {
		t.Errorf("ls: code %d", code)
	}
	var list []api.ListedSandbox
	if err := json.Unmarshal(x.out.Bytes(), &list); err != nil || len(list) != 1 || list[0].SandboxID != id || list[0].Heat != "inferno" {
		t.Errorf("%v, %v", list, err)
	}
	x.out.Reset()
	if code := x.run(t, "inspect", id, "--json"); code != 0 || !strings.Contains(x.out.String(), `"memoryMB": 512`) || strings.Contains(x.out.String(), "agent-token") {
		t.Errorf("inspect: code %d", code)
	}
	x.out.Reset()
	if code := x.run(t, "inspect", id, "--secrets"); code != 0 || !strings.Contains(x.out.String(), "agent-token") {
		t.Errorf("inspect --secrets: code %d", code)
	}
	x.out.Reset()
	if code := x.run(t, "kill", id, "iabsent"); code != 125 || strings.TrimSpace(x.out.String()) != id || !strings.Contains(x.err.String(), "kill iabsent") {
		t.Errorf("kill: code %d", code)
	}
	x.out.Reset()
	if code := x.run(t, "ps", "-q"); code != 0 || x.out.Len() > 0 {
		t.Errorf("ps after: code %d", code)
	}
	if code := x.run(t, "ps", "--all"); code != 0 || !strings.Contains(x.out.String(), "stopped (user)") {
		t.Errorf("ps --all: code %d", code)
	}
}

func TestKillAll(t *testing.T) {
	x := newFixture(t)
	for range 20 {
		x.makeOne(t)
	}
	if code := x.run(t, "kill", "--all", "--json"); code != 0 || len(x.server.alive()) > 0 {
		t.Errorf("code %d, left %v", code, x.server.alive())
	}
	var out []killed
	if err := json.Unmarshal(x.out.Bytes(), &out); err != nil || len(out) != 20 || !out[0].Killed {
		t.Errorf("%v, %v", out, err)
	}
	x.out.Reset()
	if code := x.run(t, "kill", "--all"); code != 0 || x.out.Len() > 0 {
		t.Errorf("of none: code %d", code)
	}
}

func TestTimeoutURLLogsMetrics(t *testing.T) {
	x := newFixture(t)
	id := x.makeOne(t)
	if code := x.run(t, "timeout", id, "90s"); code != 0 || x.server.timeouts[0] != 90 {
		t.Errorf("timeout: code %d, %v", code, x.server.timeouts)
	}
	if code := x.run(t, "url", id, "3000"); code != 0 || x.out.String() != "https://3000-"+id+".tartarus.localhost:7443\n" {
		t.Errorf("url: code %d", code)
	}
	x.out.Reset()
	if code := x.run(t, "port", id, "3000", "--host"); code != 0 || x.out.String() != "3000-"+id+".tartarus.localhost:7443\n" {
		t.Errorf("port: code %d", code)
	}
	x.out.Reset()
	if code := x.run(t, "logs", id); code != 0 || !strings.Contains(x.out.String(), "info  hello?[2J  pid=3") {
		t.Errorf("logs: code %d", code)
	}
	x.out.Reset()
	if code := x.run(t, "metrics", id); code != 0 || !strings.Contains(x.out.String(), "12.5%/2") || !strings.Contains(x.out.String(), "1.0MiB / 1.0GiB") {
		t.Errorf("metrics: code %d", code)
	}
}

func TestExec(t *testing.T) {
	x := newFixture(t)
	id := x.makeOne(t)
	x.guest.commands["job"] = func(p *fakeProcess) { p.out(p.command.env["A"]); p.exit(4) }
	if code := x.run(t, "exec", "-e", "A=b", id, "--", "job"); code != 4 || x.out.String() != "b" {
		t.Errorf("code %d", code)
	}
	x.out.Reset()
	if code := x.run(t, "exec", "-d", id, "job"); code != 0 || x.out.String() != "42\n" {
		t.Errorf("detached: code %d", code)
	}
	if code := x.run(t, "exec", "iabsent", "--", "job"); code != 125 || !strings.Contains(x.err.String(), "not found") {
		t.Errorf("absent: code %d", code)
	}
	if len(x.server.alive()) != 1 {
		t.Error("exec does not end the sandbox")
	}
}

func TestWrongKey(t *testing.T) {
	x := newFixture(t)
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("e2b_wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := x.run(t, "ps", "--api-key-file", file); code != 125 || !strings.Contains(x.err.String(), "--api-key-file") {
		t.Errorf("code %d", code)
	}
}

// TestAdminKeyStaysHere: the key in the data folder goes to this machine's server, and to no other.
func TestAdminKeyStaysHere(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "admin.key"), []byte("e2b_admin\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"": "e2b_admin", "http://127.0.0.1:7300": "e2b_admin", "http://localhost:1": "e2b_admin", "http://[::1]:1": "e2b_admin",
		"https://tartarus.example": "", "http://10.0.0.1:7300": "", "http://127.0.0.1.example": "",
	} {
		e := &Env{lookup: lookup(nil), global: global{data: dir, url: url}}
		c, err := e.configure(nil)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := e.server(c); err != nil || s.key != want {
			t.Errorf("%q: key %q, %v; want %q", url, s.key, err, want)
		}
	}
}

func TestKeyFilesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, 10_000), 0o600); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("two words"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{dir, big, text, filepath.Join(dir, "absent"), "/dev/null"} {
		if key, err := readKey(file); err == nil {
			t.Errorf("%s: %q", file, key)
		}
	}
}
