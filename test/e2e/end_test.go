package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

// writeHook puts an executable among those that a sandbox runs before it ends.
func (s *server) writeHook(id, script string) {
	s.t.Helper()
	line := fmt.Sprintf("mkdir -p /etc/tartarus/hooks/terminate.d; f=/etc/tartarus/hooks/terminate.d/10; printf '#!/bin/sh\n%s\n' > $f; chmod 755 $f", script)
	if out, code := s.cli("exec", "-u", "root", id, "--", "sh", "-c", line); code != 0 {
		s.t.Fatalf("write hook: exit code %d\n%s", code, out)
	}
}

// background starts a shell line in a sandbox and returns once it has printed "up".
func (s *server) background(id, line string) {
	s.t.Helper()
	if out, code := s.cli("exec", "-d", id, "--", "sh", "-c", line); code != 0 {
		s.t.Fatalf("exec -d: exit code %d\n%s", code, out)
	}
	s.logged(id, "up")
}

// logged waits until the log of a sandbox, which may have ended, has a line that is this text.
func (s *server) logged(id, text string) {
	s.t.Helper()
	eventually(s.t, 30*time.Second, func() error {
		for e, err := range s.Logs(s.t.Context(), id, client.LogOptions{}) {
			if err != nil {
				return err
			}
			if e.Message == text {
				return nil
			}
		}
		return fmt.Errorf("its log does not say %q", text)
	})
}

// ended waits for the end of a sandbox and returns what is known of it.
func (s *server) ended(id string, reason tartarus.Reason) *api.SandboxDetail {
	s.t.Helper()
	var sb *api.SandboxDetail
	eventually(s.t, 60*time.Second, func() (err error) {
		if sb, err = s.GetEnded(s.t.Context(), id); err == nil && (sb.Phase != "stopped" || sb.Reason != string(reason)) {
			err = fmt.Errorf("it is %s because of %q (%s)", sb.Phase, sb.Reason, sb.Message)
		}
		return err
	})
	return sb
}

const polite = `trap "echo asked; sleep 0.2; echo flushed; exit" TERM; echo up; while :; do sleep 0.1; done`
const deaf = `trap "" TERM; echo up; while :; do sleep 0.1; done`

// TestKillWithGrace ends sandboxes in good order: hooks, SIGTERM, and what remains is killed when the grace is over.
func TestKillWithGrace(t *testing.T) {
	s := newServer(t)
	t.Run("all end by themselves", func(t *testing.T) {
		s := &server{Client: s.Client, t: t, bin: s.bin, data: s.data, addr: s.addr, vars: s.vars, log: s.log}
		id := s.create().SandboxID
		s.writeHook(id, `echo hook for $TARTARUS_REASON`)
		s.background(id, polite)
		began := time.Now()
		if out, code := s.cli("kill", "--grace", "60s", id); code != 0 {
			t.Fatalf("kill: %s", out)
		}
		if took := time.Since(began); took > 50*time.Second {
			t.Errorf("it took %s, its whole grace", took)
		}
		sb := s.ended(id, tartarus.ReasonUser)
		if x := sb.Termination; x == nil || x.Killed != 0 || len(x.Notes) != 0 {
			t.Errorf("termination: %+v", x)
		}
		for _, line := range []string{"hook for user", "asked", "flushed"} {
			s.logged(id, line)
		}
	})
	t.Run("one does not", func(t *testing.T) {
		s := &server{Client: s.Client, t: t, bin: s.bin, data: s.data, addr: s.addr, vars: s.vars, log: s.log}
		id := s.create().SandboxID
		s.writeHook(id, `exit 7`)
		s.background(id, deaf)
		grace := 8 * time.Second // on a busy host the hook alone may take a second
		if err := s.Terminate(t.Context(), id, client.KillOptions{Grace: &grace, Logs: true}); err != nil {
			t.Fatal(err)
		}
		x := s.ended(id, tartarus.ReasonUser).Termination
		if x == nil || x.Killed == 0 || len(x.Notes) != 1 || !strings.Contains(x.Notes[0], "hook 10: exit status 7") {
			t.Errorf("termination: %+v", x)
		}
	})
	t.Run("at once without", func(t *testing.T) {
		s := &server{Client: s.Client, t: t, bin: s.bin, data: s.data, addr: s.addr, vars: s.vars, log: s.log}
		id := s.create().SandboxID
		s.writeHook(id, `sleep 1000`)
		s.background(id, deaf)
		began := time.Now()
		if err := s.Kill(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("a kill without grace took %s", took)
		}
		if x := s.ended(id, tartarus.ReasonUser).Termination; x != nil {
			t.Errorf("termination: %+v", x)
		}
	})
}

// TestTimeoutWithGrace holds that a sandbox whose time is up is asked first, and has the grace it was created with.
func TestTimeoutWithGrace(t *testing.T) {
	s := newServer(t)
	id := s.create(func(n *api.NewSandbox) {
		grace := int64(60)
		n.Grace = &grace
	}).SandboxID
	s.background(id, polite)
	if err := s.SetTimeout(t.Context(), id, time.Second); err != nil {
		t.Fatal(err)
	}
	if x := s.ended(id, tartarus.ReasonTimeout).Termination; x == nil || x.Reason != "timeout" || x.Killed != 0 {
		t.Errorf("termination: %+v", x)
	}
	s.logged(id, "flushed")
}

// TestTerminationCancelled lets a sandbox live on that was about to end, for whatever reason.
func TestTerminationCancelled(t *testing.T) {
	s := newServer(t)
	id := s.create(func(n *api.NewSandbox) {
		grace := int64(120)
		n.Grace = &grace
	}).SandboxID
	if err := s.CancelTermination(t.Context(), id); !tartarus.Is(err, tartarus.Conflict) {
		t.Errorf("with nothing pending: %v", err)
	}
	s.writeHook(id, `echo hook; sleep 1000`)
	killed := make(chan error, 1)
	go func() { killed <- s.Kill(t.Context(), id) }()
	s.logged(id, "hook")
	if sb, err := s.Get(t.Context(), id); err != nil || sb.State != "running" || sb.Termination == nil || sb.Termination.Rung != "tell" {
		t.Errorf("while it is told: %+v, %v", sb, err)
	}
	if _, code := s.cli("exec", id, "--", "true"); code == 0 {
		t.Error("a command was started in a sandbox that is about to end")
	}
	for what, err := range map[string]error{
		"timeout": s.SetTimeout(t.Context(), id, time.Hour), "pause": s.Pause(t.Context(), id),
	} {
		if !tartarus.Is(err, tartarus.Conflict) {
			t.Errorf("%s meanwhile: %v", what, err)
		}
	}
	if out, code := s.cli("kill", "--cancel", id); code != 0 {
		t.Fatalf("cancel: %s", out)
	}
	if err := <-killed; !tartarus.Is(err, tartarus.Conflict) {
		t.Errorf("who waited for the end got %v", err)
	}
	if s.sh(id, "echo alive") != "alive" {
		t.Error("it does not live on")
	}
	// Its time is up: when that is cancelled it has its time once more.
	if err := s.SetTimeout(t.Context(), id, time.Second); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error { return s.CancelTermination(t.Context(), id) })
	if sb, err := s.Get(t.Context(), id); err != nil || time.Until(sb.EndAt) < time.Minute || sb.Termination != nil {
		t.Errorf("afterwards: %+v, %v", sb, err)
	}
	if s.sh(id, "echo alive") != "alive" {
		t.Error("it does not live on")
	}
}

// TestTerminationSurvivesItsServer kills the server while a sandbox is told that it ends: the next one finishes what the first began.
func TestTerminationSurvivesItsServer(t *testing.T) {
	s := newServer(t)
	id := s.create().SandboxID
	s.background(id, deaf)
	killed := make(chan error, 1)
	grace := 8 * time.Second
	go func() { killed <- s.Terminate(t.Context(), id, client.KillOptions{Grace: &grace}) }()
	eventually(t, 20*time.Second, func() error {
		sb, err := s.Get(t.Context(), id)
		if err == nil && sb.Termination == nil {
			err = errors.New("not told yet")
		}
		return err
	})
	s.kill()
	if err := <-killed; err == nil {
		t.Error("the kill was answered by a dead server")
	}
	s.start()
	if x := s.ended(id, tartarus.ReasonUser).Termination; x == nil || x.Reason != "user" {
		t.Errorf("termination: %+v", x)
	}
}
