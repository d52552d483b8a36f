package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/daemon"
)

func TestRunPassesOutputAndCodeOnAndRemovesTheSandbox(t *testing.T) {
	x := newFixture(t)
	x.guest.commands["job"] = func(p *fakeProcess) {
		p.out("to stdout\n")
		p.events <- event{stderr: []byte("to stderr\n")}
		p.exit(7)
	}
	if code := x.run(t, "run", "-e", "A=1", "--memory", "1G", "--cpus", "2", "--metadata", "k=v", "-w", "/tmp", "-u", "root", "--", "job", "-x"); code != 7 {
		t.Errorf("code %d", code)
	}
	if x.out.String() != "to stdout\n" || !strings.HasSuffix(x.err.String(), "to stderr\n") || !strings.Contains(x.err.String(), "template build base") {
		t.Errorf("stdout %q, stderr %q", &x.out, &x.err)
	}
	if left := x.server.alive(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	in, c := x.server.created[0], x.guest.runs[0]
	if in.TemplateID != "" || *in.MemoryMB != 1024 || *in.CPUCount != 2 || in.EnvVars["A"] != "1" || in.Metadata["k"] != "v" || in.DiskSizeMB != nil {
		t.Errorf("asked for %+v", in)
	}
	if c.workdir != "/tmp" || c.user != "root" || !c.input || c.terminal != nil || strings.Join(c.argv, " ") != "job -x" {
		t.Errorf("ran %+v", c)
	}
}

func TestRunTemplateIsBaseWhenBuilt(t *testing.T) {
	x := newFixture(t)
	x.server.base = true
	x.guest.commands["job"] = func(p *fakeProcess) { p.exit(0) }
	if code := x.run(t, "run", "job"); code != 0 || x.err.Len() > 0 {
		t.Errorf("code %d, %+v", code, x.server.created)
	}
}

func TestRunNetworkFlags(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"nothing":    {nil, `{"templateID":""}`},
		"none":       {[]string{"--no-network"}, `{"templateID":"","allow_internet_access":false}`},
		"allow":      {[]string{"--allow", "1.1.1.1,example.com"}, `{"templateID":"","network":{"allowOut":["1.1.1.1","example.com"],"denyOut":["0.0.0.0/0"]}}`},
		"allow deny": {[]string{"--allow", "1.1.1.1", "--deny", "1.0.0.0/8"}, `{"templateID":"","network":{"allowOut":["1.1.1.1"],"denyOut":["1.0.0.0/8"]}}`},
		"headers": {[]string{"--header", "a.example=Authorization: Bearer ${e2b.secrets.k}", "--header", "a.example=X:  y:z ", "--token", "svc=https://sts"},
			`{"templateID":"","network":{"rules":{"a.example":[{"transform":{"headers":{"Authorization":"Bearer ${e2b.secrets.k}","X":"y:z"}}}]}},"iam":{"tokens":{"svc":{"audience":"https://sts","tokenType":"JWT-SVID"}}}}`},
		"proxy": {[]string{"--dns", "9.9.9.9", "--egress-proxy", "me@proxy.example:1080", "--egress-proxy-tls"},
			`{"templateID":"","network":{"egressProxy":{"address":"proxy.example:1080","username":"me","password":"word","tls":{"enabled":true}},"dnsServers":["9.9.9.9"]}}`},
	} {
		cmd := createCommand(&Env{})
		var w wanted
		cmd.ResetFlags()
		w.add(cmd.Flags())
		if err := cmd.ParseFlags(tc.args); err != nil {
			t.Fatal(err)
		}
		in, err := w.request(lookup(map[string]string{"TARTARUS_EGRESS_PROXY_PASSWORD": "word"}))
		if raw, _ := json.Marshal(in); err != nil || string(raw) != tc.want {
			t.Errorf("%s: %s, %v; want %s", name, raw, err, tc.want)
		}
	}
}

func TestRunForwardsStdin(t *testing.T) {
	x := newFixture(t)
	x.Stdin = strings.NewReader(strings.Repeat("x", 200_000))
	x.guest.commands["count"] = func(p *fakeProcess) {
		n := 0
		for data := range p.input {
			n += len(data)
		}
		p.out(fmt.Sprint(n))
		p.exit(0)
	}
	if code := x.run(t, "run", "-q", "--", "count"); code != 0 || x.out.String() != "200000" {
		t.Errorf("code %d, %q", code, &x.out)
	}
}

func TestRunOfWhatIsNotThere(t *testing.T) {
	x := newFixture(t)
	if code := x.run(t, "run", "-q", "--", "absent"); code != 127 || !strings.Contains(x.err.String(), "'absent' not found") {
		t.Errorf("code %d", code)
	}
	if code := x.run(t, "run", "--template", "absent", "--", "x"); code != 125 || !strings.Contains(x.err.String(), "template \"absent\" not found") {
		t.Errorf("code %d", code)
	}
	if left := x.server.alive(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestRunKeep(t *testing.T) {
	x := newFixture(t)
	x.guest.commands["job"] = func(p *fakeProcess) { p.exit(3) }
	if code := x.run(t, "run", "--keep", "-q", "--", "job"); code != 3 {
		t.Errorf("code %d", code)
	}
	left := x.server.alive()
	if len(left) != 1 || !strings.Contains(x.err.String(), left[0]) {
		t.Errorf("left: %v", left)
	}
	if last := x.server.timeouts[len(x.server.timeouts)-1]; last != 3600 {
		t.Errorf("kept for %d s", last)
	}
}

func TestRunExplainsAnEndUnderTheCommand(t *testing.T) {
	for reason, want := range map[tartarus.Reason]struct {
		code int
		text string
	}{
		tartarus.ReasonOOM:     {137, "--memory"},
		tartarus.ReasonTimeout: {125, "--timeout"},
		tartarus.ReasonCrashed: {125, "ended under the command: crashed kernel went away"},
	} {
		x := newFixture(t)
		x.guest.commands["job"] = func(p *fakeProcess) {
			p.gone() // the stream breaks before the node has noticed
			x.server.end(reason, "kernel went away")
		}
		if code := x.run(t, "run", "-q", "--", "job"); code != want.code || !strings.Contains(x.err.String(), want.text) {
			t.Errorf("%s: code %d", reason, code)
		}
	}
}

// signalled runs a command line whose guest program tells when it wants a signal sent to this process.
func signalled(t *testing.T, x *fixture, send <-chan syscall.Signal, args ...string) int {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	x.signals = watchSignals(cancel)
	defer x.signals.stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for sig := range send {
			x.signals.deliver(sig, cancel)
		}
	}()
	var o runOptions
	o.quiet = true
	err := x.Env.run(ctx, &o, args)
	<-done
	return x.finish(err)
}

func TestInterruptGoesToTheCommand(t *testing.T) {
	x := newFixture(t)
	send := make(chan syscall.Signal)
	x.guest.commands["job"] = func(p *fakeProcess) {
		defer close(send)
		<-p.reading
		send <- syscall.SIGINT
		p.died(<-p.signals)
	}
	if code := signalled(t, x, send, "job"); code != 130 || len(x.server.alive()) > 0 {
		t.Errorf("code %d, left %v", code, x.server.alive())
	}
}

func TestAgentWithoutSIGINTGetsSIGTERM(t *testing.T) {
	x := newFixture(t)
	send := make(chan syscall.Signal)
	x.guest.commands["job"] = func(p *fakeProcess) {
		p.noINT = true
		defer close(send)
		<-p.reading
		send <- syscall.SIGINT
		p.died(<-p.signals)
	}
	if code := signalled(t, x, send, "job"); code != 143 {
		t.Errorf("code %d", code)
	}
}

func TestSecondInterruptKills(t *testing.T) {
	x := newFixture(t)
	send := make(chan syscall.Signal)
	x.guest.commands["job"] = func(p *fakeProcess) {
		defer close(send)
		<-p.reading
		send <- syscall.SIGINT
		if got := <-p.signals; got != syscall.SIGINT {
			t.Errorf("first: %s", got)
		}
		send <- syscall.SIGINT
		p.died(<-p.signals)
	}
	if code := signalled(t, x, send, "job"); code != 137 || len(x.server.alive()) > 0 {
		t.Errorf("code %d, left %v", code, x.server.alive())
	}
}

// TestThirdInterruptDoesNotWait: also a command that no signal ends is left behind, and its sandbox removed.
func TestThirdInterruptDoesNotWait(t *testing.T) {
	x := newFixture(t)
	send := make(chan syscall.Signal)
	x.guest.commands["job"] = func(p *fakeProcess) {
		defer close(send)
		<-p.reading
		send <- syscall.SIGINT
		<-p.signals
		send <- syscall.SIGINT
		<-p.signals
		send <- syscall.SIGINT
	}
	if code := signalled(t, x, send, "job"); code != 130 || len(x.server.alive()) > 0 {
		t.Errorf("code %d, left %v", code, x.server.alive())
	}
}

func TestTerminateIsPassedOn(t *testing.T) {
	x := newFixture(t)
	send := make(chan syscall.Signal)
	x.guest.commands["job"] = func(p *fakeProcess) {
		defer close(send)
		<-p.reading
		send <- syscall.SIGTERM
		<-p.signals
		p.exit(9) // it had a handler
	}
	if code := signalled(t, x, send, "job"); code != 9 || len(x.server.alive()) > 0 {
		t.Errorf("code %d, left %v", code, x.server.alive())
	}
}

// TestInterruptDuringCreateLeavesNothing: the create is under way when the signal comes; what it makes is removed.
func TestInterruptDuringCreateLeavesNothing(t *testing.T) {
	x := newFixture(t)
	x.server.slow = make(chan struct{})
	send := make(chan syscall.Signal)
	go func() {
		<-x.server.creating
		send <- syscall.SIGTERM
		close(send)
		close(x.server.slow)
	}()
	if code := signalled(t, x, send, "job"); code == 0 {
		t.Error("code 0")
	}
	if left := x.server.alive(); len(left) > 0 || len(x.server.sandboxes) != 1 {
		t.Errorf("made %d, left %v", len(x.server.sandboxes), left)
	}
}

// closedPipe is a stdout whose reader has gone.
type closedPipe struct{}

func (closedPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestReaderOfOutputGoesAway(t *testing.T) {
	x := newFixture(t)
	x.Stdout = closedPipe{}
	x.guest.commands["yes"] = func(p *fakeProcess) {
		p.out("y\n")
		if got := <-p.signals; got != syscall.SIGKILL {
			t.Errorf("got %s", got)
		}
	}
	if code := x.run(t, "run", "-q", "--", "yes"); code != 141 || len(x.server.alive()) > 0 {
		t.Errorf("code %d, left %v", code, x.server.alive())
	}
}

func TestTerminalFlag(t *testing.T) {
	x := newFixture(t)
	x.Stdin = strings.NewReader("ls\n")
	x.guest.commands["sh"] = func(p *fakeProcess) {
		got := string(<-p.input) + string(<-p.input)
		p.out(fmt.Sprintf("%q %d %s", got, p.command.terminal.cols, p.command.env["TERM"]))
		p.exit(0)
	}
	if code := x.run(t, "run", "-q", "-t", "--", "sh"); code != 0 || x.out.String() != `"ls\n\x04" 80 xterm-256color` {
		t.Errorf("code %d, %q", code, &x.out)
	}
}

// fakeStack is a server in this process that is a fakeServer.
type fakeStack struct {
	server *fakeServer
	ready  chan struct{}
	ended  bool
	fail   error
}

func (s *fakeStack) Run(ctx context.Context) error {
	if s.fail != nil {
		return s.fail
	}
	close(s.ready)
	<-ctx.Done()
	s.ended = true
	return nil
}
func (s *fakeStack) Ready() <-chan struct{} { return s.ready }
func (s *fakeStack) About() daemon.About {
	return daemon.About{URL: s.server.URL, APIKey: testKey, Driver: "gvisor", Tier: tartarus.TierUserKernel}
}

// alone is a fixture without any server but the one it starts itself.
func alone(t *testing.T) (*fixture, *fakeStack, *daemon.Config) {
	if os.Geteuid() != 0 {
		t.Skip("a stack of one's own needs root")
	}
	x := newFixture(t)
	st := &fakeStack{server: x.server, ready: make(chan struct{})}
	got := new(daemon.Config)
	x.lookup = lookup(map[string]string{"TARTARUS_DATA": t.TempDir(), "TARTARUS_API_ADDR": "127.0.0.1:1"})
	x.stack = func(c daemon.Config, _ string) (Stack, error) {
		*got = c
		return st, nil
	}
	return x, st, got
}

func TestRunWithoutAServerStartsItsOwn(t *testing.T) {
	x, st, got := alone(t)
	x.guest.commands["job"] = func(p *fakeProcess) { p.exit(5) }
	if code := x.run(t, "run", "-q", "--runtime", "gvisor", "--", "job"); code != 5 {
		t.Errorf("code %d", code)
	}
	if !st.ended || len(x.server.alive()) > 0 {
		t.Errorf("ended %v, left %v", st.ended, x.server.alive())
	}
	if !got.Ephemeral || got.APIAddr != "127.0.0.1:0" || got.EdgeAddr != "" || got.Runtime != "gvisor" {
		t.Errorf("configured %+v", got)
	}
}

func TestKeepNeedsAServer(t *testing.T) {
	x, st, _ := alone(t)
	if code := x.run(t, "run", "-q", "--keep", "--", "job"); code != 125 || !strings.Contains(x.err.String(), "--keep needs a server") || st.ended {
		t.Errorf("code %d", code)
	}
}

func TestRunTellsWhyItsOwnServerDoesNotStart(t *testing.T) {
	x, st, _ := alone(t)
	st.fail = tartarus.Errorf(tartarus.Unsupported, "no runtime is usable")
	if code := x.run(t, "run", "-q", "--", "job"); code != 125 || !strings.Contains(x.err.String(), "no runtime is usable") {
		t.Errorf("code %d", code)
	}
}

func TestUpAnnouncesItselfWithoutTheKey(t *testing.T) {
	x, _, _ := alone(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	x.Stdout = w
	code := make(chan int)
	go func() { code <- x.main(ctx, []string{"up", "--json"}) }()
	var doc upDocument
	if err := json.NewDecoder(r).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	if doc.URL != x.server.URL || doc.Tier != "user-kernel" || filepath.Base(doc.APIKeyFile) != "admin.key" {
		t.Errorf("%+v", doc)
	}
	cancel()
	if got := <-code; got != 0 || strings.Contains(x.err.String(), testKey) {
		t.Errorf("code %d, %s", got, &x.err)
	}
}
