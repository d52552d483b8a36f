package guest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

// sh runs a shell script and returns what it printed and how it ended.
func (a *agent) sh(t *testing.T, script string, more ...func(*guestclient.Command)) (stdout, stderr string, exit guestclient.Exit) {
	t.Helper()
	cmd := guestclient.Command{Argv: []string{"/bin/sh", "-c", script}, User: "root"}
	for _, m := range more {
		m(&cmd)
	}
	var out, errs bytes.Buffer
	exit, err := a.client.Run(t.Context(), cmd, nil, &out, &errs)
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return out.String(), errs.String(), exit
}

func TestExitCodes(t *testing.T) {
	a := start(t)
	for _, c := range []struct {
		script string
		want   guestclient.Exit
		shell  int
	}{
		{"exit 0", guestclient.Exit{Code: 0, Exited: true, Status: "exit status 0"}, 0},
		{"exit 7", guestclient.Exit{Code: 7, Exited: true, Status: "exit status 7"}, 7},
		{"exit 255", guestclient.Exit{Code: 255, Exited: true, Status: "exit status 255"}, 255},
		{"kill -KILL $$", guestclient.Exit{Code: -1, Status: "signal: killed"}, 137},
		{"kill -TERM $$", guestclient.Exit{Code: -1, Status: "signal: terminated"}, 143},
		{"ulimit -c 0; kill -SEGV $$", guestclient.Exit{Code: -1, Status: "signal: segmentation fault"}, 139},
	} {
		_, _, exit := a.sh(t, c.script)
		if exit != c.want || exit.ShellCode() != c.shell {
			t.Errorf("%s: %+v, shell code %d", c.script, exit, exit.ShellCode())
		}
	}
}

func TestOutputStreamsAreKeptApart(t *testing.T) {
	a := start(t)
	out, errs, _ := a.sh(t, "echo one; echo two >&2; printf '\\000\\377x'")
	if out != "one\n\x00\xffx" || errs != "two\n" {
		t.Errorf("stdout %q, stderr %q", out, errs)
	}
}

func TestEnvironmentAndFolder(t *testing.T) {
	a := start(t)
	if err := a.client.Init(t.Context(), guestclient.Init{EnvVars: map[string]string{"GLOBAL": "g", "BOTH": "global"}, SandboxID: "ibox", TemplateID: "tpl"}); err != nil {
		t.Fatal(err)
	}
	out, _, _ := a.sh(t, "env | sort; pwd", func(c *guestclient.Command) {
		c.Env = map[string]string{"MINE": "m", "BOTH": "request"}
		c.Dir = "/tmp"
	})
	for _, want := range []string{"GLOBAL=g\n", "MINE=m\n", "BOTH=request\n", "USER=root\n", "LOGNAME=root\n", "HOME=" + a.root + "/root\n", "PATH=", "E2B_SANDBOX=true\n", "E2B_SANDBOX_ID=ibox\n", "E2B_TEMPLATE_ID=tpl\n", "\n/tmp\n"} {
		contains(t, out, want)
	}
	if strings.Contains(out, "GOCACHE") {
		t.Error("the agent's own environment leaks")
	}
	if out, _, _ = a.sh(t, "pwd"); out != a.root+"/root\n" {
		t.Errorf("without a folder it runs in %q", out)
	}
	if err := a.client.Init(t.Context(), guestclient.Init{DefaultWorkdir: "/usr"}); err != nil {
		t.Fatal(err)
	}
	if out, _, _ = a.sh(t, "pwd"); out != "/usr\n" {
		t.Errorf("with a default folder it runs in %q", out)
	}
}

func TestUsers(t *testing.T) {
	needRoot(t)
	a := start(t)
	out, _, _ := a.sh(t, "id -u; id -G; echo $HOME; pwd; touch here && ls -ln here", func(c *guestclient.Command) { c.User = "" })
	contains(t, out, "54321\n54321 54400\n"+a.home+"\n"+a.home+"\n")
	contains(t, out, " 54321 54321 ")
	if out, _, _ = a.sh(t, "id -u"); out != "0\n" {
		t.Errorf("root is %q", out)
	}
	a.write(t, "etc/passwd", "root:x:0:0::/root:/bin/sh\nlate:x:54399:54399::/:/bin/sh\n")
	if out, _, _ = a.sh(t, "id -u", func(c *guestclient.Command) { c.User = "late" }); out != "54399\n" {
		t.Errorf("a user made later is %q", out)
	}
	// Without "user", root is the default.
	if out, _, _ = a.sh(t, "id -u", func(c *guestclient.Command) { c.User = "" }); out != "0\n" {
		t.Errorf("the default user is %q", out)
	}
}

func TestStartRefuses(t *testing.T) {
	a := start(t)
	script := a.write(t, "notexec", "echo hi")
	nointerp := a.write(t, "nointerp", "#!/no/such/interpreter\n")
	if err := os.Chmod(nointerp, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cmd  guestclient.Command
		kind tartarus.Kind
		text string
	}{
		"user":        {guestclient.Command{Argv: []string{"ls"}, User: "root123"}, tartarus.Unauthenticated, "invalid username: 'root123'"},
		"cwd":         {guestclient.Command{Argv: []string{"ls"}, User: "root", Dir: "/no/such"}, tartarus.Invalid, "cwd '/no/such' does not exist"},
		"cwd file":    {guestclient.Command{Argv: []string{"ls"}, User: "root", Dir: "/etc/passwd"}, tartarus.Invalid, "not a directory"},
		"in path":     {guestclient.Command{Argv: []string{"nosuchcommand"}, User: "root"}, tartarus.NotFound, "command 'nosuchcommand' not found in PATH"},
		"by path":     {guestclient.Command{Argv: []string{"/bin/nosuch"}, User: "root"}, tartarus.NotFound, "command '/bin/nosuch' not found"},
		"not exec":    {guestclient.Command{Argv: []string{script}, User: "root"}, tartarus.Forbidden, "permission denied"},
		"interpreter": {guestclient.Command{Argv: []string{nointerp}, User: "root"}, tartarus.NotFound, "interpreter"},
		"nul":         {guestclient.Command{Argv: []string{"ls", "a\x00b"}, User: "root"}, tartarus.Invalid, "invalid"},
		"env":         {guestclient.Command{Argv: []string{"ls"}, User: "root", Env: map[string]string{"A=B": "c"}}, tartarus.Invalid, "A=B"},
		"empty":       {guestclient.Command{Argv: []string{""}, User: "root"}, tartarus.Invalid, "no command"},
		"long":        {guestclient.Command{Argv: []string{"/bin/true", strings.Repeat("x", 1<<20)}, User: "root"}, tartarus.Exhausted, "too long"},
	} {
		_, err := a.client.Start(t.Context(), c.cmd)
		if tartarus.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.text) {
			t.Errorf("%s: %s %v", name, tartarus.KindOf(err), err)
		}
	}
	list, err := a.client.Processes(t.Context())
	if err != nil || len(list) != 0 {
		t.Errorf("left over: %v, %v", list, err)
	}
}

func TestFolderOfOtherUser(t *testing.T) {
	needRoot(t)
	a := start(t)
	closed := a.root + "/closed"
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := a.client.Start(t.Context(), guestclient.Command{Argv: []string{"ls"}, User: "user", Dir: closed + "/in"})
	if !tartarus.Is(err, tartarus.Forbidden) {
		t.Errorf("cwd below a closed folder: %v", err)
	}
}

func TestBackgroundOutlivesClient(t *testing.T) {
	a := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	p, err := a.client.Start(ctx, guestclient.Command{Argv: []string{"/bin/sh", "-c", "while :; do echo tick; sleep 0.01; done"}, User: "root", Tag: "ticker"})
	if err != nil {
		t.Fatal(err)
	}
	if _, data, _, err := p.Next(); err != nil || string(data) != "tick\n" {
		t.Fatalf("%q, %v", data, err)
	}
	cancel()
	p.Close()
	again, err := a.client.Attach(t.Context(), p.PID)
	if err != nil {
		t.Fatal(err)
	}
	if _, data, _, err := again.Next(); err != nil || !strings.HasPrefix(string(data), "tick\n") {
		t.Fatalf("after reconnecting: %q, %v", data, err)
	}
	list, err := a.client.Processes(t.Context())
	if err != nil || len(list) != 1 || list[0].PID != p.PID || list[0].Tag != "ticker" || list[0].Argv[0] != "/bin/sh" {
		t.Errorf("list %+v, %v", list, err)
	}
	if err := p.Signal(t.Context(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	exit, err := again.Copy(io.Discard, io.Discard)
	if err != nil || exit.Status != "signal: terminated" {
		t.Errorf("%+v, %v", exit, err)
	}
	if err := p.Signal(t.Context(), syscall.SIGKILL); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("signal to an ended process: %v", err)
	}
}

func TestEndIsKept(t *testing.T) {
	a := start(t)
	p, err := a.client.Start(t.Context(), guestclient.Command{Argv: []string{"/bin/sh", "-c", "exit 3"}, User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Copy(io.Discard, io.Discard); err != nil {
		t.Fatal(err)
	}
	late, err := a.client.Attach(t.Context(), p.PID)
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := late.Copy(io.Discard, io.Discard); err != nil || exit.Code != 3 {
		t.Errorf("%+v, %v", exit, err)
	}
	if _, err := a.client.Attach(t.Context(), 4_000_000); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("unknown pid: %v", err)
	}
}

func TestTimeoutKillsTheWholeSession(t *testing.T) {
	a := start(t)
	var out bytes.Buffer
	p, err := a.client.Start(t.Context(), guestclient.Command{
		// One child in the group, one in a group of its own (job control), both deaf to SIGTERM.
		Argv: []string{"/bin/bash", "-c", "trap '' TERM; sleep 1000 & echo $!; set -m; sleep 1001 & echo $!; echo $$; wait"},
		User: "root", Timeout: 300 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err = p.Copy(&out, io.Discard)
	if !tartarus.Is(err, tartarus.Deadline) || time.Since(began) > 3*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	pids := strings.Fields(out.String())
	if len(pids) != 3 {
		t.Fatalf("pids %q", pids)
	}
	for _, pid := range pids {
		eventually(t, "pid "+pid+" dies", func() bool { return !alive(pid) })
	}
}

func TestTimeoutKillsAfterTheClientIsGone(t *testing.T) {
	a := start(t)
	p, err := a.client.Start(t.Context(), guestclient.Command{Argv: []string{"sleep", "1000"}, User: "root", Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	eventually(t, "the process dies", func() bool { return !alive(strconv.Itoa(p.PID)) })
}

func TestCallerDeadlineDoesNotKill(t *testing.T) {
	a := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	p, err := a.client.Start(ctx, guestclient.Command{Argv: []string{"sleep", "1000"}, User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Copy(io.Discard, io.Discard); err == nil {
		t.Fatal("the stream outlives its context")
	}
	if list, err := a.client.Processes(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("list %v, %v", list, err)
	}
}

func TestKillReachesGrandchildren(t *testing.T) {
	a := start(t)
	p, err := a.client.Start(t.Context(), guestclient.Command{Argv: []string{"/bin/sh", "-c", "sleep 1000 & echo $!; wait"}, User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	_, data, _, err := p.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	exit, err := p.Copy(io.Discard, io.Discard)
	if err != nil || exit.Status != "signal: killed" {
		t.Errorf("%+v, %v", exit, err)
	}
	child := strings.TrimSpace(string(data))
	eventually(t, "the child dies", func() bool { return !alive(child) })
}

func TestChildThatKeepsThePipeDoesNotDelayTheEnd(t *testing.T) {
	a := start(t)
	began := time.Now()
	out, _, exit := a.sh(t, "(sleep 0.3; echo late; sleep 1000) & echo $!; echo done")
	if time.Since(began) > 3*time.Second || exit.Code != 0 || !strings.HasSuffix(out, "done\n") {
		t.Fatalf("after %v: %q %+v", time.Since(began), out, exit)
	}
	// It writes on without dying of a broken pipe, and the host can still see what.
	eventually(t, "the late line is in the journal", func() bool {
		found := false
		err := a.client.Logs(t.Context(), 0, 0, false, func(e guestclient.LogEntry) error {
			found = found || e.Message == "late"
			return nil
		})
		return err == nil && found
	})
	if pid := strings.Fields(out)[0]; !alive(pid) {
		t.Error("the background child died")
	}
}

func TestBigOutput(t *testing.T) {
	a := start(t)
	const size = 64 << 20
	sum, n := sha256.New(), 0
	count := writerFunc(func(b []byte) (int, error) {
		n += len(b)
		return sum.Write(b)
	})
	exit, err := a.client.Run(t.Context(), guestclient.Command{Argv: []string{"/bin/sh", "-c", "head -c 67108864 /dev/zero"}, User: "root"}, nil, count, io.Discard)
	if err != nil || exit.Code != 0 || n != size {
		t.Fatalf("%d bytes, %+v, %v", n, exit, err)
	}
	if want := sha256.Sum256(make([]byte, size)); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("the output is not what was printed")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// A client that does not read blocks the process; the agent's memory stays as it is.
func TestStalledClientBlocksTheProcess(t *testing.T) {
	a := start(t)
	p, err := a.client.Start(t.Context(), guestclient.Command{Argv: []string{"yes"}, User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	// It is blocked once its processor time stands still.
	eventually(t, "yes blocks", func() bool {
		before := cpuTicks(t, p.PID)
		time.Sleep(50 * time.Millisecond)
		return cpuTicks(t, p.PID) == before && procState(t, p.PID) == "S"
	})
	// Another client sees the same stream once the first is gone.
	second, err := a.client.Attach(t.Context(), p.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	p.Close()
	for range 100 {
		if _, data, _, err := second.Next(); err != nil || len(data) == 0 {
			t.Fatalf("%d bytes, %v", len(data), err)
		}
	}
}

// With nobody attached the output is dropped and the process goes on.
func TestNobodyAttachedDrainsOutput(t *testing.T) {
	a := start(t)
	mark := a.root + "/mark"
	p, err := a.client.Start(t.Context(), guestclient.Command{Argv: []string{"/bin/sh", "-c", "head -c 30000000 /dev/zero; touch " + mark}, User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	eventually(t, "the process gets through", func() bool { _, err := os.Stat(mark); return err == nil })
}

func cpuTicks(t *testing.T, pid int) int {
	t.Helper()
	f := statFields(t, pid)
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return user + system
}

func procState(t *testing.T, pid int) string { return statFields(t, pid)[0] }

func statFields(t *testing.T, pid int) []string {
	t.Helper()
	_, rest, _ := strings.Cut(read(t, fmt.Sprintf("/proc/%d/stat", pid)), ") ")
	return strings.Fields(rest)
}

func TestSeveralClientsSeeTheSame(t *testing.T) {
	a := start(t)
	p, err := a.client.Start(t.Context(), guestclient.Command{Argv: []string{"/bin/sh", "-c", "read go; seq 1 20000"}, User: "root", Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	var outs [4]bytes.Buffer
	var wait sync.WaitGroup
	for i := range outs {
		stream := p
		if i > 0 {
			if stream, err = a.client.Attach(t.Context(), p.PID); err != nil {
				t.Fatal(err)
			}
		}
		wait.Go(func() {
			if exit, err := stream.Copy(&outs[i], io.Discard); err != nil || exit.Code != 0 {
				t.Errorf("client %d: %+v, %v", i, exit, err)
			}
		})
	}
	if err := p.Feed(t.Context(), strings.NewReader("go\n"), false); err != nil {
		t.Fatal(err)
	}
	wait.Wait()
	for i := range outs {
		if outs[i].Len() != 108894 || !bytes.Equal(outs[i].Bytes(), outs[0].Bytes()) {
			t.Errorf("client %d got %d bytes", i, outs[i].Len())
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	a := start(t)
	const n = 200
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() {
			var out bytes.Buffer
			exit, err := a.client.Run(t.Context(), guestclient.Command{Argv: []string{"/bin/sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i%200)}, User: "root"}, nil, &out, io.Discard)
			if err != nil || exit.Code != i%200 || out.String() != fmt.Sprintln(i) {
				t.Errorf("%d: %q %+v %v", i, out.String(), exit, err)
			}
		})
	}
	wait.Wait()
	if list, err := a.client.Processes(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left over: %v, %v", list, err)
	}
}

func TestInterrupt(t *testing.T) {
	a := start(t)
	p, err := a.client.Start(t.Context(), guestclient.Command{Argv: []string{"/bin/bash", "-c", "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.01; done"}, User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	if _, data, _, err := p.Next(); err != nil || string(data) != "ready\n" {
		t.Fatalf("%q, %v", data, err)
	}
	if err := p.Signal(t.Context(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if exit, err := p.Copy(&out, io.Discard); err != nil || exit.Code != 9 || out.String() != "interrupted\n" {
		t.Errorf("%q %+v, %v", out.String(), exit, err)
	}
	if err := p.Signal(t.Context(), syscall.SIGHUP); !tartarus.Is(err, tartarus.Invalid) {
		t.Errorf("a signal that is not among those that can be sent: %v", err)
	}
}
