package guest_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
	"github.com/tartarus-sandbox/tartarus/internal/guest/hostapi"
)

// hook puts an executable among those that run at the end.
func (a *agent) hook(t *testing.T, name, script string, mode os.FileMode) {
	t.Helper()
	dir := filepath.Join(a.root, hostapi.HooksDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), mode); err != nil {
		t.Fatal(err)
	}
}

// background starts a shell line that first prints its process number, and returns that.
func (a *agent) background(t *testing.T, script string) string {
	t.Helper()
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

// TestTerminate holds the order: hooks by name, each with the reason, then SIGTERM to everyone; nothing is killed.
func TestTerminate(t *testing.T) {
	a := start(t)
	out := filepath.Join(a.root, "order")
	a.hook(t, "10-first", `echo "first $TARTARUS_REASON" >> `+out, 0o755)
	a.hook(t, "20-fails", `echo second >> `+out+`; exit 3`, 0o755)
	a.hook(t, "30-last", `echo last >> `+out, 0o755)
	a.hook(t, "15-no-program", `echo no >> `+out, 0o644)
	a.hook(t, "16-backup~", `echo no >> `+out, 0o755)
	a.hook(t, ".hidden", `echo no >> `+out, 0o755)
	polite := a.background(t, "trap 'echo polite >> "+out+"; exit' TERM; echo $$; while :; do sleep 0.01; done")
	deaf := a.background(t, "trap '' TERM; echo $$; while :; do sleep 0.01; done")

	got, err := a.client.Terminate(t.Context(), guestclient.Terminate{GraceMs: 4000, Reason: "timeout"})
	if err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(out)
	if string(text) != "first timeout\nsecond\nlast\npolite\n" {
		t.Errorf("in the order %q", text)
	}
	want := []hostapi.Hook{{Name: "10-first"}, {Name: "20-fails", Error: "exit status 3"}, {Name: "30-last"}}
	if len(got.Hooks) != 3 || got.Hooks[0] != want[0] || got.Hooks[1] != want[1] || got.Hooks[2] != want[2] {
		t.Errorf("hooks: %+v", got.Hooks)
	}
	if alive(polite) {
		t.Error("the polite one lives")
	}
	if !alive(deaf) || len(got.Alive) == 0 {
		t.Errorf("the deaf one was killed, or is not told of: %v", got.Alive)
	}
	if left, err := a.client.Shutdown(t.Context(), 0); err != nil || len(left) != 0 {
		t.Errorf("%v %v", left, err)
	}
}

// TestTerminateHookThatHangs holds that a hook cannot take the time of the others.
func TestTerminateHookThatHangs(t *testing.T) {
	a := start(t)
	out := filepath.Join(a.root, "order")
	a.hook(t, "10-hangs", `sleep 1000`, 0o755)
	a.hook(t, "20-late", `echo late >> `+out, 0o755)
	polite := a.background(t, "trap 'echo polite >> "+out+"; exit' TERM; echo $$; while :; do sleep 0.01; done")
	got, err := a.client.Terminate(t.Context(), guestclient.Terminate{GraceMs: 2000, Reason: "user"})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Hooks) != 2 || got.Hooks[0].Error == "" || got.Hooks[1].Error == "" {
		t.Errorf("hooks: %+v", got.Hooks)
	}
	if text, _ := os.ReadFile(out); string(text) != "polite\n" || alive(polite) {
		t.Errorf("in the order %q", text)
	}
}

// TestTerminateTakenBack holds that a termination which is cancelled while hooks run ends them and asks nobody else.
func TestTerminateTakenBack(t *testing.T) {
	a := start(t)
	began := filepath.Join(a.root, "began")
	a.hook(t, "10-slow", `touch `+began+`; sleep 1000`, 0o755)
	other := a.background(t, "echo $$; while :; do sleep 0.01; done")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := a.client.Terminate(ctx, guestclient.Terminate{GraceMs: 300_000, Reason: "user"})
		done <- err
	}()
	eventually(t, "the hook runs", func() bool { _, err := os.Stat(began); return err == nil })
	if _, err := a.client.Terminate(t.Context(), guestclient.Terminate{GraceMs: 1000}); !tartarus.Is(err, tartarus.Conflict) {
		t.Errorf("a second one at the same time: %v", err)
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("no error although it was taken back")
	}
	eventually(t, "the hook ends", func() bool { list, err := a.client.Processes(t.Context()); return err == nil && len(list) == 1 })
	if !alive(other) {
		t.Error("another process was asked to end")
	}
	// It can be asked again, and with a checkpoint in mind nobody gets a signal.
	a.hook(t, "10-slow", `true`, 0o755)
	eventually(t, "another termination", func() bool {
		got, err := a.client.Terminate(t.Context(), guestclient.Terminate{GraceMs: 60_000, HooksOnly: true})
		return err == nil && len(got.Hooks) == 1 && got.Hooks[0].Error == ""
	})
	if !alive(other) {
		t.Error("it was signalled although only hooks were to run")
	}
}

func TestTerminateRefuses(t *testing.T) {
	a := start(t)
	for _, body := range []string{`{"graceMs":-1}`, `{"graceMs":99999999999}`, `{"graceMs":"x"}`, `{`, `{"reason":"` + strings.Repeat("x", 100) + `"}`} {
		if status, _, answer := a.do(t, "POST", "/terminate", strings.NewReader(body)); status != 400 {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	began := time.Now()
	if got, err := a.client.Terminate(t.Context(), guestclient.Terminate{GraceMs: 60_000}); err != nil || len(got.Alive)+len(got.Hooks) != 0 || time.Since(began) > 10*time.Second {
		t.Errorf("with nothing to end: %+v %v", got, err)
	}
}
