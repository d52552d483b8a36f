package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/store/s3/s3test"
)

// fact is one thing that a clone must have of its own, or must share with its source.
type fact struct {
	name  string
	shell string // what a sandbox says of itself
	own   bool   // it differs from the source's and from every other clone's; else it is the same
	check func(s *server, sb *api.Sandbox, said string) error
}

// tcp begins a pipe with all TCP sockets, in the kernel's notation: 01 is open, 0A listens.
const tcp = "cat /proc/net/tcp /proc/net/tcp6 | "

// facts are what clones are held to.
var facts = []fact{
	{name: "hostname", shell: "hostname", own: true, check: isID},
	{name: "hostname on disk", shell: "cat /etc/hostname", own: true, check: isID},
	{name: "machine id", shell: "cat /etc/machine-id", own: true},
	{name: "id in the environment", shell: "echo $E2B_SANDBOX_ID", own: true, check: isID},
	{name: "id in /run", shell: "cat /run/e2b/.E2B_SANDBOX_ID", own: true, check: isID},
	{name: "address", shell: tcp + "grep ':C33F [0-9A-F]*:[0-9A-F]* 01 ' | cut -d: -f2 | sort -u", own: true}, // of the agent's connection
	{name: "random numbers", shell: "head -c 16 /dev/urandom | sha256sum", own: true},
	{name: "clock", shell: "date +%s", check: clockRight},
	{name: "connections", shell: tcp + "grep ' 01 ' | grep -v ':C33F ' || true", check: noneOpen}, // C33F is the agent's port
	{name: "listeners", shell: tcp + "grep -c ':1F91 .* 0A '"},                                    // 1F91 is 8081
	{name: "files", shell: "cat /home/user/kept; stat -c '%u %g %a' /home/user/kept"},
	{name: "files of /tmp", shell: "cat /tmp/kept"},
	{name: "template's deleted file", shell: "test -e /etc/profile && echo there || echo gone"},
	{name: "process", shell: "cat /tmp/pid; kill -0 $(cat /tmp/pid) && echo alive"},
	{name: "tokens", shell: "true", check: ownTokens},
}

func isID(_ *server, sb *api.Sandbox, said string) error {
	if said != sb.SandboxID {
		return fmt.Errorf("it is %q", said)
	}
	return nil
}

func clockRight(_ *server, _ *api.Sandbox, said string) error {
	n, err := strconv.ParseInt(said, 10, 64)
	if off := time.Since(time.Unix(n, 0)).Abs(); err != nil || off > 20*time.Second {
		return fmt.Errorf("it is %s, off by %s", said, off)
	}
	return nil
}

func noneOpen(_ *server, _ *api.Sandbox, said string) error {
	if said != "" {
		return fmt.Errorf("open: %s", said)
	}
	return nil
}

// ownTokens tries the clone's own token on its agent, which must take it.
func ownTokens(s *server, sb *api.Sandbox, _ string) error {
	if code := s.knock(sb.SandboxID, sb.EnvdAccessToken); code != http.StatusOK {
		return fmt.Errorf("its own token gave %d", code)
	}
	return nil
}

// knock asks the agent of a sandbox for something that needs a token.
func (s *server) knock(id, token string) int {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), "GET", "http://"+s.addr+"/envs", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set(api.HeaderSandbox, id)
	req.Header.Set(api.HeaderPort, strconv.Itoa(tartarus.AgentPort))
	req.Header.Set(api.HeaderAgentToken, token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode
}

// furnish puts into a sandbox what the facts look at, and leaves a connection to its port 8080 open until the test ends.
func (s *server) furnish(sb *api.Sandbox) {
	s.t.Helper()
	if out, code := s.cli("exec", "--user", "root", sb.SandboxID, "--", "rm", "/etc/profile"); code != 0 {
		s.t.Fatalf("rm: %s", out)
	}
	s.sh(sb.SandboxID, `echo kept > /home/user/kept; chmod 640 /home/user/kept; echo kept > /tmp/kept
(sleep 10000 | nc -l -p 8080 >/dev/null) >/dev/null 2>&1 &
(sleep 10000 | nc -l -p 8081 >/dev/null) >/dev/null 2>&1 &
(`+counter+`) >/dev/null 2>&1 & echo $! > /tmp/pid`)
	eventually(s.t, 20*time.Second, func() error {
		return differs("the count", "", s.sh(sb.SandboxID, "cat /tmp/count 2>/dev/null || true"))
	})
	go func() {
		req, err := http.NewRequestWithContext(s.t.Context(), "GET", "http://"+s.addr+"/", nil)
		if err != nil {
			return
		}
		req.Header.Set(api.HeaderSandbox, sb.SandboxID)
		req.Header.Set(api.HeaderPort, "8080")
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
		}
	}()
	eventually(s.t, 20*time.Second, func() error {
		return differs("the connection", "", s.sh(sb.SandboxID, tcp+"grep ':1F90 .* 01 ' || true"))
	})
}

// holdClones compares clones with their source and with each other.
func (s *server) holdClones(source *api.Sandbox, clones []*api.Sandbox, booted bool) {
	s.t.Helper()
	for _, f := range facts {
		if booted && (f.name == "listeners" || f.name == "process") {
			continue // a boot has none of the source's processes
		}
		seen := map[string]string{s.sh(source.SandboxID, f.shell): source.SandboxID}
		for _, c := range clones {
			said := s.sh(c.SandboxID, f.shell)
			other, known := seen[said]
			if f.own && known {
				s.t.Errorf("%s of clone %s is that of %s: %q", f.name, c.SandboxID, other, said)
			}
			if !f.own && f.check == nil && !known {
				s.t.Errorf("%s of clone %s is %q, and of the source %v", f.name, c.SandboxID, said, seen)
			}
			if f.own {
				seen[said] = c.SandboxID
			}
			if f.check != nil {
				if err := f.check(s, c, said); err != nil {
					s.t.Errorf("%s of clone %s: %v", f.name, c.SandboxID, err)
				}
			}
		}
	}
	for _, c := range clones {
		if c.EnvdAccessToken == source.EnvdAccessToken || s.knock(c.SandboxID, source.EnvdAccessToken) != http.StatusUnauthorized {
			s.t.Errorf("the source's token opens clone %s", c.SandboxID)
		}
		if s.knock(source.SandboxID, c.EnvdAccessToken) != http.StatusUnauthorized {
			s.t.Errorf("the token of clone %s opens the source", c.SandboxID)
		}
	}
}

// TestClones forks a sandbox, and makes others from snapshots of it, with memory and without.
func TestClones(t *testing.T) {
	s := newServer(t)
	source := s.create()
	s.furnish(source)
	before := s.count(source.SandboxID)

	results, err := s.Fork(t.Context(), source.SandboxID, 3, 5*time.Minute)
	if err != nil {
		t.Fatalf("fork: %v\n%s", err, s.log)
	}
	var clones []*api.Sandbox
	for i, r := range results {
		if r.Sandbox == nil {
			t.Fatalf("clone %d: %+v\n%s", i, r.Error, s.log)
		}
		clones = append(clones, r.Sandbox)
	}
	s.holdClones(source, clones, false)
	for _, c := range append(clones, source) {
		eventually(t, 20*time.Second, func() error { return differs("the count", strconv.Itoa(before), strconv.Itoa(s.count(c.SandboxID))) })
	}
	s.sh(clones[0].SandboxID, "echo another > /home/user/kept")
	if got := s.sh(source.SandboxID, "cat /home/user/kept") + s.sh(clones[1].SandboxID, "cat /home/user/kept"); got != "keptkept" {
		t.Errorf("what one clone wrote is seen by others: %q", got)
	}
	if left, err := filepath.Glob(filepath.Join(s.data, "snapshots", "*", "files")); err != nil || len(left) > 0 {
		eventually(t, 10*time.Second, func() error {
			left, _ := filepath.Glob(filepath.Join(s.data, "snapshots", "*", "files"))
			if len(left) > 0 {
				return fmt.Errorf("snapshots of the fork are left: %v", left)
			}
			return nil
		})
	}

	out, code := s.cli("snapshot", "create", source.SandboxID, "--name", "ready:v1")
	if code != 0 || !strings.HasSuffix(strings.TrimSpace(out), "/ready:v1") {
		t.Fatalf("snapshot create: %s", out)
	}
	disk, err := s.Snapshot(t.Context(), source.SandboxID, "", true)
	if err != nil {
		t.Fatal(err)
	}
	s.kill() // both outlive the server
	s.start()
	for ref, booted := range map[string]bool{strings.TrimSpace(out): false, "ready:v1": false, disk.SnapshotID: true} {
		sb, err := s.Create(t.Context(), api.NewSandbox{TemplateID: ref}, client.CreateOptions{})
		if err != nil {
			t.Fatalf("create from %s: %v\n%s", ref, err, s.log)
		}
		s.holdClones(source, []*api.Sandbox{sb}, booted)
	}
	for _, args := range [][]string{{"ls"}, {"inspect", "ready:v1"}, {"verify", "ready:v1"}, {"verify", disk.ID}, {"rm", "ready:v1"}, {"rm", disk.SnapshotID}} {
		if out, code := s.cli(append([]string{"snapshot"}, args...)...); code != 0 {
			t.Errorf("snapshot %v: %s", args, out)
		}
	}
	if list, err := s.Snapshots(t.Context(), client.SnapshotOptions{}); err != nil || len(list) != 0 {
		t.Errorf("left: %+v, %v", list, err)
	}
}

// TestDiskOnly pauses without memory, and reboots what was paused with it.
func TestDiskOnly(t *testing.T) {
	s := newServer(t)
	sb := s.create()
	id := sb.SandboxID
	s.furnish(sb)
	if out, code := s.cli("pause", "--disk", id); code != 0 {
		t.Fatalf("pause: %s\n%s", out, s.log)
	}
	if d, err := s.Get(t.Context(), id); err != nil || d.PauseMode != "filesystem" {
		t.Errorf("paused as %+v, %v", d, err)
	}
	s.kill()
	s.start()
	rebooted := func(how string) {
		t.Helper()
		if got := s.sh(id, "cat /home/user/kept /tmp/kept; hostname; test -e /etc/profile || echo gone"); got != "kept\nkept\n"+id+"\ngone" {
			t.Errorf("%s: it holds %q", how, got)
		}
		if got := s.sh(id, tcp+"grep ':1F9[01] ' || true"); got != "" {
			t.Errorf("%s: processes live on: %s", how, got)
		}
	}
	if out, code := s.cli("resume", id); code != 0 {
		t.Fatalf("resume: %s\n%s", out, s.log)
	}
	rebooted("without memory")
	s.sh(id, "(sleep 10000 | nc -l -p 8080 >/dev/null) >/dev/null 2>&1 &")
	if err := s.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if out, code := s.cli("resume", "--reboot", id); code != 0 {
		t.Fatalf("reboot: %s\n%s", out, s.log)
	}
	rebooted("rebooted")
}

// TestAgentThatDoesNotAnswer pauses a sandbox whose agent is stopped: strictly it is refused, else it is marked and can only be rebooted.
func TestAgentThatDoesNotAnswer(t *testing.T) {
	s := newServer(t)
	id := s.create().SandboxID
	s.sh(id, "echo kept > /home/user/kept")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	stop := exec.CommandContext(ctx, s.bin, "exec", "--user", "root", id, "--", "kill", "-STOP", "1")
	stop.Env = s.env()
	_ = stop.Run() // nobody is there to say how it went
	for how, o := range map[string]client.PauseOptions{"strict": {Strict: true}, "disk": {DiskOnly: true}} {
		if err := s.PauseWith(t.Context(), id, o); !tartarus.Is(err, tartarus.Unavailable) {
			t.Errorf("%s: %v", how, err)
		}
	}
	if d, err := s.Get(t.Context(), id); err != nil || d.State != "running" {
		t.Fatalf("refused, it is %+v, %v", d, err)
	}
	if err := s.Pause(t.Context(), id); err != nil {
		t.Fatalf("pause: %v\n%s", err, s.log)
	}
	if d, err := s.Get(t.Context(), id); err != nil || !d.AgentLost || d.PauseMode != "full" {
		t.Errorf("paused, it is %+v, %v", d, err)
	}
	_, err := s.Connect(t.Context(), id, time.Minute)
	if e, ok := errors.AsType[*tartarus.Error](err); !ok || e.Kind != tartarus.Conflict || e.Code != tartarus.CodeAgentLost {
		t.Errorf("connect: %v", err)
	}
	if _, err := s.Reboot(t.Context(), id, time.Minute); err != nil {
		t.Fatalf("reboot: %v\n%s", err, s.log)
	}
	if got := s.sh(id, "cat /home/user/kept"); got != "kept" {
		t.Errorf("rebooted, it holds %q", got)
	}
}

// TestCopiesInABucket has a server keep copies of snapshots in a real S3 server, and another one, on another data folder, use them.
func TestCopiesInABucket(t *testing.T) {
	bucket := s3test.Start(t).Config()
	vars := []string{
		"TARTARUS_S3_ENDPOINT=" + bucket.Endpoint, "TARTARUS_S3_BUCKET=" + bucket.Bucket, "TARTARUS_S3_ACCESS_KEY=" + bucket.AccessKey,
		"TARTARUS_S3_SECRET_KEY=" + bucket.SecretKey, "TARTARUS_S3_PREFIX=" + bucket.Prefix,
	}
	s := newServer(t, vars...)
	source := s.create()
	s.sh(source.SandboxID, "echo kept > /home/user/kept")
	out, code := s.cli("snapshot", "create", "--wait", "--name", "shared", "--disk", source.SandboxID)
	if code != 0 || !strings.Contains(out, "copied") {
		t.Fatalf("snapshot create: %s\n%s", out, s.log)
	}
	// A snapshot fits the very image that it stands on: the other machine has the same templates.
	data := t.TempDir()
	if err := os.CopyFS(filepath.Join(data, "templates"), os.DirFS(filepath.Join(s.data, "templates"))); err != nil {
		t.Fatal(err)
	}
	there := newServerIn(t, data, append(vars, "TARTARUS_NODE_NAME=other")...)
	sb, err := there.Create(t.Context(), api.NewSandbox{TemplateID: "shared"}, client.CreateOptions{})
	if err != nil {
		t.Fatalf("create: %v\n%s", err, there.log)
	}
	if got := there.sh(sb.SandboxID, "cat /home/user/kept"); got != "kept" {
		t.Errorf("it holds %q", got)
	}
	for _, log := range []string{s.log.String(), there.log.String()} {
		if strings.Contains(log, bucket.SecretKey) || strings.Contains(log, bucket.AccessKey) {
			t.Error("credentials are logged")
		}
	}
	if out, code := s.cli("snapshot", "rm", "shared"); code != 0 {
		t.Errorf("rm: %s", out)
	}
	if list, err := there.Snapshots(t.Context(), client.SnapshotOptions{}); err != nil || len(list) > 1 {
		t.Errorf("left: %+v, %v", list, err)
	}
}

// TestDamagedWhilePaused holds that a damaged snapshot is found before anything runs, that it is named, and that the sandbox stays paused.
func TestDamagedWhilePaused(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"bit flip": func(t *testing.T, dir string) {
			rewrite(t, filepath.Join(dir, "files", "pages.img"), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		},
		"truncated": func(t *testing.T, dir string) {
			rewrite(t, filepath.Join(dir, "files", "pages.img"), func(b []byte) []byte { return b[:len(b)/2] })
		},
		"missing": func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "files", "pages.img")); err != nil {
				t.Fatal(err)
			}
		},
		"another version": func(t *testing.T, dir string) {
			rewrite(t, filepath.Join(dir, "manifest.json"), func(b []byte) []byte { return bytes.Replace(b, []byte(`"format":1`), []byte(`"format":9`), 1) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			id := s.create().SandboxID
			if err := s.Pause(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			found, err := filepath.Glob(filepath.Join(s.data, "snapshots", "*", "manifest.json"))
			if err != nil || len(found) != 1 {
				t.Fatalf("snapshots: %v, %v", found, err)
			}
			dir := filepath.Dir(found[0])
			whole := t.TempDir()
			if err := os.CopyFS(filepath.Join(whole, "copy"), os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			damage(t, dir)
			_, err = s.Connect(t.Context(), id, time.Minute)
			if !tartarus.Is(err, tartarus.Conflict) && !tartarus.Is(err, tartarus.Corrupt) || !strings.Contains(err.Error(), "snapshot") {
				t.Errorf("connect: %v", err)
			}
			if d, err := s.Get(t.Context(), id); err != nil || d.State != "paused" {
				t.Errorf("it is %+v, %v", d, err)
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(dir, os.DirFS(filepath.Join(whole, "copy"))); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Connect(t.Context(), id, time.Minute); err != nil {
				t.Errorf("mended, it does not come back: %v\n%s", err, s.log)
			}
		})
	}
}

func rewrite(t *testing.T, name string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, f(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTemplateRebuiltMeanwhile holds that a paused sandbox, and a snapshot, come back on the version of the template that they were made from, though
// the template is built anew meanwhile, and that the old version goes with the last of them.
func TestTemplateRebuiltMeanwhile(t *testing.T) {
	s := newServer(t)
	root := t.TempDir()
	out, code := s.cli("run", "--template", "tiny", "--", "sh", "-c", "cd / && tar cf - bin etc usr lib root home 2>/dev/null | base64")
	if code != 0 {
		t.Skipf("the tiny template cannot be packed by its own tools: %s", out)
	}
	packed := filepath.Join(root, "tiny.b64")
	if err := os.WriteFile(packed, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(root, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", "-c", "base64 -d "+packed+" | tar xf - -C "+tree).CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v\n%s", err, out)
	}
	build := func(version string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(tree, "etc", "version"), []byte(version), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), s.bin, "template", "build", "mine", "--from", "dir:"+tree, "--data", s.data)
		cmd.Env = slices.DeleteFunc(s.env(), func(v string) bool { return strings.HasPrefix(v, "TARTARUS_URL=") })
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	images := func() int {
		found, err := filepath.Glob(filepath.Join(s.data, "templates", "images", "*.erofs"))
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	build("one")
	id := s.create(func(n *api.NewSandbox) { n.TemplateID = "mine" }).SandboxID
	snap, err := s.Snapshot(t.Context(), id, "", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.PauseWith(t.Context(), id, client.PauseOptions{DiskOnly: true}); err != nil {
		t.Fatal(err)
	}
	before := images()
	build("two")
	if n := images(); n != before+1 {
		t.Errorf("%d images, and %d before", n, before)
	}
	s.kill()
	s.start()
	if _, err := s.Connect(t.Context(), id, time.Minute); err != nil {
		t.Fatalf("connect: %v\n%s", err, s.log)
	}
	clone, err := s.Create(t.Context(), api.NewSandbox{TemplateID: snap.SnapshotID}, client.CreateOptions{})
	if err != nil {
		t.Fatalf("create: %v\n%s", err, s.log)
	}
	fresh := s.create(func(n *api.NewSandbox) { n.TemplateID = "mine" }).SandboxID
	for sb, want := range map[string]string{id: "one", clone.SandboxID: "one", fresh: "two"} {
		if got := s.sh(sb, "cat /etc/version"); got != want {
			t.Errorf("sandbox %s is of version %s, want %s", sb, got, want)
		}
	}
	if err := s.RemoveSnapshot(t.Context(), snap.SnapshotID); err != nil {
		t.Fatal(err)
	}
	for _, sb := range []string{id, clone.SandboxID} {
		if err := s.Kill(t.Context(), sb); err != nil {
			t.Fatal(err)
		}
	}
	build("three") // the next change of the records lets go of what nobody holds
	if n := images(); n != before+1 {
		t.Errorf("%d images are left, want %d", n, before+1)
	}
}
