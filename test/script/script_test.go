// Package script runs the built program by scripts, as a shell would. Each script has a data folder and addresses of its
// own, and whatever a script starts has ended when it ends.
package script

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// program copies the program under test to a folder of its own, so that a user without rights can run it too.
var program = sync.OnceValues(func() (dir string, err error) {
	path := os.Getenv("TARTARUS_BIN")
	if path == "" {
		path = "../../bin/tartarus"
	}
	in, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("needs the built program (make build): %w", err)
	}
	defer in.Close()
	if dir, err = os.MkdirTemp("", "tartarus-script-"); err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return dir, err
	}
	out, err := os.OpenFile(filepath.Join(dir, "tartarus"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return dir, err
	}
	_, err = io.Copy(out, in)
	return dir, errors.Join(err, out.Close())
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, _ := program(); dir != "" {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

func TestScript(t *testing.T) {
	dir, err := program()
	if errors.Is(err, os.ErrNotExist) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup:               func(e *testscript.Env) error { return setUp(e, dir) },
		Condition:           condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": code, "await": await, "until": until, "capture": capture, "terminate": terminate, "start": start, "finish": finish,
			"waitlog": waitLog,
		},
	})
}

func setUp(e *testscript.Env, bin string) error {
	api, err := freeAddr()
	if err != nil {
		return err
	}
	edge, err := freeAddr()
	if err != nil {
		return err
	}
	e.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	e.Setenv("HOME", e.WorkDir)
	e.Setenv("TARTARUS_DATA", filepath.Join(e.WorkDir, "data"))
	e.Setenv("TARTARUS_API_ADDR", api)
	e.Setenv("TARTARUS_EDGE_ADDR", edge)
	e.Values[processes{}] = map[string]*exec.Cmd{}
	return nil
}

// freeAddr finds an address that nobody listens on now.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func condition(name string) (bool, error) {
	if name == "root" {
		return os.Geteuid() == 0, nil
	}
	return false, fmt.Errorf("unknown condition %s", name)
}

// code N PROGRAM ARG... runs it and expects this exit code.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N program args...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// patience is how long anything here may take on a loaded machine.
const patience = 30 * time.Second

// await ADDRESS waits until a server answers there.
func await(ts *testscript.TestScript, neg bool, args []string) {
	poll(ts, "a server at "+args[0], func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+args[0]+"/health", nil)
		ts.Check(err)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusNoContent || res.StatusCode == http.StatusOK
	})
}

// until FILE TEXT waits until the file holds the text.
func until(ts *testscript.TestScript, neg bool, args []string) {
	poll(ts, fmt.Sprintf("%q in %s", args[1], args[0]), func() bool {
		raw, _ := os.ReadFile(ts.MkAbs(args[0]))
		return strings.Contains(string(raw), args[1])
	})
}

// waitlog SANDBOX TEXT waits until the log of a sandbox holds the text.
func waitLog(ts *testscript.TestScript, neg bool, args []string) {
	poll(ts, fmt.Sprintf("%q in the log of %s", args[1], args[0]), func() bool {
		return ts.Exec("tartarus", "logs", args[0]) == nil && strings.Contains(ts.ReadFile("stdout"), args[1])
	})
}

func poll(ts *testscript.TestScript, what string, ok func() bool) {
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, name := range []string{"one", "two", "job", "server"} {
				raw, _ := os.ReadFile(ts.MkAbs(name + ".err"))
				ts.Logf("%s.err: %s", name, raw)
			}
			ts.Fatalf("waited %s for %s", patience, what)
		}
	}
}

// capture NAME sets a variable to what the last command printed.
func capture(ts *testscript.TestScript, neg bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// processes is the key of those that a script has started.
type processes struct{}

// start NAME PROGRAM ARG... runs it in the background, with its output in NAME.out and NAME.err.
func start(ts *testscript.TestScript, neg bool, args []string) {
	cmd := exec.Command(args[1], args[2:]...)
	path, err := exec.LookPath(args[1])
	if args[1] == "tartarus" {
		dir, _ := program()
		path, err = filepath.Join(dir, "tartarus"), nil
	}
	ts.Check(err)
	cmd.Path, cmd.Err = path, nil
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "TARTARUS_DATA", "TARTARUS_API_ADDR", "TARTARUS_EDGE_ADDR", "TARTARUS_URL"} {
		if v := ts.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	stdout, err := os.Create(ts.MkAbs(args[0] + ".out"))
	ts.Check(err)
	defer stdout.Close()
	stderr, err := os.Create(ts.MkAbs(args[0] + ".err"))
	ts.Check(err)
	defer stderr.Close()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	ts.Check(cmd.Start())
	running := ts.Value(processes{}).(map[string]*exec.Cmd)
	running[args[0]] = cmd
	ts.Defer(func() {
		if running[args[0]] != nil { // the script failed before it ended
			_ = cmd.Process.Signal(os.Interrupt)
			_ = cmd.Wait()
		}
	})
}

// terminate NAME SIGNAL sends a signal to what start started.
func terminate(ts *testscript.TestScript, neg bool, args []string) {
	sig, ok := map[string]os.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}[args[1]]
	cmd := ts.Value(processes{}).(map[string]*exec.Cmd)[args[0]]
	if !ok || cmd == nil {
		ts.Fatalf("usage: terminate NAME INT|TERM|KILL")
	}
	ts.Check(cmd.Process.Signal(sig))
}

// finish NAME CODE[|CODE] waits for the end of what start started, and expects one of these exit codes.
func finish(ts *testscript.TestScript, neg bool, args []string) {
	running := ts.Value(processes{}).(map[string]*exec.Cmd)
	cmd := running[args[0]]
	if cmd == nil {
		ts.Fatalf("%s does not run", args[0])
	}
	watchdog := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait()
	delete(running, args[0])
	if !watchdog.Stop() {
		ts.Fatalf("%s did not end within %s", args[0], patience)
	}
	if got := strconv.Itoa(cmd.ProcessState.ExitCode()); !slices.Contains(strings.Split(args[1], "|"), got) {
		ts.Fatalf("%s: exit code %s (%s), want %s\n%s", args[0], got, cmd.ProcessState, args[1], ts.ReadFile(args[0]+".err"))
	}
}
