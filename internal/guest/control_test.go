package guest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

func TestInit(t *testing.T) {
	a := start(t)
	now := time.Now().Add(-time.Hour)
	in := guestclient.Init{
		EnvVars: map[string]string{"A": "1"}, Timestamp: now, SandboxID: "ibox", TemplateID: "tpl", Hostname: "ibox",
		MachineID: "0123456789abcdef0123456789abcdef", Entropy: "c2VlZA==", Hosts: map[string]string{"db": "10.0.0.5", "api": "10.0.0.4"}, DNSServers: []string{"10.0.0.1", "10.0.0.2"},
	}
	for range 2 { // the host repeats it
		if err := a.client.Init(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	a.mu.Lock()
	k := a.kernel
	a.mu.Unlock()
	if k.hostname != "ibox" || !k.clock.Equal(now) || string(k.entropy) != "seed" {
		t.Errorf("%+v", k)
	}
	for name, want := range map[string]string{
		"etc/hostname": "ibox\n", "etc/machine-id": "0123456789abcdef0123456789abcdef\n", "etc/resolv.conf": "nameserver 10.0.0.1\nnameserver 10.0.0.2\n",
		"run/e2b/.E2B_SANDBOX": "true", "run/e2b/.E2B_SANDBOX_ID": "ibox", "run/e2b/.E2B_TEMPLATE_ID": "tpl",
		"etc/hosts": "# tartarus begin\n127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 ibox\n10.0.0.4 api\n10.0.0.5 db\n# tartarus end\n",
	} {
		if got := read(t, a.root+"/"+name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	// Another identity, with shorter names, and a file that somebody changed meanwhile.
	a.write(t, "etc/hosts", "127.0.0.1 localhost\n10.9.9.9 mine\n"+read(t, a.root+"/etc/hosts")+"10.8.8.8 below")
	if err := a.client.Init(t.Context(), guestclient.Init{EnvVars: map[string]string{"B": "2"}, SandboxID: "i2", Hostname: "i2", DNSServers: []string{"::1"}}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, a.root+"/etc/hosts"); got != "127.0.0.1 localhost\n10.9.9.9 mine\n10.8.8.8 below\n# tartarus begin\n127.0.1.1 i2\n# tartarus end\n" {
		t.Errorf("%q", got)
	}
	if got := read(t, a.root+"/etc/hostname") + read(t, a.root+"/etc/resolv.conf"); got != "i2\nnameserver ::1\n" {
		t.Errorf("%q", got)
	}
	if status, _, body := a.do(t, "GET", "/envs", nil); status != 200 || body != `{"A":"1","B":"2","E2B_SANDBOX":"true","E2B_SANDBOX_ID":"i2","E2B_TEMPLATE_ID":"tpl"}` {
		t.Errorf("%d %s", status, body)
	}
	status, h, _ := a.do(t, "POST", "/init", strings.NewReader(`{"lifecycleID":"x","volumeMounts":[],"hyperloopIP":"1.2.3.4"}`))
	if status != 204 || h.Get("X-Envd-Version") != "0.6.13" {
		t.Errorf("%d %v", status, h)
	}
}

func TestInitKeepsAClockThatIsRight(t *testing.T) {
	a := start(t)
	if err := a.client.Init(t.Context(), guestclient.Init{Timestamp: time.Now().Add(300 * time.Millisecond)}); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.kernel.clock.IsZero() {
		t.Error("the clock was set")
	}
}

func TestInitSkipsWhatIsNotPermitted(t *testing.T) {
	a := start(t)
	a.kernel.deny = unix.EPERM
	if err := a.client.Init(t.Context(), guestclient.Init{Timestamp: time.Unix(1, 0), Hostname: "ibox", Entropy: "c2VlZA=="}); err != nil {
		t.Errorf("%v", err)
	}
	if read(t, a.root+"/etc/hostname") != "ibox\n" {
		t.Error("the rest is not done")
	}
}

func TestInitRefusesWithoutEffect(t *testing.T) {
	a := start(t)
	for _, body := range []string{
		`{`, `[]`, `{"envVars":{"A=B":"x"}}`, `{"envVars":{"":"x"}}`, `{"envVars":{"A":"\u0000"}}`, `{"hostname":"a b"}`, `{"hostname":"-a"}`,
		`{"machineID":"xyz"}`, `{"machineID":"0123456789ABCDEF0123456789ABCDEF"}`, `{"entropy":"!"}`, `{"hosts":{"a\nb":"10.0.0.1"}}`, `{"hosts":{"a":"10.0.0.1\nx"}}`,
		`{"dnsServers":["10.0.0.1\noptions x"]}`, `{"dnsServers":["1","2","3","4","5","6","7","8","9"]}`, `{"sandboxID":"a\nb"}`, `{"timestamp":"yesterday"}`,
	} {
		body = strings.Replace(body, "{", `{"accessToken":"leaked",`, 1)
		if status, _, answer := a.do(t, "POST", "/init", strings.NewReader(body)); status != 400 && status != 413 {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	if status, _, _ := a.do(t, "GET", "/envs", nil); status != 200 {
		t.Error("a refused init set the token")
	}
	if status, _, answer := a.do(t, "POST", "/init", strings.NewReader(`{"hostname":"`+strings.Repeat("x", 5<<20))); status != 413 {
		t.Errorf("too large: %d %s", status, answer)
	}
}

func TestMetrics(t *testing.T) {
	a := start(t)
	m, err := a.client.Metrics(t.Context())
	if err != nil || m.CPUCount < 1 || m.MemTotal < 1<<20 || m.MemUsed == 0 || m.MemUsed > m.MemTotal || m.DiskTotal == 0 || m.DiskUsed > m.DiskTotal || m.MemTotalMiB != m.MemTotal>>20 || time.Since(time.Unix(m.Time, 0)).Abs() > time.Minute {
		t.Errorf("%+v %v", m, err)
	}
	if m, err = a.client.Metrics(t.Context()); err != nil || m.CPUUsed < 0 || m.CPUUsed > 100 {
		t.Errorf("%+v %v", m, err)
	}
	if err := a.client.Health(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLogs(t *testing.T) {
	a := start(t)
	secret := "hunter2"
	a.sh(t, "read x; echo out; echo err >&2; printf no-newline; exit 2", func(c *guestclient.Command) { c.Env = map[string]string{"SECRET": secret} })
	var lines []string
	var last int64
	collect := func(e guestclient.LogEntry) error {
		if e.Seq != last+1 || e.Time.IsZero() {
			t.Errorf("%+v after %d", e, last)
		}
		last = e.Seq
		lines = append(lines, fmt.Sprint(e.Level, " ", e.Message, " ", e.Fields["stream"], " ", e.Fields["status"]))
		return nil
	}
	eventually(t, "the end is logged", func() bool {
		if err := a.client.Logs(t.Context(), last, 0, false, collect); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(strings.Join(lines, "\n"), "process ended")
	})
	text := strings.Join(lines, "\n")
	for _, want := range []string{"info process started <nil> <nil>", "info out stdout <nil>", "info err stderr <nil>", "info no-newline stdout <nil>", "info process ended <nil> exit status 2"} {
		contains(t, text, want)
	}
	if strings.Contains(text, secret) {
		t.Error("an environment value is in the log")
	}
	// A limit, and then what follows.
	var first []int64
	if err := a.client.Logs(t.Context(), 1, 2, false, func(e guestclient.LogEntry) error { first = append(first, e.Seq); return nil }); err != nil || len(first) != 2 || first[0] != 2 {
		t.Errorf("%v %v", first, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	followed := make(chan string, 100)
	done := make(chan error, 1)
	go func() {
		done <- a.client.Logs(ctx, last, 0, true, func(e guestclient.LogEntry) error { followed <- e.Message; return nil })
	}()
	a.sh(t, "echo followed")
	for m := ""; m != "followed"; {
		select {
		case m = <-followed:
		case <-time.After(10 * time.Second):
			t.Fatal("nothing follows")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("follow: %v", err)
	}
	for _, query := range []string{"since=x", "since=-1", "limit=-1", "limit=9999999999999999999"} {
		if status, _, body := a.do(t, "GET", "/logs?"+query, nil); status != 400 {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
	stop := errors.New("stop")
	if err := a.client.Logs(t.Context(), 0, 0, false, func(guestclient.LogEntry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

// A program that prints without end neither fills the journal's memory nor pushes everything else out at once.
func TestLogsAreBounded(t *testing.T) {
	a := start(t, func(c *guest.Config) { c.JournalBytes = 64 << 10 })
	a.sh(t, "yes | head -c 3000000; head -c 100000 /dev/zero | tr '\\0' x; echo; echo last")
	n, size, skipped := 0, 0, 0.0
	eventually(t, "the output is in the journal", func() bool {
		n, size, skipped = 0, 0, 0
		err := a.client.Logs(t.Context(), 0, 0, false, func(e guestclient.LogEntry) error {
			n++
			size += len(e.Message)
			if s, ok := e.Fields["linesSkipped"].(float64); ok {
				skipped += s
			}
			if len(e.Message) > 2<<10 {
				t.Errorf("a line of %d bytes", len(e.Message))
			}
			return nil
		})
		return err == nil && n > 10
	})
	if size > 64<<10 {
		t.Errorf("%d bytes in the journal", size)
	}
}

func TestShutdown(t *testing.T) {
	a := start(t)
	run := func(script string) (pid string) {
		p, err := a.client.Start(t.Context(), guestclient.Command{Argv: []string{"/bin/bash", "-c", script}, User: "root"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		_, data, _, err := p.Next()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	mark := a.root + "/mark"
	polite := run("trap 'touch " + mark + "; exit' TERM; echo $$; while :; do sleep 0.01; done")
	deaf := run("trap '' TERM; echo $$; while :; do sleep 0.01; done")
	orphan := run("setsid sleep 1000 & echo $!; wait")
	began := time.Now()
	left, err := a.client.Shutdown(t.Context(), time.Second)
	if err != nil || len(left) != 0 {
		t.Errorf("%v %v", left, err)
	}
	if took := time.Since(began); took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("the deaf one was given %v", took)
	}
	if _, err := os.Stat(mark); err != nil {
		t.Error("the polite one was not asked")
	}
	for _, pid := range []string{polite, deaf, orphan} {
		if alive(pid) {
			t.Errorf("pid %s lives", pid)
		}
	}
	// With nothing left it takes no time, and the agent goes on.
	began = time.Now()
	if left, err := a.client.Shutdown(t.Context(), 10*time.Second); err != nil || len(left) != 0 || time.Since(began) > 2*time.Second {
		t.Errorf("%v %v after %v", left, err, time.Since(began))
	}
	if out, _, _ := a.sh(t, "echo still here"); out != "still here\n" {
		t.Errorf("%q", out)
	}
	for _, body := range []string{`{"graceMs":-1}`, `{"graceMs":99999999999}`, `{"graceMs":"x"}`, `{`} {
		if status, _, answer := a.do(t, "POST", "/shutdown", strings.NewReader(body)); status != 400 {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
}

func TestTunnel(t *testing.T) {
	a := start(t)
	_, portText, err := net.SplitHostPort(a.addr)
	if err != nil {
		t.Fatal(err)
	}
	agentPort, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	client := guestclient.New(guestclient.Config{BaseURL: a.url, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, a.addr)
	}})
	if _, err := client.Tunnel(t.Context(), 1); !tartarus.Is(err, tartarus.Unsupported) {
		t.Errorf("without an address: %v", err)
	}
	client = guestclient.New(guestclient.Config{Addr: loopback, Port: int(agentPort)})
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	conn, err := client.Tunnel(t.Context(), echo.Addr().(*net.TCPAddr).Port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintln(conn, "hello")
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "hello\n" {
		t.Errorf("%q %v", line, err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the end is not passed on: %d %v", n, err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := free.Addr().(*net.TCPAddr).Port
	free.Close()
	if _, err := client.Tunnel(t.Context(), closed); !tartarus.Is(err, tartarus.PortClosed) {
		t.Errorf("nobody listens: %v", err)
	}
	for _, query := range []string{"port=0", "port=65536", "port=x", ""} {
		if status, _, _ := a.do(t, "GET", "/tunnel?"+query, nil, "Connection", "Upgrade", "Upgrade", "tartarus-tcp"); status != 400 {
			t.Errorf("%q: %d", query, status)
		}
	}
	if status, _, _ := a.do(t, "GET", "/tunnel?port=80", nil); status != 400 {
		t.Errorf("no upgrade: %d", status)
	}
}

func TestInitWhenUp(t *testing.T) {
	hold, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := hold.Addr().(*net.TCPAddr)
	hold.Close()
	client := guestclient.New(guestclient.Config{Addr: loopback, Port: addr.Port})
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := client.InitWhenUp(ctx, guestclient.Init{}); !tartarus.Is(err, tartarus.Deadline) {
		t.Errorf("nobody there: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- client.InitWhenUp(t.Context(), guestclient.Init{SandboxID: "ilate"}) }()
	a := start(t, func(c *guest.Config) { c.Listen = addr.String() })
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not notice that the agent is up")
	}
	if got := read(t, a.root+"/run/e2b/.E2B_SANDBOX_ID"); got != "ilate" {
		t.Errorf("%q", got)
	}
	if err := client.InitWhenUp(t.Context(), guestclient.Init{Hostname: "not a name"}); !tartarus.Is(err, tartarus.Invalid) {
		t.Errorf("a refusal is final: %v", err)
	}
}

func TestUnreachableAgent(t *testing.T) {
	client := guestclient.New(guestclient.Config{BaseURL: "http://127.0.0.1:1"})
	if err := client.Health(t.Context()); !tartarus.Is(err, tartarus.GuestGone) {
		t.Errorf("%v", err)
	}
	if _, err := client.Start(t.Context(), guestclient.Command{Argv: []string{"ls"}}); !tartarus.Is(err, tartarus.GuestGone) {
		t.Errorf("%v", err)
	}
	if _, err := client.Start(t.Context(), guestclient.Command{}); !tartarus.Is(err, tartarus.Invalid) {
		t.Errorf("%v", err)
	}
}

// A guest may answer anything.
func TestHostileAgent(t *testing.T) {
	endless := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		if r.URL.Path == "/logs" {
			io.WriteString(w, `{"message":"`)
		}
		for block := strings.Repeat("x", 64<<10); ; {
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(endless)}
	go srv.Serve(listener)
	defer srv.Close()
	client := guestclient.New(guestclient.Config{BaseURL: "http://" + listener.Addr().String()})
	defer client.Close()
	if _, err := client.Metrics(t.Context()); err == nil {
		t.Error("metrics")
	}
	if err := client.Logs(t.Context(), 0, 0, false, func(guestclient.LogEntry) error { return nil }); !tartarus.Is(err, tartarus.TooLarge) {
		t.Errorf("logs: %v", err)
	}
	if _, err := client.Start(t.Context(), guestclient.Command{Argv: []string{"ls"}}); err == nil {
		t.Error("start")
	}
	if _, err := client.Stat(t.Context(), "", "/"); err == nil {
		t.Error("stat")
	}
}
