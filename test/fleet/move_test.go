package fleet

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bucket starts an S3 server where nodes reach it, and returns what a node has to know of it.
func (w *world) bucket() []string {
	w.t.Helper()
	program, err := exec.LookPath("versitygw")
	if err != nil {
		out, goErr := exec.Command("go", "env", "GOPATH").Output()
		program = filepath.Join(strings.TrimSpace(string(out)), "bin", "versitygw")
		if _, err := os.Stat(program); goErr != nil || err != nil {
			w.t.Skip("needs an S3 server: test/prerequisites.sh --install installs versitygw")
		}
	}
	root := filepath.Join(w.dir, "s3")
	if err := os.MkdirAll(filepath.Join(root, "snapshots"), 0o700); err != nil {
		w.t.Fatal(err)
	}
	addr := fmt.Sprint(w.addr(1), ":", freePort(w.t))
	w.start("s3", []string{"ROOT_ACCESS_KEY=fleet-access", "ROOT_SECRET_KEY=fleet-secret-key"}, program, "--port", addr, "--quiet", "posix", root)
	w.eventually("the S3 server listens", func() error {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
	return []string{
		"TARTARUS_S3_ENDPOINT=http://" + addr, "TARTARUS_S3_BUCKET=snapshots", "TARTARUS_S3_ACCESS_KEY=fleet-access",
		"TARTARUS_S3_SECRET_KEY=fleet-secret-key", "TARTARUS_S3_PATH_STYLE=true",
	}
}

// TestDrainMoves empties a node: what runs on it goes on on the other one, with its memory and its files, and what was paused is paused there.
func TestDrainMoves(t *testing.T) {
	w := newWorld(t)
	w.nodeEnv = w.bucket()
	a := w.newReplica("a")
	n1 := w.newNode("n1", 1, false, a)
	a.ready("n1")
	defer a.killAll()
	running, err := a.create()
	must(t, err)
	paused, err := a.create()
	must(t, err)
	id := running.SandboxID
	a.must("exec", "-d", id, "--", "sh", "-c", "i=0; while true; do i=$((i+1)); echo $i >/tmp/count; sleep 0.1; done")
	a.must("exec", id, "--", "sh", "-c", "echo kept >/home/user/file; sleep 1")
	before := a.must("exec", id, "--", "cat", "/tmp/count")
	a.must("exec", paused.SandboxID, "--", "sh", "-c", "echo also >/home/user/file")
	a.must("pause", paused.SandboxID)
	w.newNode("n2", 2, true, a)
	a.ready("n1", "n2")
	w.say("one sandbox runs on n1 and counts (at %s), one is paused there; n2 has joined", before)

	out := a.must("node", "drain", "n1", "--deadline", "80s")
	w.say("tartarus node drain n1: %s", strings.ReplaceAll(out, "\n", "; "))
	for _, sb := range []string{id, paused.SandboxID} {
		if node, state, err := a.nodeOf(sb); err != nil || node != "n2" {
			t.Fatalf("sandbox %s is %s on %s, %v", sb, state, node, err)
		}
	}
	if got := a.must("exec", id, "--", "cat", "/home/user/file"); got != "kept" {
		t.Errorf("its file says %q", got)
	}
	var first, second int
	must(t, scan(before, &first))
	w.eventually("it goes on counting", func() error {
		must(t, scan(a.must("exec", id, "--", "cat", "/tmp/count"), &second))
		if second <= first {
			return fmt.Errorf("it counts at %d, after %d", second, first)
		}
		return nil
	})
	if second > first+5000 {
		t.Errorf("it counts at %d, after %d", second, first)
	}
	a.must("resume", paused.SandboxID)
	if got := a.must("exec", paused.SandboxID, "--", "cat", "/home/user/file"); got != "also" {
		t.Errorf("the file of the paused one says %q", got)
	}
	w.say("both are on n2: the one goes on counting at %d, the other one was resumed and has its file", second)
	n1.leaks()
	n1.stop(t)
	must(t, a.echo(id, "without n1"))
	w.say("n1 has ended, with nothing left on its host; commands run on")
}

func scan(s string, n *int) error {
	_, err := fmt.Sscan(s, n)
	return err
}
