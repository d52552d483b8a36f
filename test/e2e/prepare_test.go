package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

// rootfs is a folder that makes an image: the tools of the template tiny under their names.
func rootfs(t *testing.T) string {
	t.Helper()
	tools, err := os.ReadFile("../../internal/image/embedded/bin/tartarus-tiny")
	if err != nil {
		t.Skipf("needs the embedded programs (make embedded): %v", err)
	}
	dir := t.TempDir()
	for _, name := range []string{"bin", "etc", "tmp", "root"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/sh"), tools, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cat", "sleep", "test", "touch", "wc", "date"} {
		if err := os.Symlink("sh", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A template's start command runs before a sandbox of it counts as created, sees the template's variables, and lives on through a pause. It runs once for each template, not for each sandbox: those made later are
// copies of a machine in which it ran.
func TestStartCommand(t *testing.T) {
	s := newServer(t)
	build := func(name, start, ready string) {
		cmd := exec.CommandContext(t.Context(), s.bin, "template", "build", name, "--from", "dir:"+rootfs(t), "--user", "root", "--workdir", "/tmp",
			"--env", "FROM=template", "--start-cmd", start, "--ready-cmd", ready)
		cmd.Env = append(s.env(), "TARTARUS_URL=") // templates are built beside the server, not through it
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	build("served", `sleep 0.3; echo "$FROM $MINE" >> starts; i=0; while true; do i=$((i+1)); echo $i > count; sleep 0.05; done`, "test -s count")
	sb := s.create(func(in *api.NewSandbox) { in.TemplateID, in.EnvVars = "served", map[string]string{"MINE": "sandbox"} })
	if got := s.sh(sb.SandboxID, "cat /tmp/starts"); got != "template " {
		t.Errorf("the start command saw %q", got)
	}
	second := s.claimed(func(in *api.NewSandbox) { in.TemplateID, in.EnvVars = "served", map[string]string{"MINE": "sandbox"} })
	first := s.sh(second, "cat /tmp/count")
	if later := s.sh(second, "sleep 0.5; cat /tmp/count"); later == first {
		t.Errorf("in a claimed sandbox it does not count: %s", later)
	}
	if got := s.sh(second, `cat /tmp/starts; echo "$MINE"`); got != "template \nsandbox" {
		t.Errorf("a claimed sandbox has %q", got)
	}
	if out, code := s.cli("pause", sb.SandboxID); code != 0 {
		t.Fatalf("pause: %s", out)
	}
	if out, code := s.cli("resume", sb.SandboxID); code != 0 {
		t.Fatalf("resume: %s", out)
	}
	before := s.sh(sb.SandboxID, "cat /tmp/count")
	if after := s.sh(sb.SandboxID, "sleep 0.5; cat /tmp/count"); after == before {
		t.Errorf("it no longer counts: %s", after)
	}
	if got := s.sh(sb.SandboxID, "cat /tmp/starts"); got != "template " {
		t.Errorf("after a resume, starts were %q", got)
	}

	build("broken", "echo there is no database here; exit 4", "test -e never")
	_, err := s.Create(t.Context(), api.NewSandbox{TemplateID: "broken"}, client.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), "exit status 4") || !strings.Contains(err.Error(), "no database here") {
		t.Errorf("a start command that fails: %v", err)
	}
}
