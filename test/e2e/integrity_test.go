package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/api"
)

// cyclesEnv says how many cycles TestIntegrity makes. Unset is a short form that proves the way; make test-integrity makes 20.
const cyclesEnv = "TARTARUS_INTEGRITY_CYCLES"

// sighting is what the witness in the sandbox reports.
type sighting struct {
	Born       string   `json:"born"`
	Changes    int64    `json:"changes"`
	Hashed     int64    `json:"hashed"`
	Mismatches []string `json:"mismatches"`
}

// TestIntegrity pauses and resumes a sandbox again and again, kills the server meanwhile, lets traffic wake it now and then, and has a program
// inside hash everything it has after each cycle: nothing is lost, nothing is changed, and it is the same process throughout.
func TestIntegrity(t *testing.T) {
	cycles := 4
	if text := os.Getenv(cyclesEnv); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("%s=%q is no number of cycles", cyclesEnv, text)
		}
		cycles = n
	}
	s := newServer(t)
	yes, hour := true, int64(3600)
	id := s.create(func(n *api.NewSandbox) {
		n.AutoPause, n.AutoResume, n.Timeout = &yes, &api.AutoResume{Enabled: true}, &hour
	}).SandboxID
	program := filepath.Join(t.TempDir(), "witness")
	build := exec.Command("go", "build", "-o", program, "./witness")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the witness: %v\n%s", err, out)
	}
	if out, code := s.cli("cp", program, id+":/home/user/witness.bin"); code != 0 {
		t.Fatalf("cp: %s", out)
	}
	s.sh(id, "chmod +x /home/user/witness.bin; /home/user/witness.bin > /tmp/witness.log 2>&1 &")
	eventually(t, 60*time.Second, func() error {
		if out := s.sh(id, "cat /tmp/witness.log"); out != "ready" {
			return fmt.Errorf("the witness says %q", out)
		}
		return nil
	})

	first := s.ask(id)
	last, hashed, mismatches := first, first.Hashed, len(first.Mismatches)
	for cycle := range cycles {
		if cycle%2 == 1 { // killed while it runs: adopted
			s.kill()
			s.start()
		}
		if err := s.Pause(t.Context(), id); err != nil {
			t.Fatalf("cycle %d: pause: %v\n%s", cycle, err, s.log)
		}
		if cycle%2 == 0 { // killed while it is paused
			s.kill()
			s.start()
		}
		if cycle%3 != 2 { // else the question wakes it
			if _, err := s.Connect(t.Context(), id, time.Hour); err != nil {
				t.Fatalf("cycle %d: resume: %v\n%s", cycle, err, s.log)
			}
		}
		now := s.ask(id)
		hashed += now.Hashed
		mismatches += len(now.Mismatches)
		switch {
		case len(now.Mismatches) > 0:
			t.Errorf("cycle %d: not as they were: %v", cycle, now.Mismatches)
		case now.Born != first.Born:
			t.Fatalf("cycle %d: it is another process", cycle)
		case now.Changes < last.Changes:
			t.Errorf("cycle %d: memory changed %d times before and %d times after", cycle, last.Changes, now.Changes)
		}
		last = now
	}
	if last.Changes == first.Changes {
		t.Error("the memory did not change: nothing is proved")
	}
	fmt.Printf("integrity: cycles: %d  bytes hashed: %d  changes of memory: %d  mismatches: %d\n", cycles, hashed, last.Changes, mismatches)
}

// ask has the witness look at everything.
func (s *server) ask(id string) (out sighting) {
	s.t.Helper()
	said := s.sh(id, "/home/user/witness.bin ask")
	if err := json.Unmarshal([]byte(strings.TrimSpace(said)), &out); err != nil {
		s.t.Fatalf("the witness says %q: %v", said, err)
	}
	return out
}
