package recipes

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
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

// server starts the program as the template does, with a Python that has what it imports.
func server(t *testing.T) string {
	t.Helper()
	python := cmp.Or(os.Getenv("TARTARUS_TEST_PYTHON"), "python3")
	if out, err := exec.Command(python, "-c", "import jupyter_client, ipykernel, tornado, matplotlib, pandas").CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		t.Skipf("%s lacks the packages of the template (%s): apt-get install %s, or set TARTARUS_TEST_PYTHON", python, lines[len(lines)-1],
			strings.Join(CodeInterpreterPackages, " "))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	dir := t.TempDir()
	program := filepath.Join(dir, "server.py")
	if err := os.WriteFile(program, []byte(CodeInterpreter), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(python, program)
	cmd.Env = append(os.Environ(), "CODE_INTERPRETER_PORT="+port, "HOME="+dir, "IPYTHONDIR="+dir, "MPLCONFIGDIR="+dir, "CODE_INTERPRETER_IDENTITY="+identityFile())
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		done := make(chan struct{})
		go func() { cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Errorf("it does not end: %s", log.String())
		}
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err == nil {
			t.Error("it left kernels behind")
		}
	})
	url := "http://127.0.0.1:" + port
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		resp, err := http.Get(url + "/health")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return url
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("it did not come up: %v\n%s", err, log.String())
		}
	}
}

// identityFile says which sandbox the server is in. Tests share it, one after the other.
func identityFile() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("tartarus-identity-%d", os.Getpid()))
}

type lineOf struct {
	Type, Text, Name, Value, Traceback, HTML, PNG string
	Timestamp                                     int64
	Main                                          bool `json:"is_main_result"`
	Count                                         int  `json:"execution_count"`
	Data                                          map[string][]any
}

// execute runs code and gives the answer's lines, those of streams joined.
func execute(t *testing.T, url string, request map[string]any) []lineOf {
	t.Helper()
	body, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/execute", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s: %s", resp.Status, b)
	}
	var out []lineOf
	for in := bufio.NewReader(resp.Body); ; {
		text, err := in.ReadBytes('\n')
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		var l lineOf
		if err := json.Unmarshal(text, &l); err != nil {
			t.Fatalf("%.200s: %v", text, err)
		}
		if n := len(out); n > 0 && (l.Type == "stdout" || l.Type == "stderr") && out[n-1].Type == l.Type {
			out[n-1].Text += l.Text
			continue
		}
		out = append(out, l)
	}
}

// short writes lines so that they can be compared.
func short(lines []lineOf) string {
	var out []string
	for _, l := range lines {
		switch l.Type {
		case "number_of_executions":
		case "result":
			out = append(out, fmt.Sprintf("result(%v)%q", l.Main, l.Text))
		case "error":
			out = append(out, fmt.Sprintf("error %s %q", l.Name, l.Value))
		default:
			out = append(out, fmt.Sprintf("%s%q", l.Type, l.Text))
		}
	}
	return strings.Join(out, " ")
}

func call(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestCodeInterpreter(t *testing.T) {
	url := server(t)
	t.Run("streams and results", func(t *testing.T) { streams(t, url) })
	t.Run("rich results", func(t *testing.T) { rich(t, url) })
	t.Run("contexts", func(t *testing.T) { contexts(t, url) })
	t.Run("refusals", func(t *testing.T) { refusals(t, url) })
	t.Run("another sandbox", func(t *testing.T) { becomesAnother(t, url) })
	t.Run("client goes away", func(t *testing.T) { goesAway(t, url) })
	t.Run("kernel dies", func(t *testing.T) {
		if got := short(execute(t, url, map[string]any{"code": "import os; os._exit(3)"})); !strings.HasPrefix(got, "error KernelDied") {
			t.Errorf("got %s", got)
		}
		if got := short(execute(t, url, map[string]any{"code": "1"})); got != `result(true)"1"` {
			t.Errorf("after a death: %s", got)
		}
	})
}

func streams(t *testing.T, url string) {
	for code, want := range map[string]string{
		"print('a'); print('b')":                  `stdout"a\nb\n"`,
		"import sys; print('e', file=sys.stderr)": `stderr"e\n"`,
		"40 + 2":      `result(true)"42"`,
		"'text'":      `result(true)"text"`,
		"x = 1":       ``,
		"print(1); 2": `stdout"1\n" result(true)"2"`,
		"1/0":         `error ZeroDivisionError "division by zero"`,
		"input()":     `error StdinNotImplementedError "raw_input was called, but this frontend does not support input requests."`,
		"import subprocess, time; subprocess.run(['echo', 'sub'], check=True); time.sleep(0.5)": `stdout"sub\n"`,
		"print('ü')": `stdout"ü\n"`,
	} {
		if got := short(execute(t, url, map[string]any{"code": code})); got != want {
			t.Errorf("%s: got %s, want %s", code, got, want)
		}
	}
	lines := execute(t, url, map[string]any{"code": "print('x')"})
	if lines[0].Type != "number_of_executions" || lines[0].Count < 1 || lines[1].Timestamp < 1e18 {
		t.Errorf("got %+v", lines)
	}
	if e := execute(t, url, map[string]any{"code": "def f(): raise ValueError('v')\nf()"}); !strings.Contains(e[len(e)-1].Traceback, "ValueError") {
		t.Errorf("got %+v", e)
	}
	if out := execute(t, url, map[string]any{"code": "print('0123456789' * 1000000)"}); len(out) != 2 || len(out[1].Text) != 10_000_001 {
		t.Errorf("10 MB of output came in %d parts", len(out))
	}
	got := short(execute(t, url, map[string]any{"code": "import os; os.environ['TT'], os.environ.get('HOME') != None", "env_vars": map[string]string{"TT": "set"}}))
	if got != `result(true)"('set', True)"` {
		t.Errorf("variables of one execution: %s", got)
	}
	if got := short(execute(t, url, map[string]any{"code": "os.environ.get('TT', 'unset')"})); got != `result(true)"unset"` {
		t.Errorf("variables of another execution: %s", got)
	}
}

func rich(t *testing.T, url string) {
	lines := execute(t, url, map[string]any{"code": "import pandas as pd\ndf = pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})\ndf"})
	table := lines[len(lines)-1]
	if !strings.Contains(table.HTML, "<table") || !table.Main || len(table.Data["a"]) != 2 || table.Data["b"][1] != "y" {
		t.Errorf("a table: %+v", table)
	}
	lines = execute(t, url, map[string]any{"code": "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()\nplt.plot([2, 1]); plt.show()"})
	var plots int
	for _, l := range lines {
		if png, err := base64.StdEncoding.DecodeString(l.PNG); err == nil && bytes.HasPrefix(png, []byte("\x89PNG")) && !l.Main {
			plots++
		}
	}
	if plots != 2 {
		t.Errorf("%d plots: %s", plots, short(lines))
	}
	lines = execute(t, url, map[string]any{"code": "from IPython.display import display, HTML\ndisplay(HTML('<b>1</b>')); 'last'"})
	if lines[1].HTML != "<b>1</b>" || lines[1].Main || lines[2].Text != "last" || !lines[2].Main {
		t.Errorf("displays: %+v", lines)
	}
}

func contexts(t *testing.T, url string) {
	dir := t.TempDir()
	status, body := call(t, http.MethodPost, url+"/contexts", fmt.Sprintf(`{"language":"python","cwd":%q}`, dir))
	var c struct{ ID, Language, Cwd string }
	if err := json.Unmarshal([]byte(body), &c); err != nil || status != http.StatusOK || c.ID == "" || c.Language != "python" || c.Cwd != dir {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	if _, list := call(t, http.MethodGet, url+"/contexts", ""); strings.Count(list, `"id"`) != 2 || !strings.Contains(list, c.ID) {
		t.Errorf("contexts: %s", list)
	}
	here := map[string]any{"code": "import os; v = 1; os.getcwd()", "context_id": c.ID}
	if got := short(execute(t, url, here)); got != fmt.Sprintf("result(true)%q", dir) {
		t.Errorf("working directory: %s", got)
	}
	for _, m := range []map[string]any{{"code": "v"}, {"code": "v", "language": "python"}} {
		if got := short(execute(t, url, m)); !strings.HasPrefix(got, "error NameError") {
			t.Errorf("a variable of another context: %s", got)
		}
	}
	if status, body := call(t, http.MethodPost, url+"/contexts/"+c.ID+"/restart", ""); status/100 != 2 {
		t.Errorf("restart: %d %s", status, body)
	}
	if got := short(execute(t, url, map[string]any{"code": "v", "context_id": c.ID})); !strings.HasPrefix(got, "error NameError") {
		t.Errorf("after a restart: %s", got)
	}
	if status, body := call(t, http.MethodDelete, url+"/contexts/"+c.ID, ""); status/100 != 2 {
		t.Errorf("delete: %d %s", status, body)
	}
	if status, _ := call(t, http.MethodPost, url+"/execute", fmt.Sprintf(`{"code":"1","context_id":%q}`, c.ID)); status != http.StatusNotFound {
		t.Errorf("a deleted context: %d", status)
	}
}

func refusals(t *testing.T, url string) {
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "/execute", `{`, 400}, {"POST", "/execute", `[]`, 400}, {"POST", "/execute", `{}`, 400}, {"POST", "/execute", `{"code":1}`, 400},
		{"POST", "/execute", `{"code":"1","env_vars":{"A":1}}`, 400}, {"POST", "/execute", `{"code":"1","language":"cobol"}`, 400},
		{"POST", "/execute", `{"code":"1","context_id":"x","language":"python"}`, 400}, {"POST", "/execute", `{"code":"1","context_id":"nosuch"}`, 404},
		{"POST", "/contexts", `{"language":"cobol"}`, 400}, {"POST", "/contexts", `{"cwd":"/nosuch"}`, 400},
		{"DELETE", "/contexts/nosuch", ``, 404}, {"DELETE", "/contexts/default", ``, 400}, {"POST", "/contexts/nosuch/restart", ``, 404},
		{"GET", "/nosuch", ``, 404}, {"GET", "/execute", ``, 405},
	} {
		status, body := call(t, c.method, url+c.path, c.body)
		if status != c.status || !strings.Contains(body, `"message"`) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, status, body)
		}
	}
}

// goesAway expects code whose client has gone to be stopped, also code that catches the interrupt once and code that was given variables.
func goesAway(t *testing.T, url string) {
	mark := filepath.Join(t.TempDir(), "mark")
	code := fmt.Sprintf("import time\ntry:\n  open(%q, 'w').close()\n  time.sleep(600)\nexcept KeyboardInterrupt:\n  pass\nkept = 1\ntime.sleep(600)", mark)
	body, _ := json.Marshal(map[string]any{"code": code, "env_vars": map[string]string{"GONE": "set"}})
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/execute", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(mark); err == nil {
				break
			}
		}
		cancel()
	}()
	if resp, err := http.DefaultClient.Do(req); err == nil {
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	start := time.Now()
	if got := short(execute(t, url, map[string]any{"code": "kept"})); got != `result(true)"1"` {
		t.Errorf("the kernel was not interrupted but lost: %s", got)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("the next execution waited %v", took)
	}
	if got := short(execute(t, url, map[string]any{"code": "import os; os.environ.get('GONE', 'unset')"})); got != `result(true)"unset"` {
		t.Errorf("variables of what was stopped: %s", got)
	}
}

// becomesAnother expects a copy of a sandbox to have random numbers of its own.
func becomesAnother(t *testing.T, url string) {
	t.Cleanup(func() { os.Remove(identityFile()) })
	next := func() string {
		return short(execute(t, url, map[string]any{"code": "import random; random.seed(7); 'seeded'"})) + short(execute(t, url, map[string]any{"code": "random.random()"}))
	}
	const same = `result(true)"seeded"result(true)"0.32383276483316237"`
	if got := next(); got != same {
		t.Fatalf("before: %s", got)
	}
	execute(t, url, map[string]any{"code": "random.seed(7)"})
	if err := os.WriteFile(identityFile(), []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := short(execute(t, url, map[string]any{"code": "random.random()"})); got == `result(true)"0.32383276483316237"` || !strings.HasPrefix(got, "result(true)") {
		t.Errorf("the copy draws %s", got)
	}
	if got := next(); got != same {
		t.Errorf("afterwards: %s", got)
	}
}
