package fleet

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
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

// TestNodeLeaves takes a node out of a fleet of two step by step: what is paused on it comes back on the other one, what runs there may end in its own
// time, then it is removed, and a new token lets it in again.
func TestNodeLeaves(t *testing.T) {
	w := newWorld(t)
	w.nodeEnv = w.bucket()
	a := w.newReplica("a")
	n1 := w.newNode("n1", 1, false, a)
	a.ready("n1")
	defer a.killAll()
	sleeper, stays := a.counting(), a.counting()
	n2 := w.newNode("n2", 2, true, a)
	a.ready("n1", "n2")

	t.Run("pause on one node, resume on the other", func(t *testing.T) {
		a.must("pause", sleeper.id)
		a.must("node", "cordon", "n1")
		if node, state, err := a.nodeOf(sleeper.id); err != nil || node != "n1" || state != "paused" {
			t.Fatalf("it is %s on %s, %v", state, node, err)
		}
		a.must("resume", sleeper.id)
		if node, state, err := a.nodeOf(sleeper.id); err != nil || node != "n2" || state != "running" {
			t.Fatalf("it is %s on %s, %v", state, node, err)
		}
		w.eventually("the same program counts on", func() error { return sleeper.look(a) })
		if sleeper.count > 5000 {
			t.Errorf("it counts at %d", sleeper.count)
		}
		sleeper.node = "n2"
		sleeper.same(a)
		must(t, stays.look(a))
		a.must("node", "uncordon", "n1")
		w.say("a sandbox was paused on n1, which then took nothing new; resumed, it runs on n2, where the same process counts on at %d", sleeper.count)
	})

	t.Run("drain --wait", func(t *testing.T) {
		out, code := a.cli("node", "drain", "n1", "--wait", "--deadline", "3s")
		if code != 124 || !strings.Contains(out, stays.id) || !strings.Contains(out, "still holds 1 sandboxes") {
			t.Fatalf("exit code %d: %s", code, out)
		}
		must(t, stays.look(a))
		stays.same(a) // it was not moved
		for range 3 {
			sb, err := a.create()
			must(t, err)
			if sb.Node != "n2" {
				t.Fatalf("a new one went to %s", sb.Node)
			}
			must(t, a.Client.Kill(t.Context(), sb.SandboxID))
		}
		a.must("timeout", stays.id, "6s")
		began := time.Now()
		out = a.must("node", "drain", "n1", "--wait", "--deadline", "80s")
		d, err := a.Client.GetEnded(t.Context(), stays.id)
		must(t, err)
		if !strings.Contains(out, "drained") || d.Phase != "stopped" || d.Reason != "timeout" {
			t.Fatalf("sandbox is %s because of %s; drain says %s", d.Phase, d.Reason, out)
		}
		w.say("drain --wait gave up after 3s with exit code 124 and what is left; with a longer deadline it returned after %s, when the sandbox's own time was over",
			time.Since(began).Round(100*time.Millisecond))
	})

	t.Run("rm", func(t *testing.T) {
		if out, code := a.cli("node", "rm", "n2"); code == 0 || !strings.Contains(out, "drain it first") {
			t.Errorf("a node that works was removed: exit code %d: %s", code, out)
		}
		a.must("node", "rm", "n1")
		w.eventually("the agent is turned away", func() error {
			if log := n1.log.String(); !strings.Contains(log, "was removed from the fleet; a new join token lets it in again") {
				return fmt.Errorf("its log: %s", log)
			}
			return nil
		})
		time.Sleep(6 * time.Second) // a heartbeat, and the way of one
		if out := a.must("node", "ls", "--json"); strings.Contains(out, `"n1"`) || !strings.Contains(out, `"n2"`) {
			t.Fatalf("nodes: %s", out)
		}
		if out, code := a.cli("node", "show", "n1"); code == 0 {
			t.Errorf("it is shown: %s", out)
		}
		must(t, sleeper.look(a))
		w.say("n1 was removed while its agent lived: the agent is turned away with the reason, the node stays gone, sandboxes of n2 run on")

		must(t, os.WriteFile(n1.tokenFile(), []byte(a.must("node", "token", "--node", "n1")+"\n"), 0o600))
		a.ready("n1")
		a.must("node", "cordon", "n2")
		sb, err := a.create()
		must(t, err)
		if sb.Node != "n1" {
			t.Errorf("it runs on %s", sb.Node)
		}
		must(t, a.echo(sb.SandboxID, "again"))
		w.say("with a new token in its file n1 joined again by itself, and runs sandboxes")
	})
	a.killAll()
	n1.leaks()
	n2.leaks()
}

// TestPausedOutlivesItsNode loses a node on which a sandbox is paused. Once the node counts as lost, the sandbox comes back on the other one from its copy
// in the object store; when the node returns, it learns that the sandbox is not its own any more.
func TestPausedOutlivesItsNode(t *testing.T) {
	w := newWorld(t)
	w.nodeEnv = w.bucket()
	a := w.newReplica("a")
	n1 := w.newNode("n1", 1, false, a)
	a.ready("n1")
	defer a.killAll()
	copied, drained, fresh := a.counting(), a.counting(), a.counting()
	w.newNode("n2", 2, true, a)
	a.ready("n1", "n2")
	a.must("pause", copied.id)
	a.must("pause", drained.id)
	w.eventually("the object store has all of both", func() error {
		found, err := filepath.Glob(filepath.Join(w.dir, "s3", "snapshots", "snapshots", "sandbox", "*.json")) // in the bucket of that name
		if err != nil || len(found) != 2 {
			return fmt.Errorf("%d manifests there, %v", len(found), err)
		}
		return nil
	})
	a.must("pause", fresh.id)
	n1.kill()
	heal := w.cut(n1)
	w.say("two sandboxes are paused on n1 and in the object store, another was paused a moment ago; n1 is gone")

	const life = 10 * time.Minute
	w.eventually("it comes back on the other node", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, err := a.Client.Connect(ctx, copied.id, life)
		return err
	})
	if node, state, err := a.nodeOf(copied.id); err != nil || node != "n2" || state != "running" {
		t.Fatalf("it is %s on %s, %v", state, node, err)
	}
	w.eventually("the same program counts on", func() error { return copied.look(a) })
	copied.node = "n2"
	copied.same(a)
	if _, err := a.Client.Connect(t.Context(), fresh.id, life); !tartarus.Is(err, tartarus.Unavailable) || !strings.Contains(err.Error(), "node n1") {
		t.Errorf("the one without a copy: %v", err)
	}
	if node, state, err := a.nodeOf(fresh.id); err != nil || node != "n1" || state != "paused" {
		t.Errorf("the one without a copy is %s on %s, %v", state, node, err)
	}
	w.say("n1 counts as lost: the first runs on n2, where the same process counts on at %d; the one without a copy waits for its node, and a resume says so", copied.count)

	if out, code := a.cli("node", "rm", "n1"); code == 0 || !strings.Contains(out, "node n1 has paused sandboxes (2)") {
		t.Errorf("a node with paused sandboxes was removed: exit code %d: %s", code, out)
	}
	out, code := a.cli("node", "drain", "n1", "--deadline", "20s")
	if code != 124 || strings.Contains(out, drained.id) || !strings.Contains(out, fresh.id) {
		t.Errorf("drain: exit code %d: %s", code, out)
	}
	if node, state, err := a.nodeOf(drained.id); err != nil || node != "n2" || state != "paused" {
		t.Errorf("drained, it is %s on %s, %v", state, node, err)
	}
	if out, code := a.cli("node", "rm", "n1"); code == 0 || !strings.Contains(out, "node n1 has paused sandboxes (1)") {
		t.Errorf("a node with a paused sandbox was removed: exit code %d: %s", code, out)
	}
	a.must("resume", drained.id)
	w.eventually("what was drained counts on", func() error { return drained.look(a) })
	drained.node = "n2"
	drained.same(a)
	a.must("node", "uncordon", "n1")
	w.say("a drain of n1 took the second to n2 too, and tells that there is no copy of the third; until then the node is not removed")

	heal()
	n1.start()
	a.ready("n1")
	w.eventually("n1 leaves what is not its own any more", func() error {
		if log := n1.log.String(); !strings.Contains(log, "sandbox moved away") {
			return fmt.Errorf("its log: %s", log)
		}
		return nil
	})
	must(t, copied.look(a))
	copied.same(a)
	a.must("resume", fresh.id)
	w.eventually("the other one counts on, on n1", func() error { return fresh.look(a) })
	fresh.same(a)
	w.say("n1 is back: it left its copy of the first, and the other one runs on it again")
	a.killAll()
	n1.leaks()
}

func scan(s string, n *int) error {
	_, err := fmt.Sscan(s, n)
	return err
}
