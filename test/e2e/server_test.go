// Package e2e runs the built program as its users do: a server, its command line and its API, on the real runtime.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

// binary is the program under test. make test builds it.
func binary(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: sandboxes are made of network namespaces and control groups")
	}
	path := os.Getenv("TARTARUS_BIN")
	if path == "" {
		path = "../../bin/tartarus"
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs the built program (make build): %v", err)
	}
	return path
}

// server is a running `tartarus up`.
type server struct {
	*client.Client
	t    *testing.T
	bin  string
	data string
	addr string
	vars []string // more of its environment
	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{}
}

// logBuffer keeps the end of what a server logs, for failures.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf.Len() > 64<<10 {
		l.buf.Next(l.buf.Len() - 32<<10)
	}
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// newServer starts a server on a data folder of its own. At the end of the test every sandbox is killed, the server is
// stopped, and nothing of it may be left on the host.
func newServer(t *testing.T, vars ...string) *server {
	t.Helper()
	return newServerIn(t, t.TempDir(), vars...)
}

// newServerIn is newServer on a data folder that may hold something already.
func newServerIn(t *testing.T, data string, vars ...string) *server {
	t.Helper()
	s := &server{t: t, bin: binary(t), data: data, addr: freeAddr(t), vars: vars, log: &logBuffer{}}
	s.start()
	t.Cleanup(s.finish)
	return s
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (s *server) env() []string {
	ours := []string{"TARTARUS_DATA=" + s.data, "TARTARUS_API_ADDR=" + s.addr, "TARTARUS_EDGE_ADDR=off", "TARTARUS_URL=http://" + s.addr, "TARTARUS_DEFAULT_TEMPLATE=tiny"}
	return append(append(os.Environ(), ours...), s.vars...) // the last one counts
}

// start runs the server until it is ready.
func (s *server) start() {
	s.t.Helper()
	s.cmd = exec.Command(s.bin, "up")
	s.cmd.Env = s.env()
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) { _ = cmd.Wait(); close(done) }(s.cmd, s.done)

	ctx, cancel := context.WithTimeout(s.t.Context(), 60*time.Second)
	defer cancel()
	for {
		select {
		case <-s.done:
			s.t.Fatalf("the server ended while it started:\n%s", s.log)
		case <-ctx.Done():
			s.t.Fatalf("the server is not ready:\n%s", s.log)
		case <-time.After(20 * time.Millisecond):
		}
		key, err := os.ReadFile(filepath.Join(s.data, "admin.key"))
		if err != nil {
			continue
		}
		c, err := client.New(client.Config{URL: "http://" + s.addr, APIKey: strings.TrimSpace(string(key))})
		if err != nil {
			s.t.Fatal(err)
		}
		if c.Health(ctx) == nil {
			s.Client = c
			return
		}
	}
}

// kill ends the server without giving it a chance.
func (s *server) kill() {
	s.t.Helper()
	_ = s.cmd.Process.Kill()
	<-s.done
	s.Client.Close()
}

// finish kills all sandboxes, stops the server in order and looks for what it left behind.
func (s *server) finish() {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	// Until nothing is left: a server that was killed takes up again what was queued, also when nobody waits for it any more.
	for s.killAll(ctx) > 0 && ctx.Err() == nil {
	}
	if out, code := s.cli("doctor", "--leaks"); code != 0 {
		s.t.Errorf("leaks beside the running server: %s", out)
	}
	s.Client.Close()
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-ctx.Done():
		s.t.Error("the server does not stop on SIGTERM")
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	if out, code := s.cli("doctor", "--leaks"); code != 0 {
		s.t.Errorf("leaks after the server stopped: %s", out)
	}
	if s.t.Failed() {
		s.t.Logf("the server's log:\n%s", s.log)
	}
}

// live are the phases of what has not ended.
var live = []string{"queued", "starting", "running", "pausing", "paused", "stopping"}

// killAll ends every sandbox there is and says how many it found.
func (s *server) killAll(ctx context.Context) (found int) {
	for sb, err := range s.List(ctx, client.ListOptions{States: live}) {
		if err != nil {
			s.t.Errorf("list at the end: %v", err)
			return 0
		}
		found++
		if err := s.Terminate(ctx, sb.SandboxID, client.KillOptions{Grace: new(time.Duration)}); err != nil && !tartarus.Is(err, tartarus.NotFound) {
			s.t.Errorf("kill at the end: %v", err)
		}
	}
	return found
}

// cli runs the command line against this server and returns what it printed and its exit code.
func (s *server) cli(args ...string) (string, int) {
	return s.cliInput(nil, args...)
}

func (s *server) cliInput(stdin []byte, args ...string) (string, int) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.bin, args...)
	cmd.Env = s.env()
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		s.t.Fatalf("run %v: %v", args, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// create makes a sandbox of the tiny template.
func (s *server) create(change ...func(*api.NewSandbox)) *api.Sandbox {
	s.t.Helper()
	in := api.NewSandbox{TemplateID: "tiny"}
	for _, f := range change {
		f(&in)
	}
	sb, err := s.Create(s.t.Context(), in, client.CreateOptions{})
	if err != nil {
		s.t.Fatalf("create: %v\n%s", err, s.log)
	}
	return sb
}

// sh runs a shell line in a sandbox, which must succeed, and returns its output without the last newline.
func (s *server) sh(id, line string) string {
	s.t.Helper()
	out, code := s.cli("exec", id, "--", "sh", "-c", line)
	if code != 0 {
		s.t.Fatalf("exec %q in %s: exit code %d\n%s", line, id, code, out)
	}
	return strings.TrimSuffix(out, "\n")
}

// eventually waits until f has nothing to complain about.
func eventually(t *testing.T, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s still: %v", within, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func differs(what, before, now string) error {
	if before != now {
		return nil
	}
	return fmt.Errorf("%s is still %q", what, before)
}
