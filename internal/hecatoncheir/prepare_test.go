package hecatoncheir

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
	"github.com/tartarus-sandbox/tartarus/internal/guest/system"
)

// realGuest is a guest agent on this machine that runs commands as root, and a folder for them.
func realGuest(t *testing.T) (*guestclient.Client, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the agent runs commands as a user")
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::"+dir+":/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := guest.Default()
	c.Listen, c.Root, c.FromHost = "127.0.0.1:0", dir, func(net.Addr) bool { return true }
	c.Kernel = system.Kernel{
		SetHostname: func(string) error { return nil }, SetClock: func(time.Time) error { return nil }, AddEntropy: func([]byte) error { return nil },
	}
	agent, err := guest.New(c)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- agent.Serve(ctx, l) }()
	client := guestclient.New(guestclient.Config{BaseURL: "http://" + l.Addr().String()})
	t.Cleanup(func() {
		client.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
	})
	if err := client.Init(t.Context(), guestclient.Init{EnvVars: map[string]string{"WHERE": dir}, DefaultUser: "root"}); err != nil {
		t.Fatal(err)
	}
	return client, dir
}

func TestPrepareWaitsForTheReadyCommand(t *testing.T) {
	client, dir := realGuest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	template := Template{
		ID: "tmpl", User: "root", Workdir: dir,
		StartCmd: `sleep 0.3; id -un > up; pwd >> up; echo "$WHERE" >> up; exec sleep 300`,
		ReadyCmd: `test -s up && test $(wc -l < up) = 3`,
	}
	if err := prepare(ctx, client, template); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "up"))
	if want := "root\n" + dir + "\n" + dir + "\n"; err != nil || string(got) != want {
		t.Errorf("the start command saw %q, %v; want %q", got, err, want)
	}
	running, err := client.Processes(ctx)
	if err != nil || len(running) != 1 || !strings.Contains(strings.Join(running[0].Argv, " "), "sleep 300") {
		t.Errorf("it runs on: %+v, %v", running, err)
	}
}

func TestPrepareOfCommandsThatEnd(t *testing.T) {
	client, dir := realGuest(t)
	for name, template := range map[string]Template{
		"nothing to do":             {},
		"no ready command":          {StartCmd: "exec sleep 300"},
		"no start command":          {ReadyCmd: "true"},
		"a start that daemonises":   {StartCmd: "(sleep 0.2; touch daemon) & exit 0", ReadyCmd: "test -e daemon"},
		"a bash where there is one": {ReadyCmd: `[ ! -x /bin/bash ] || [[ $BASH_VERSION ]]`},
	} {
		template.User, template.Workdir = "root", dir
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		if err := prepare(ctx, client, template); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
}

func TestPrepareThatFails(t *testing.T) {
	client, dir := realGuest(t)
	for _, c := range []struct {
		name     string
		template Template
		time     time.Duration
		kind     tartarus.Kind
		says     []string
	}{
		{"the start command fails", Template{StartCmd: "echo no such database >&2; exit 3", ReadyCmd: "false"}, 30 * time.Second, tartarus.Invalid, []string{"exit status 3", "no such database"}},
		{"never ready", Template{StartCmd: "echo listening on the wrong port; exec sleep 300", ReadyCmd: "echo port 80 is closed; exit 1"}, time.Second, tartarus.Deadline, []string{"exit status 1", "port 80 is closed", "wrong port"}},
		{"a ready command that hangs", Template{ReadyCmd: "echo trying; exec sleep 300"}, time.Second, tartarus.Deadline, []string{"did not end"}},
		{"no such user", Template{User: "nobody-here", ReadyCmd: "true"}, 30 * time.Second, tartarus.Unauthenticated, []string{"nobody-here"}},
		{"no such folder", Template{Workdir: "/not/there", StartCmd: "true"}, 30 * time.Second, tartarus.Invalid, []string{"/not/there"}},
	} {
		if c.template.User == "" {
			c.template.User = "root"
		}
		if c.template.Workdir == "" {
			c.template.Workdir = dir
		}
		ctx, cancel := context.WithTimeout(t.Context(), c.time)
		err := prepare(ctx, client, c.template)
		cancel()
		if !tartarus.Is(err, c.kind) {
			t.Errorf("%s: %v; want %s", c.name, err, c.kind)
			continue
		}
		for _, part := range c.says {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v; want it to say %q", c.name, err, part)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := prepare(ctx, client, Template{ReadyCmd: "false", User: "root", Workdir: dir}); err == nil {
		t.Error("called off, and no error")
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var out tail
	for range 1000 {
		_, _ = out.Write([]byte("0123456789"))
	}
	_, _ = out.Write([]byte(strings.Repeat("x", 3*lastOutput) + "end"))
	if len(out.buf) != lastOutput || !strings.HasSuffix(out.quote(), `xend"`) {
		t.Errorf("%d bytes: %s", len(out.buf), out.quote())
	}
}
