package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

// machines are the ids of the machines on the host of this server, whether or not a sandbox has them.
func (s *server) machines() map[string]bool {
	s.t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.data, "gvisor"))
	if err != nil {
		s.t.Fatal(err)
	}
	out := map[string]bool{}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "i") {
			out[e.Name()] = true
		}
	}
	return out
}

// claimed makes sandboxes until one is claimed from the warm pool, and returns its id. A claimed sandbox's machine has another name.
func (s *server) claimed(change ...func(*api.NewSandbox)) (id string) {
	s.t.Helper()
	eventually(s.t, time.Minute, func() error {
		id = s.create(change...).SandboxID
		if s.machines()[id] {
			time.Sleep(500 * time.Millisecond) // for the pool, which has just learned what is asked for
			return fmt.Errorf("sandbox %s runs on a machine of its own", id)
		}
		return nil
	})
	return id
}

// Claimed sandboxes share nothing with one another that makes them who they are.
func TestClaimedSandboxesAreTheirOwn(t *testing.T) {
	s := newServer(t)
	seen := map[string]map[string]string{}
	for range 3 {
		id := s.claimed()
		for what, line := range map[string]string{
			"hostname":   "hostname",
			"machine id": "cat /etc/machine-id",
			"randomness": "head -c 16 /dev/urandom | base64",
			"network":    "cat /etc/resolv.conf", // the name server is the host's end of its own cable
			"id":         "cat /run/e2b/.E2B_SANDBOX_ID",
		} {
			value := s.sh(id, line)
			if value == "" {
				t.Errorf("sandbox %s has no %s", id, what)
			}
			if seen[what] == nil {
				seen[what] = map[string]string{}
			}
			if other, twice := seen[what][value]; twice {
				t.Errorf("sandboxes %s and %s have the same %s: %s", id, other, what, value)
			}
			seen[what][value] = id
		}
		if got := s.sh(id, "hostname"); got != id {
			t.Errorf("sandbox %s is called %s", id, got)
		}
	}
}

// A server that is killed leaves warm machines; the next one sweeps them and keeps the claimed.
func TestWarmMachinesOfAKilledServer(t *testing.T) {
	s := newServer(t)
	id := s.claimed()
	eventually(t, time.Minute, func() error { return s.idle() })
	before := s.machines()
	s.kill()
	s.start()
	if got := s.sh(id, "echo still here"); got != "still here" {
		t.Errorf("the claimed sandbox said %q", got)
	}
	kept := 0
	for m := range s.machines() {
		if before[m] {
			kept++
		}
	}
	if want := len(s.running()); kept != want {
		t.Errorf("%d machines of the killed server are left, it had %d sandboxes and %d machines", kept, want, len(before))
	}
}

// idle complains unless there are more machines than sandboxes.
func (s *server) idle() error {
	if warm := len(s.machines()) - len(s.running()); warm < 1 {
		return fmt.Errorf("%d warm machines", warm)
	}
	return nil
}

// A burst on a pool that is too small for it: none fails, the rest is restored.
func TestBurstBeyondThePool(t *testing.T) {
	s := newServer(t, "TARTARUS_WARM_MOST=4")
	s.claimed()
	var all sync.WaitGroup
	for range 12 {
		all.Go(func() {
			if got := s.sh(s.create().SandboxID, "echo up"); got != "up" {
				t.Errorf("one said %q", got)
			}
		})
	}
	all.Wait()
}

// running are the ids of the sandboxes that run.
func (s *server) running() (ids []string) {
	s.t.Helper()
	for sb, err := range s.List(s.t.Context(), client.ListOptions{States: []string{"running"}}) {
		if err != nil {
			s.t.Fatal(err)
		}
		ids = append(ids, sb.SandboxID)
	}
	return ids
}
