package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// A suspicious sandbox is cut off and frozen, shows what it did, and is destroyed; whoever put it there cannot let it out.
func TestQuarantine(t *testing.T) {
	s := newServer(t)
	id := s.create().SandboxID
	s.sh(id, `echo '#!/bin/sh' > /tmp/dropped; chmod 4755 /tmp/dropped`)
	s.background(id, "echo up; sleep 4321")
	if out, code := s.cli("quarantine", "add", id, "--reason", "it dropped a setuid program"); code != 0 {
		t.Fatalf("add: %d\n%s", code, out)
	}
	if out, code := s.cli("exec", id, "--", "true"); code == 0 {
		t.Errorf("a command ran in quarantine: %s", out)
	}
	for what, err := range map[string]error{
		"kill":  s.Kill(t.Context(), id),
		"pause": s.Pause(t.Context(), id),
	} {
		if !tartarus.Is(err, tartarus.Conflict) {
			t.Errorf("%s in quarantine: %v", what, err)
		}
	}

	out, code := s.cli("quarantine", "evidence", id)
	if code != 0 {
		t.Fatalf("evidence: %s", out)
	}
	var found struct {
		api.Quarantined
		Evidence tartarus.Evidence `json:"evidence"`
		Audit    []struct {
			Action string `json:"action"`
		} `json:"audit"`
	}
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		t.Fatal(err)
	}
	if found.Snapshot == "" || found.Reason != "it dropped a setuid program" || len(found.Evidence.Notes) > 0 || found.Evidence.Guest == nil {
		t.Fatalf("evidence %s", out)
	}
	setuid, sleeping, created := false, false, false
	for _, f := range found.Evidence.Guest.Files {
		setuid = setuid || f.Path == "/tmp/dropped" && f.Setuid && f.Executable && len(f.SHA256) == 64
	}
	for _, p := range found.Evidence.Guest.Processes {
		sleeping = sleeping || strings.Contains(strings.Join(p.Argv, " "), "sleep 4321")
	}
	for _, a := range found.Audit {
		created = created || a.Action == "sandbox.create"
	}
	if !setuid || !sleeping || !created {
		t.Errorf("setuid program %v, process %v, record of the create %v:\n%s", setuid, sleeping, created, out)
	}

	var seen tartarus.Inspection
	if out, code := s.cli("quarantine", "inspect", id, "--json"); code != 0 || json.Unmarshal([]byte(out), &seen) != nil {
		t.Fatalf("inspect: %d\n%s", code, out)
	}
	if !slices.ContainsFunc(seen.Files, func(f tartarus.GuestFile) bool { return f.Path == "/tmp/dropped" && f.Setuid && len(f.SHA256) == 64 }) || len(seen.Processes) == 0 {
		t.Errorf("a new machine sees %+v", seen)
	}

	// A killed server changes nothing about it.
	s.kill()
	s.start()
	if out, code := s.cli("quarantine", "ls"); code != 0 || !strings.Contains(out, id) {
		t.Errorf("after a restart: %s", out)
	}
	if out, code := s.cli("quarantine", "release", id, "--reason", "I changed my mind"); code == 0 || !strings.Contains(out, "another operator") {
		t.Errorf("released by the one who put it there: %d\n%s", code, out)
	}
	if out, code := s.cli("quarantine", "destroy", id); code != 0 {
		t.Errorf("destroy: %s", out)
	}
	if out, code := s.cli("quarantine", "show", id); code != 0 || !strings.Contains(out, "/tmp/dropped") {
		t.Errorf("evidence after the end: %d\n%s", code, out)
	}
}

// A paused sandbox is held without running it: nobody can resume, clone or end it, its disk can be looked at, and released it comes back as it was.
func TestQuarantineOfAPausedSandbox(t *testing.T) {
	s := newServer(t)
	id := s.create().SandboxID
	s.sh(id, `echo '#!/bin/sh' > /tmp/dropped; chmod 4755 /tmp/dropped; echo kept > /home/user/kept`)
	s.background(id, "echo up; while true; do date >> /home/user/ticks; sleep 0.2; done")
	if out, code := s.cli("pause", id); code != 0 {
		t.Fatalf("pause: %s", out)
	}
	if out, code := s.cli("quarantine", "add", id, "--reason", "its image was found to be bad"); code != 0 {
		t.Fatalf("add: %d\n%s", code, out)
	}
	refused := func() {
		t.Helper()
		for _, args := range [][]string{{"resume", id}, {"fork", id}, {"kill", id}, {"snapshot", "create", id}} {
			if out, code := s.cli(args...); code == 0 || !strings.Contains(out, "quarantine") {
				t.Errorf("%v in quarantine: %d %s", args, code, out)
			}
		}
		if out, code := s.cli("exec", id, "--", "true"); code == 0 {
			t.Errorf("a command ran in quarantine: %s", out)
		}
	}
	refused()
	if out, code := s.cli("quarantine", "show", id); code != 0 || !strings.Contains(out, "it was paused") || !strings.Contains(out, "found to be bad") {
		t.Errorf("show: %d\n%s", code, out)
	}
	var seen tartarus.Inspection
	if out, code := s.cli("quarantine", "inspect", id, "--json"); code != 0 || json.Unmarshal([]byte(out), &seen) != nil {
		t.Fatalf("inspect: %d\n%s", code, out)
	}
	if !slices.ContainsFunc(seen.Files, func(f tartarus.GuestFile) bool { return f.Path == "/tmp/dropped" && f.Setuid && len(f.SHA256) == 64 }) {
		t.Errorf("a new machine sees %+v", seen.Files)
	}
	// A killed server changes nothing about it.
	s.kill()
	s.start()
	refused()
	if out, code := s.cli("quarantine", "release", id, "--reason", "I changed my mind"); code == 0 {
		t.Errorf("released by the one who put it there: %s", out)
	}
	second, err := s.CreateKey(t.Context(), api.NewKey{Name: "second", Role: "operator"})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(second.Key), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := s.cli("--api-key-file", file, "quarantine", "release", id, "--reason", "the image is good after all"); code != 0 {
		t.Fatalf("release: %d %s", code, out)
	}
	if sb, err := s.Get(t.Context(), id); err != nil || sb.State != "paused" {
		t.Fatalf("released it is %+v, %v", sb, err)
	}
	if out, code := s.cli("resume", id); code != 0 {
		t.Fatalf("resume: %s", out)
	}
	if got := s.sh(id, "cat /home/user/kept; test $(wc -l < /home/user/ticks) -gt 0 && echo ticks"); got != "kept\nticks" {
		t.Errorf("it came back with %q", got)
	}
}

// A sandbox that tries one address after another goes into quarantine by itself, and any operator may release it.
func TestQuarantineForStrikes(t *testing.T) {
	s := newServer(t, "TARTARUS_TYPHON_STRIKES=1", "TARTARUS_TYPHON_TARGETS=10")
	off := false
	id := s.create(func(in *api.NewSandbox) { in.AllowInternetAccess = &off }).SandboxID
	calm := s.create().SandboxID
	s.background(id, "echo up; while true; do for p in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do nc -w 1 203.0.113.7 $p & done; wait; done")
	eventually(t, time.Minute, func() error {
		if out, code := s.cli("quarantine", "ls"); code != 0 || !strings.Contains(out, id) {
			return fmt.Errorf("not in quarantine: %s", out)
		}
		return nil
	})
	out, code := s.cli("quarantine", "show", id)
	if code != 0 || !strings.Contains(out, "port-scan") || !strings.Contains(out, "typhon") {
		t.Errorf("show: %d\n%s", code, out)
	}
	if out, code := s.cli("audit", "ls", "--json"); code != 0 || !strings.Contains(out, "port-scan") {
		t.Errorf("the record says nothing of it: %d\n%s", code, out)
	}
	if out, code := s.cli("quarantine", "release", id, "--reason", "it was a test"); code != 0 {
		t.Errorf("release: %d\n%s", code, out)
	}
	s.sh(calm, "true")
}
