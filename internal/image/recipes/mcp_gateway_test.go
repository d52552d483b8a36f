package recipes

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mcpServer is a small MCP server in Python: it adds, tells a variable, fails and dies.
const mcpServer = `
import json, os, sys
for line in sys.stdin:
    m = json.loads(line)
    if "id" not in m: continue
    name = m.get("params", {}).get("name")
    out = {"jsonrpc": "2.0", "id": m["id"]}
    if m["method"] == "initialize": out["result"] = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}}
    elif m["method"] == "tools/list": out["result"] = {"tools": [{"name": n, "inputSchema": {"type": "object"}} for n in ("add", "env", "fail", "die")]}
    elif name == "add": out["result"] = {"content": [{"type": "text", "text": str(sum(m["params"]["arguments"]["of"]))}]}
    elif name == "env": out["result"] = {"content": [{"type": "text", "text": os.environ.get("WHO", "-") + " " + os.environ.get("GATEWAY_ACCESS_TOKEN", "no token")}]}
    elif name == "die": sys.exit(1)
    else: out["error"] = {"code": -1, "message": "it fails"}
    print("noise, which is no JSON", flush=True)
    print(json.dumps(out), flush=True)
`

// gateway is the program with a folder of its own, on a port that nobody uses.
type gateway struct {
	python, dir, port string
}

func newGateway(t *testing.T) *gateway {
	t.Helper()
	python, err := exec.LookPath(cmp.Or(os.Getenv("TARTARUS_TEST_PYTHON"), "python3"))
	if err != nil {
		t.Skip("needs python3")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	g := &gateway{python: python, dir: t.TempDir(), port: port}
	server := filepath.Join(g.dir, "server.py")
	for name, text := range map[string]string{
		"mcp-gateway": MCPGateway, "server.py": mcpServer,
		"catalog/one.json":    fmt.Sprintf(`{"runCmd":"exec %s %s","envs":{"WHO":"nobody"}}`, python, server),
		"catalog/two.json":    fmt.Sprintf(`{"runCmd":"exec %s %s"}`, python, server),
		"catalog/broken.json": `{"runCmd":"exit 3"}`,
	} {
		path := filepath.Join(g.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// run runs the program as the SDKs do and gives what it said and its exit code.
func (g *gateway) run(t *testing.T, args ...string) (string, int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), g.python, append([]string{filepath.Join(g.dir, "mcp-gateway")}, args...)...)
	cmd.Env = append(os.Environ(), "GATEWAY_ACCESS_TOKEN=the token", "MCP_GATEWAY_PORT="+g.port, "MCP_GATEWAY_HOME="+g.dir, "MCP_GATEWAY_SOURCES="+g.dir+"/sources")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func (g *gateway) post(t *testing.T, token, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1:"+g.port+"/mcp", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(answer)
}

// ours are the processes whose command line names the gateway's folder.
func (g *gateway) ours() (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range all {
		if line, err := os.ReadFile(path); err == nil && bytes.Contains(line, []byte(g.dir)) {
			var pid int
			fmt.Sscanf(path, "/proc/%d/", &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

func (g *gateway) end() {
	for deadline := time.Now().Add(10 * time.Second); len(g.ours()) > 0 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for _, pid := range g.ours() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func TestMCPGateway(t *testing.T) {
	g := newGateway(t)
	t.Cleanup(g.end)
	if out, code := g.run(t, "--config", `{"one":{"who":"somebody"},"two":{}}`); code != 0 || out != "" {
		t.Fatalf("%d %s", code, out)
	}
	if token, err := os.ReadFile(g.dir + "/.token"); err != nil || string(token) != "the token" {
		t.Errorf("the token's file: %q, %v", token, err)
	}
	for _, c := range []struct{ body, want string }{
		{`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-03-26"}}`, `"protocolVersion": "2025-03-26"`},
		{`{"jsonrpc":"2.0","id":"x","method":"ping"}`, `"id": "x", "result": {}`},
		{`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"add","arguments":{"of":[40,2]}}}`, `"text": "42"`},
		{`{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"env"}}`, `"text": "somebody no token"`},
		{`{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"two.env"}}`, `"text": "- no token"`},
		{`{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"fail"}}`, `"message": "one: it fails"`},
		{`{"jsonrpc":"2.0","id":6,"method":"tools/call","params":{"name":"none"}}`, `there is no tool 'none'`},
		{`{"jsonrpc":"2.0","id":7,"method":"resources/list"}`, `"code": -32601`},
		{`{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"name":"two.die"}}`, `two ended before`},
		{`{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"add","arguments":{"of":[1]}}}`, `two has ended`},
	} {
		if status, answer := g.post(t, "the token", c.body); status != 200 || !strings.Contains(answer, c.want) {
			t.Errorf("%s: %d %s; want %s", c.body, status, answer, c.want)
		}
	}
	for _, c := range []struct {
		token, body string
		status      int
	}{
		{"wrong", `{"jsonrpc":"2.0","id":1,"method":"ping"}`, 401}, {"", `{}`, 401}, {"the token", `{`, 400}, {"the token", `[]`, 400},
		{"the token", `{"jsonrpc":"2.0","method":"notifications/initialized"}`, 202},
	} {
		if status, answer := g.post(t, c.token, c.body); status != c.status {
			t.Errorf("%s: %d %s; want %d", c.body, status, answer, c.status)
		}
	}
	if out, code := g.run(t, "--config", `{"one":{}}`); code != 1 || !strings.Contains(out, "in use") {
		t.Errorf("a second gateway: %d %s", code, out)
	}
}

func TestMCPGatewayThatDoesNotComeUp(t *testing.T) {
	g := newGateway(t)
	t.Cleanup(g.end)
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--config", `{"nothing":{}}`}, 1, "server 'nothing' is not in this template's catalogue (broken, one, two)"},
		{[]string{"--config", `{"../one":{}}`}, 1, "not in this template's catalogue"},
		{[]string{"--config", `{"one":{},"broken":{}}`}, 1, "broken "},
		{[]string{"--config", `{"one":7}`}, 1, "the options of one must be an object"},
		{[]string{"--config", `{"github/a/b":{}}`}, 1, ""},
		{[]string{"--config", `[]`}, 2, "must be JSON"}, {[]string{"--config", `{`}, 2, "must be JSON"}, {nil, 2, "must be JSON"},
		{[]string{"pull", "one", "none"}, 1, "server 'none' is not"}, {[]string{"pull", "one", "two"}, 0, ""},
	} {
		if c.args != nil && strings.Contains(c.args[1], "github") {
			if err := os.MkdirAll(g.dir+"/sources/a/b", 0o755); err != nil {
				t.Fatal(err)
			}
			c.says = "github/a/b has no runCmd"
		}
		if out, code := g.run(t, c.args...); code != c.code || !strings.Contains(out, c.says) {
			t.Errorf("%q: %d %s", c.args, code, out)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); len(g.ours()) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %v", g.ours())
		}
	}
	// A repository is run from its folder, with the variables that were given.
	if err := os.WriteFile(g.dir+"/sources/a/b/server.py", []byte(mcpServer), 0o644); err != nil {
		t.Fatal(err)
	}
	config, _ := json.Marshal(map[string]any{"github/a/b": map[string]any{"runCmd": "exec " + g.python + " server.py", "envs": map[string]string{"WHO": "it"}}})
	if out, code := g.run(t, "--config", string(config)); code != 0 {
		t.Fatalf("%d %s", code, out)
	}
	if _, answer := g.post(t, "the token", `{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"env"}}`); !strings.Contains(answer, `"text": "it no token"`) {
		t.Error(answer)
	}
}
