package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

// stop ends the server as an operator does, and waits for it.
func (s *server) stop() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	select {
	case <-s.done:
	case <-ctx.Done():
		s.t.Fatalf("the server does not stop:\n%s", s.log)
	}
	s.Client.Close()
}

// counting makes a sandbox that counts, and returns what it has come to.
func (s *server) counting() (id string, count int) {
	s.t.Helper()
	hour := int64(3600)
	id = s.create(func(in *api.NewSandbox) { in.Timeout = &hour }).SandboxID
	s.sh(id, "echo kept > /home/user/name; ("+counter+") >/dev/null 2>&1 &")
	eventually(s.t, 10*time.Second, func() error { return differs("the count", "", s.sh(id, "cat /tmp/count 2>/dev/null || true")) })
	return id, s.count(id)
}

// TestServerLeaves holds what becomes of sandboxes when the server is stopped in order: they run on and the next server takes them over; with
// --pause-on-exit all are on disk when the process is gone, also one that was about to be made, and come back where they were.
func TestServerLeaves(t *testing.T) {
	s := newServer(t)
	ids, counts := make([]string, 3), make([]int, 3)
	for i := range ids {
		ids[i], counts[i] = s.counting()
	}
	s.stop()
	if n := s.processes(); n == 0 {
		t.Error("no sandbox runs on")
	}
	time.Sleep(time.Second) // they count meanwhile
	s.vars = append(s.vars, "TARTARUS_PAUSE_ON_EXIT=true")
	s.start()
	for i, id := range ids {
		if now := s.count(id); now < counts[i]+5 {
			t.Errorf("sandbox %d counted to %d before and to %d after a second without a server", i, counts[i], now)
		}
	}
	s.stop()
	if n := s.processes(); n != 0 {
		t.Errorf("%d sandbox processes although all were to be paused\n%s", n, s.log)
	}
	s.vars = s.vars[:len(s.vars)-1]
	s.start()
	for i, id := range ids {
		if sb, err := s.Get(t.Context(), id); err != nil || sb.State != "paused" || sb.Reason != string(tartarus.ReasonDrained) {
			t.Errorf("sandbox %d: %+v, %v", i, sb, err)
		}
		if _, err := s.Connect(t.Context(), id, 5*time.Minute); err != nil {
			t.Fatal(err)
		}
		before := s.count(id)
		eventually(t, 20*time.Second, func() error { return differs("the count", strconv.Itoa(before), strconv.Itoa(s.count(id))) })
		if got := s.sh(id, "cat /home/user/name"); got != "kept" {
			t.Errorf("sandbox %d holds %q", i, got)
		}
	}
}

// TestCheckpointFirst keeps a snapshot of what is ended, from which it can be made again; where none can be kept, nothing is ended.
func TestCheckpointFirst(t *testing.T) {
	s := newServer(t)
	id, _ := s.counting()
	s.writeHook(id, "echo told > /home/user/told")
	if out, code := s.cli("kill", "--checkpoint", "--logs", "--grace", "30s", id); code != 0 {
		t.Fatalf("kill: %s", out)
	}
	x := s.ended(id, tartarus.ReasonUser).Termination
	if x == nil || x.Snapshot == "" {
		t.Fatalf("termination: %+v\n%s", x, s.log)
	}
	again := s.create(func(in *api.NewSandbox) { in.TemplateID = x.Snapshot }).SandboxID
	if got := s.sh(again, "cat /home/user/name /home/user/told"); got != "kept\ntold" {
		t.Errorf("made again it holds %q", got)
	}
	before := s.count(again)
	eventually(t, 20*time.Second, func() error { return differs("the count", strconv.Itoa(before), strconv.Itoa(s.count(again))) })

	s.stop()
	s.vars = append(s.vars, "TARTARUS_SNAPSHOTS_MAX_MB=1")
	s.start()
	err := s.Terminate(t.Context(), again, client.KillOptions{Checkpoint: true})
	if err == nil {
		t.Fatal("it was ended without the snapshot that was asked for")
	}
	t.Logf("refused: %v", err)
	if got := s.sh(again, "cat /home/user/name"); got != "kept" {
		t.Errorf("it holds %q", got)
	}
	if sb, err := s.Get(t.Context(), again); err != nil || sb.Termination != nil {
		t.Errorf("it is described as %+v, %v", sb, err)
	}
}

// TestGraceIsCapped holds where a grace comes from, the request, the sandbox, the template, in this order, and that none is longer than the node gives.
func TestGraceIsCapped(t *testing.T) {
	s := newServer(t, "TARTARUS_MAX_GRACE=4s", "TARTARUS_END_GRACE=1s")
	cmd := exec.CommandContext(t.Context(), s.bin, "template", "build", "graceful", "--from", "dir:"+rootfs(t), "--user", "root", "--workdir", "/tmp", "--env", "TARTARUS_GRACE=3s")
	cmd.Env = append(s.env(), "TARTARUS_URL=") // templates are built beside the server, not through it
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	seconds := func(n int64) *int64 { return &n }
	for name, tt := range map[string]struct {
		template string
		sandbox  *int64 // seconds
		request  string
		want     time.Duration // 0: it is ended at once
	}{
		"nobody says anything": {template: "tiny"},
		"the template":         {template: "graceful", want: 3 * time.Second},
		"the sandbox":          {template: "graceful", sandbox: seconds(2), want: 2 * time.Second},
		"the request":          {template: "graceful", sandbox: seconds(2), request: "1s", want: time.Second},
		"the request, no time": {template: "graceful", sandbox: seconds(2), request: "0s"},
		"an hour":              {template: "tiny", request: "1h", want: 4 * time.Second},
	} {
		id := s.create(func(in *api.NewSandbox) { in.TemplateID, in.Grace = tt.template, tt.sandbox }).SandboxID
		if out, code := s.cli("exec", "-d", id, "--", "sh", "-c", deaf); code != 0 {
			t.Fatalf("exec -d: exit code %d\n%s", code, out)
		}
		args := []string{"kill", id}
		if tt.request != "" {
			args = append(args, "--grace", tt.request)
		}
		s.logged(id, "up")
		if out, code := s.cli(args...); code != 0 {
			t.Fatalf("%s: kill: %s", name, out)
		}
		x := s.ended(id, tartarus.ReasonUser).Termination
		switch {
		case tt.want == 0 && x != nil:
			t.Errorf("%s: it had a grace until %s: %+v", name, x.Until, x)
		case tt.want != 0 && (x == nil || x.Until.Sub(x.Since).Round(time.Second) != tt.want):
			t.Errorf("%s: %s, want a grace of %s", name, describeEnd(x), tt.want)
		}
	}
}

func describeEnd(x *api.Termination) string {
	if x == nil {
		return "it was ended at once"
	}
	return fmt.Sprintf("a grace of %s, %d killed, %s", x.Until.Sub(x.Since), x.Killed, strings.Join(x.Notes, "; "))
}

// TestDrainEndsInGoodOrder empties a node: what is on it is told, has its grace, and ends because of that; nothing new comes meanwhile.
func TestDrainEndsInGoodOrder(t *testing.T) {
	s := newServer(t, "TARTARUS_NODE_NAME=drained", "TARTARUS_END_GRACE=20s", "TARTARUS_WARM_MEMORY=0")
	polite1, deaf1 := s.create().SandboxID, s.create(func(in *api.NewSandbox) {
		one := int64(1)
		in.Grace = &one
	}).SandboxID
	s.writeHook(polite1, "echo hook for $TARTARUS_REASON")
	s.background(polite1, polite)
	s.background(deaf1, deaf)
	if out, code := s.cli("node", "drain", "drained", "--deadline", "0s"); code != 124 || !strings.Contains(out, polite1) || !strings.Contains(out, deaf1) {
		t.Errorf("without --end: exit code %d\n%s", code, out)
	}
	if _, err := s.Create(t.Context(), api.NewSandbox{TemplateID: "tiny"}, client.CreateOptions{}); !tartarus.Is(err, tartarus.Unavailable) {
		t.Errorf("a create meanwhile: %v", err)
	}
	if out, code := s.cli("node", "drain", "drained", "--deadline", "0s", "--end"); code != 0 {
		t.Fatalf("with --end: exit code %d\n%s\n%s", code, out, s.log)
	}
	if x := s.ended(polite1, tartarus.ReasonDrained).Termination; x == nil || x.Killed != 0 {
		t.Errorf("the polite one: %s", describeEnd(x))
	}
	s.logged(polite1, "hook for drained")
	s.logged(polite1, "flushed")
	if x := s.ended(deaf1, tartarus.ReasonDrained).Termination; x == nil || x.Until.Sub(x.Since).Round(time.Second) != time.Second {
		t.Errorf("the deaf one: %s", describeEnd(x))
	}
	eventually(t, 20*time.Second, func() error { // a template may be prepared at this moment
		if n := s.processes(); n > 0 {
			return fmt.Errorf("%d sandbox processes are left", n)
		}
		return nil
	})
}

// TestPolicyOnEnds holds a sandbox to what a policy says of ends: its grace where nobody says another, no longer one, and what is kept.
func TestPolicyOnEnds(t *testing.T) {
	s := newServer(t)
	file := filepath.Join(t.TempDir(), "ends.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: tartarus.io/v1\nname: ends\nscope: global\nends:\n  grace: 3s\n  maxGrace: 4s\n  checkpoint: true\n  logs: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := s.cli("policy", "apply", file); code != 0 {
		t.Fatalf("policy apply: %s", out)
	}
	for request, want := range map[string]time.Duration{"": 3 * time.Second, "1h": 4 * time.Second, "1s": time.Second} {
		var id string
		eventually(t, 20*time.Second, func() error { // a policy is in force within moments
			id = s.create().SandboxID
			if sb, err := s.Get(t.Context(), id); err != nil || sb.Lifecycle == nil || sb.Lifecycle.Grace == nil {
				return fmt.Errorf("it has no grace: %v", err)
			}
			return nil
		})
		s.background(id, deaf)
		args := []string{"kill", id}
		if request != "" {
			args = append(args, "--grace", request)
		}
		if out, code := s.cli(args...); code != 0 {
			t.Fatalf("%q: kill: %s", request, out)
		}
		x := s.ended(id, tartarus.ReasonUser).Termination
		if x == nil || x.Snapshot == "" || x.Until.Sub(x.Since).Round(time.Second) != want {
			t.Errorf("asked for %q: %s, want a grace of %s and a snapshot", request, describeEnd(x), want)
		}
	}
}
