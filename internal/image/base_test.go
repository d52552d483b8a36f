package image

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestBase builds the real template from the network, looks into it, and runs its programs in a chroot.
func TestBase(t *testing.T) {
	if os.Getenv("TARTARUS_TEST_BASE") == "" {
		t.Skip("downloads 100 MB of Debian packages and takes a minute: set TARTARUS_TEST_BASE=1")
	}
	dir := t.TempDir()
	if d := os.Getenv("TARTARUS_TEST_BASE_DIR"); d != "" {
		dir = d // kept, so that a second run shows what a second build costs
	}
	start := time.Now()
	build := func(p Programs) Template {
		t.Helper()
		start = time.Now()
		stage := ""
		tpl, err := open(t, dir, p).Build(t.Context(), Spec{Name: "base", Recipe: "base"}, func(p Progress) {
			if p.Stage != stage {
				stage = p.Stage
				t.Logf("%5.1f s: %s: %s", time.Since(start).Seconds(), p.Stage, p.Message)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%v, %d MiB, %s", time.Since(start).Round(time.Millisecond), tpl.Size>>20, tpl.Digest)
		return tpl
	}
	first := build(standIns)
	if again := build(standIns); again.Build != first.Build {
		t.Error("a second build was not a no-op")
	}
	agent := build(programs{"another guest " + time.Now().String(), standIns.tiny})
	if took := time.Since(start); took > 30*time.Second || agent.Build == first.Build {
		t.Errorf("a new agent took %v", took)
	}
	if err := open(t, dir, standIns).Verify("base"); err != nil {
		t.Error(err)
	}
	if os.Getuid() != 0 {
		t.Skip("running its programs needs root, for a chroot")
	}
	out := chroot(t, agent.RootFS, `
		id -un; pwd; python3 -c 'print(40 + 2)'; python -V; node -e 'console.log("node", 6 * 7)'; git --version; git daemon -h 2>&1 | head -1
		sudo -n id -un; tput -T xterm cols; ss -V; pgrep -V; curl -V | head -1; touch /usr/local/bin/x && echo local; pip --version; echo $LANG`)
	for _, want := range []string{"user\n/home/user\n42\nPython 3.", "node 42\ngit version", "usage: git daemon", "root\n80\nss utility", "pgrep from procps", "curl 7", "local\npip "} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}

// chroot runs a script as the user of a template, in mounts that go with it.
func chroot(t *testing.T, image, script string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("unshare", "-mn", "sh", "-ec", `
		mkdir lower rw root; mount -t erofs -o loop,ro "$0" lower; mount -t tmpfs rw rw; mkdir rw/u rw/w
		mount -t overlay -o lowerdir=lower,upperdir=rw/u,workdir=rw/w root root
		mount -t proc proc root/proc; mount --bind /dev root/dev; echo "127.0.0.1 $(hostname)" > root/etc/hosts
		exec chroot root setpriv --reuid=1000 --regid=1000 --clear-groups env -i HOME=/home/user LANG=C.UTF-8 \
			PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin bash -c "cd; $1" 2>&1`, image, script) // with a network of its own, which is down
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("chroot: %v", err)
	}
	return string(out)
}

// TestCodeInterpreterImage builds the template and runs its server with the packages it has.
func TestCodeInterpreterImage(t *testing.T) {
	if os.Getenv("TARTARUS_TEST_BASE") == "" {
		t.Skip("downloads 200 MB of Debian packages and takes minutes: set TARTARUS_TEST_BASE=1")
	}
	dir := t.TempDir()
	if d := os.Getenv("TARTARUS_TEST_BASE_DIR"); d != "" {
		dir = d
	}
	start := time.Now()
	tpl, err := open(t, dir, standIns).Build(t.Context(), Spec{Name: "code-interpreter", Recipe: "code-interpreter"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v, %d MiB", time.Since(start).Round(time.Millisecond), tpl.Size>>20)
	if tpl.StartCmd == "" || tpl.ReadyCmd == "" {
		t.Errorf("%+v", tpl)
	}
	if os.Getuid() != 0 {
		t.Skip("running its server needs root, for a chroot")
	}
	out := chroot(t, tpl.RootFS, `
		sudo ip link set lo up; ( `+tpl.StartCmd+` ) > /tmp/log 2>&1 & begun=$(date +%s%N)
		until `+tpl.ReadyCmd+`; do sleep 0.1; [ $(( $(date +%s%N) - begun )) -lt 90000000000 ] || { cat /tmp/log; exit 1; }; done
		echo "ready after $(( ($(date +%s%N) - begun) / 1000000 )) ms"
		curl -s http://127.0.0.1:49999/execute -d '{"code":"import pandas, numpy\nprint(pandas.__version__)\npandas.DataFrame({\"a\": [1]}).a.sum() + 41"}'
		curl -s http://127.0.0.1:49999/execute -d '{"code":"import matplotlib.pyplot as p\np.plot([1]); p.show()"}' | grep -o '"png": "iVBOR'
		curl -s http://127.0.0.1:49999/contexts; kill %1; wait`)
	t.Log(out)
	for _, want := range []string{"ready after", `"text": "42"`, `"png": "iVBOR`, `"language": "python"`} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}
