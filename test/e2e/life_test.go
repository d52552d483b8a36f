package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

const counter = `i=0; while true; do i=$((i+1)); echo $i > /tmp/count; sleep 0.05; done`

// TestServerKilledAndFollowed is the promise that nothing running is lost with the server: five sandboxes count, the server is killed without
// warning, its successor adopts all five, and they have gone on counting meanwhile.
func TestServerKilledAndFollowed(t *testing.T) {
	s := newServer(t)
	ids := make([]string, 5)
	for i := range ids {
		sb := s.create()
		ids[i] = sb.SandboxID
		s.sh(sb.SandboxID, fmt.Sprintf("echo mine-%d > /home/user/name; (%s) >/dev/null 2>&1 &", i, counter))
	}
	before := make([]string, len(ids))
	for i, id := range ids {
		eventually(t, 10*time.Second, func() error {
			before[i] = s.sh(id, "cat /tmp/count 2>/dev/null || true")
			return differs("the count", "", before[i])
		})
	}
	s.kill()
	s.start()
	for i, id := range ids {
		eventually(t, 20*time.Second, func() error { return differs("the count of "+id, before[i], s.sh(id, "cat /tmp/count")) })
		if got := s.sh(id, "cat /home/user/name"); got != fmt.Sprintf("mine-%d", i) {
			t.Errorf("sandbox %d holds %q", i, got)
		}
	}
	if out, code := s.cli("doctor", "--leaks"); code != 0 {
		t.Errorf("leaks after adoption: %s", out)
	}
}

// TestServerKilledWhileStarting kills the server in the middle of a burst of creates: whatever state each start was in, its successor has
// nothing on the host that no sandbox owns, and every sandbox it lists answers.
func TestServerKilledWhileStarting(t *testing.T) {
	s := newServer(t)
	var burst sync.WaitGroup
	for range 12 {
		burst.Go(func() { _, _ = s.Create(t.Context(), api.NewSandbox{TemplateID: "tiny"}, client.CreateOptions{}) })
	}
	time.Sleep(150 * time.Millisecond) // in the middle of it: a start takes about this long
	s.kill()
	burst.Wait()
	s.start()
	if out, code := s.cli("doctor", "--leaks"); code != 0 {
		t.Errorf("leaks: %s", out)
	}
	for sb, err := range s.List(t.Context(), client.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if got := s.sh(sb.SandboxID, "echo alive"); got != "alive" {
			t.Errorf("sandbox %s answers %q", sb.SandboxID, got)
		}
	}
}

// TestBurst starts fifty sandboxes at once; none may fail.
func TestBurst(t *testing.T) {
	s := newServer(t)
	var burst sync.WaitGroup
	errs := make(chan error, 50)
	began := time.Now()
	for range 50 {
		burst.Go(func() {
			if _, err := s.Create(t.Context(), api.NewSandbox{TemplateID: "tiny"}, client.CreateOptions{}); err != nil {
				errs <- err
			}
		})
	}
	burst.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	t.Logf("50 sandboxes in %s", time.Since(began).Round(time.Millisecond))
}

// TestTimeIsKeptOnTheNode creates a sandbox for two seconds.
func TestTimeIsKeptOnTheNode(t *testing.T) {
	s := newServer(t)
	two := int64(2)
	sb := s.create(func(n *api.NewSandbox) { n.Timeout = &two })
	eventually(t, 10*time.Second, func() error {
		_, err := s.Get(t.Context(), sb.SandboxID)
		if tartarus.Is(err, tartarus.NotFound) {
			return nil
		}
		return fmt.Errorf("still there: %v", err)
	})
	ended, err := s.GetEnded(t.Context(), sb.SandboxID)
	if err != nil || ended.Reason != string(tartarus.ReasonTimeout) {
		t.Errorf("ended because of %q, %v", ended.Reason, err)
	}
}

// TestMemoryLimit has a sandbox want more memory than it may: it ends with reason oom, and the host and its neighbour do not notice.
func TestMemoryLimit(t *testing.T) {
	s := newServer(t)
	neighbour := s.create()
	mb := int64(128)
	greedy := s.create(func(n *api.NewSandbox) { n.MemoryMB = &mb })
	// A string that doubles: 512 MB after thirty rounds at the latest.
	_, _ = s.cli("exec", greedy.SandboxID, "--", "sh", "-c", `x=0123456789abcdef; while true; do x=$x$x; done`)
	eventually(t, 20*time.Second, func() error {
		ended, err := s.GetEnded(t.Context(), greedy.SandboxID)
		if err != nil {
			return err
		}
		if ended.Reason != string(tartarus.ReasonOOM) {
			return fmt.Errorf("phase %s, reason %q", ended.Phase, ended.Reason)
		}
		return nil
	})
	if got := s.sh(neighbour.SandboxID, "echo alive"); got != "alive" {
		t.Errorf("the neighbour answers %q", got)
	}
}

// TestDiskLimit fills the writable layer: the sandbox sees that its disk is full, and goes on working once space is free again.
func TestDiskLimit(t *testing.T) {
	s := newServer(t)
	mb := int64(64)
	sb := s.create(func(n *api.NewSandbox) { n.DiskSizeMB = &mb })
	out, code := s.cli("exec", sb.SandboxID, "--", "sh", "-c", "dd if=/dev/zero of=/home/user/fill bs=1M count=256")
	if code == 0 || !strings.Contains(strings.ToLower(out), "no space left") {
		t.Errorf("256 MB went into 64: exit code %d, %s", code, out)
	}
	if got := s.sh(sb.SandboxID, "rm /home/user/fill && echo small > /home/user/small && cat /home/user/small"); got != "small" {
		t.Errorf("after making space: %q", got)
	}
}

// TestForkBomb holds that processes without end are stopped inside: the shell is told, each time, that it may not have more, or ends of it;
// the neighbour does not notice, and the sandbox is there again once the processes are gone.
func TestForkBomb(t *testing.T) {
	const tried, limit = 100, 40
	s := newServer(t, fmt.Sprintf("TARTARUS_MAX_PIDS=%d", limit))
	sb, neighbour := s.create(), s.create()
	bomb := fmt.Sprintf(`n=0; while [ $n -lt %d ]; do sleep 20 >/dev/null 2>&1 & n=$((n+1)); done`, tried)
	out, code := s.cli("exec", sb.SandboxID, "--", "sh", "-c", bomb)
	// EAGAIN, as the shell says it of a process, and as Go's runtime says it of a thread before it ends the program.
	refused := strings.Count(out, "resource temporarily unavailable") + strings.Count(out, "errno=11")
	if refused < tried-limit && (refused == 0 || code == 0) {
		t.Errorf("of %d processes where %d may be, %d were refused, exit code %d: %.300s", tried, limit, refused, code, out)
	}
	if got := s.sh(neighbour.SandboxID, "echo alive"); got != "alive" {
		t.Errorf("the neighbour answers %q", got)
	}
	eventually(t, time.Minute, func() error {
		if got, code := s.cli("exec", sb.SandboxID, "--", "echo", "alive"); code != 0 {
			return fmt.Errorf("the sandbox, after the processes: exit code %d: %s", code, got)
		}
		return nil
	})
}

// TestKeptApart looks from one sandbox for everything it must not see: its neighbour, the host, the control plane, cloud metadata.
func TestKeptApart(t *testing.T) {
	s := newServer(t)
	a, b := s.create(), s.create()
	s.sh(b.SandboxID, "(while true; do echo secret | nc -l -p 8000; done) >/dev/null 2>&1 &")
	neighbour := s.sh(b.SandboxID, "cat /proc/net/fib_trie 2>/dev/null | head -0; hostname -i 2>/dev/null || true")
	port := s.addr[strings.LastIndex(s.addr, ":")+1:]
	targets := map[string]string{
		"the control plane by the gateway": "$(ip route 2>/dev/null | awk '/default/ {print $3}'):" + port,
		"cloud metadata":                   "169.254.169.254:80",
		"a private network":                "10.0.0.1:80",
		"the host's loopback":              s.addr,
	}
	if neighbour != "" {
		targets["the neighbour"] = strings.Fields(neighbour)[0] + ":8000"
	}
	for what, target := range targets {
		out, code := s.cli("exec", a.SandboxID, "--", "sh", "-c", "wget -O - http://"+target+"/health & p=$!; sleep 2; kill -9 $p 2>/dev/null; wait $p")
		if code == 0 {
			t.Errorf("%s can be reached at %s: %s", what, target, out)
		}
	}
}
