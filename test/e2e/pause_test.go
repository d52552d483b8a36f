package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// TestPauseAndResume pauses a sandbox in the middle of counting, also across a killed server: it goes on from where it was, with its files.
func TestPauseAndResume(t *testing.T) {
	s := newServer(t)
	sb := s.create()
	id := sb.SandboxID
	s.sh(id, "echo kept > /home/user/name; ("+counter+") >/dev/null 2>&1 &")
	eventually(t, 10*time.Second, func() error { return differs("the count", "", s.sh(id, "cat /tmp/count 2>/dev/null || true")) })
	for round := range 3 {
		before := s.count(id)
		if err := s.Pause(t.Context(), id); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if d, err := s.Get(t.Context(), id); err != nil || d.State != "paused" {
			t.Fatalf("round %d: state %v, %v", round, d, err)
		}
		if _, code := s.cli("exec", id, "--", "true"); code == 0 {
			t.Error("a command ran in a paused sandbox that traffic must not wake")
		}
		if round == 1 {
			s.kill()
			s.start()
		}
		if _, err := s.Connect(t.Context(), id, time.Minute); err != nil {
			t.Fatalf("round %d: %v\n%s", round, err, s.log)
		}
		eventually(t, 10*time.Second, func() error { return differs("the count", strconv.Itoa(before), strconv.Itoa(s.count(id))) })
		if now := s.count(id); now < before || now > before+1000 {
			t.Errorf("round %d: it counted to %d before and to %d after", round, before, now)
		}
		if got := s.sh(id, "cat /home/user/name; hostname"); got != "kept\n"+id {
			t.Errorf("round %d: it holds %q", round, got)
		}
	}
	if out, code := s.cli("pause", id); code != 0 {
		t.Fatalf("pause: %s", out)
	}
	if out, code := s.cli("resume", id); code != 0 || s.sh(id, "echo back") != "back" {
		t.Fatalf("resume: %s", out)
	}
	if err := s.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(t.Context(), id); err != nil {
		t.Errorf("kill while paused: %v", err)
	}
}

func (s *server) count(id string) int {
	s.t.Helper()
	var n int
	eventually(s.t, 10*time.Second, func() (err error) { // for a moment before each number the file is empty
		n, err = strconv.Atoi(strings.TrimSpace(s.sh(id, "cat /tmp/count")))
		return err
	})
	return n
}

// TestWokenByTraffic lets a sandbox be paused at its timeout and then runs a command in it: the request waits and succeeds.
func TestWokenByTraffic(t *testing.T) {
	s := newServer(t)
	two, yes := int64(2), true
	sb := s.create(func(n *api.NewSandbox) {
		n.Timeout, n.AutoPause, n.AutoResume = &two, &yes, &api.AutoResume{Enabled: true}
	})
	s.sh(sb.SandboxID, "echo kept > /home/user/name")
	eventually(t, 15*time.Second, func() error {
		d, err := s.Get(t.Context(), sb.SandboxID)
		if err == nil && d.State != "paused" {
			err = tartarus.Errorf(tartarus.Conflict, "it is %s", d.State)
		}
		return err
	})
	if got := s.sh(sb.SandboxID, "cat /home/user/name"); got != "kept" {
		t.Errorf("woken, it holds %q", got)
	}
}
