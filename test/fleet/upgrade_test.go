package fleet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// build makes the program under another version, which speaks another revision of the protocol between nodes and replicas.
func (w *world) build(version string, revision int) string {
	w.t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", "gvisor.dev/gvisor").Output()
	if err != nil {
		w.t.Skipf("needs Go to build other versions of the program: %v", err)
	}
	bin := filepath.Join(w.dir, "tartarus-"+version)
	flags := fmt.Sprintf("-s -w -X main.version=%s -X github.com/tartarus-sandbox/tartarus/internal/link.revision=%d -X gvisor.dev/gvisor/runsc/version.version=%s",
		version, revision, strings.TrimSpace(string(out)))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", flags, "-o", bin, "../../cmd/tartarus")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("build version %s: %v: %s", version, err, said)
	}
	return bin
}

// counter is a sandbox in which a program counts.
type counter struct {
	id, node, pid string
	count         int
	started       time.Time // as the API has it
}

// counting makes a sandbox with a program that counts, ten times a second.
func (r *replica) counting() *counter {
	r.w.t.Helper()
	sb, err := r.create()
	must(r.w.t, err)
	r.must("exec", "-d", sb.SandboxID, "--", "sh", "-c", "echo $$ >/tmp/pid; i=0; while true; do i=$((i+1)); echo $i >/tmp/new; mv /tmp/new /tmp/count; sleep 0.1; done")
	c := &counter{id: sb.SandboxID, node: sb.Node}
	r.w.eventually("the program counts", func() error {
		c.pid, _ = r.cli("exec", c.id, "--", "cat", "/tmp/pid")
		return c.look(r)
	})
	detail, err := r.Client.Get(r.w.t.Context(), c.id)
	must(r.w.t, err)
	c.started = detail.StartedAt
	return c
}

// look runs a command in the sandbox, which says that the same program is there and has gone on counting.
func (c *counter) look(r *replica) error {
	out, code := r.cli("exec", c.id, "--", "sh", "-c", "cat /tmp/pid /tmp/count && kill -0 $(cat /tmp/pid) && echo alive")
	var pid string
	var count int
	if _, err := fmt.Sscan(out, &pid, &count); err != nil || code != 0 || !strings.HasSuffix(out, "alive") {
		return fmt.Errorf("%s: look at sandbox %s: exit code %d: %q, %v", r.name, c.id, code, out, err)
	}
	if pid != c.pid || count <= c.count {
		return fmt.Errorf("sandbox %s: process %s at %d, which was %s at %d", c.id, pid, count, c.pid, c.count)
	}
	c.count = count
	return nil
}

// same fails unless the API has the sandbox as it began: on its node, running, started when it was.
func (c *counter) same(r *replica) {
	r.w.t.Helper()
	d, err := r.Client.Get(r.w.t.Context(), c.id)
	must(r.w.t, err)
	if d.State != "running" || d.Node != c.node || !d.StartedAt.Equal(c.started) {
		r.w.t.Errorf("sandbox %s is %s on %s, started %s; it was on %s, started %s", c.id, d.State, d.Node, d.StartedAt, c.node, c.started)
	}
}

// traffic goes to all sandboxes through the edge, all the time.
type traffic struct {
	via    atomic.Pointer[replica] // the replica that it goes through
	except atomic.Pointer[string]  // the node whose sandboxes may not answer

	mu     sync.Mutex
	served map[string]int
	failed []string
}

// send begins. What fails although its node is not excepted is noted.
func (w *world) send(via *replica, to []*counter) (t *traffic, stop func()) {
	t = &traffic{served: map[string]int{}}
	t.spare(via, "")
	ctx, cancel := context.WithCancel(context.Background())
	var senders sync.WaitGroup
	for _, c := range to {
		senders.Go(func() {
			for ctx.Err() == nil {
				began := t.except.Load()
				err := through(ctx, t.via.Load(), c.id)
				t.mu.Lock()
				switch {
				case err == nil:
					t.served[c.id]++
				case ctx.Err() == nil && *began != c.node && *t.except.Load() != c.node:
					t.failed = append(t.failed, fmt.Sprintf("%s on %s: %v", c.id, c.node, err))
				}
				t.mu.Unlock()
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); senders.Wait() })
	w.t.Cleanup(stop)
	return t, stop
}

// spare sends everything through a replica from now on, and expects nothing of one node.
func (t *traffic) spare(via *replica, node string) {
	t.except.Store(&node)
	t.via.Store(via)
}

// since fails when anything was lost, and says how much has been served.
func (t *traffic) since(w *world, to []*counter) int {
	w.t.Helper()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.failed) > 0 {
		w.t.Errorf("%d requests failed: %s", len(t.failed), strings.Join(t.failed[:min(5, len(t.failed))], "; "))
	}
	all := 0
	for _, c := range to {
		all += t.served[c.id]
	}
	t.failed = nil
	return all
}

// through asks the agent in a sandbox whether it is well, the way SDKs do.
func through(ctx context.Context, r *replica, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url()+"/health", nil)
	if err != nil {
		return err
	}
	req.Header.Set("E2b-Sandbox-Id", id)
	req.Header.Set("E2b-Sandbox-Port", "49983")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusNoContent {
		return errors.New(res.Status)
	}
	return nil
}

// TestRollingUpgrade replaces every process of a fleet by one of the next version, one at a time, under sandboxes that count.
func TestRollingUpgrade(t *testing.T) {
	w := newWorld(t)
	ancient, old, next := w.build("0.1-drill", 1), w.build("0.2-drill", 2), w.build("0.3-drill", 3)
	w.bin = old
	a, b := w.newReplica("a"), w.newReplica("b")
	nodes := []*node{w.newNode("n1", 1, true, a, b), w.newNode("n2", 2, false, a, b)}
	a.ready("n1", "n2")
	defer a.killAll()
	var all []*counter
	on := map[string]int{}
	for i := 0; i < 16 && (on["n1"] < 2 || on["n2"] < 2); i++ {
		c := []*replica{a, b}[i%2].counting()
		all = append(all, c)
		on[c.node]++
	}
	if on["n1"] < 2 || on["n2"] < 2 {
		t.Fatalf("sandboxes by node: %v", on)
	}
	looks := func(r *replica) error {
		var errs []error
		for _, c := range all {
			errs = append(errs, c.look(r))
		}
		return errors.Join(errs...)
	}
	traffic, stop := w.send(b, all)
	w.say("two replicas and two nodes of 0.2-drill; sandboxes by node %v, a program counts in each, requests go to all of them through the edge", on)

	for _, r := range []*replica{a, b} {
		other := map[*replica]*replica{a: b, b: a}[r]
		traffic.spare(other, "")
		time.Sleep(100 * time.Millisecond) // what was under way through this one has ended: it is taken out of the load balancer
		r.stop(t)
		must(t, looks(other))
		r.bin = next
		r.start()
		w.eventually("the new replica reaches the old nodes", func() error { return looks(r) })
		w.say("replica %s is 0.3-drill: the other one served commands and %d requests meanwhile; it reaches both nodes of 0.2-drill", r.name, traffic.since(w, all))
	}
	for _, n := range nodes {
		traffic.spare(b, n.name)
		gone := time.Now()
		n.stop(t)
		for _, c := range all {
			if c.node != n.name {
				must(t, c.look(a))
			}
		}
		n.bin = next
		n.start()
		var back time.Duration
		w.eventually("its sandboxes go on under the new agent", func() error {
			for _, c := range all {
				if err := c.look(a); err != nil {
					return err
				}
				if back == 0 && c.node == n.name {
					back = time.Since(gone)
				}
			}
			return nil
		})
		w.eventually("it is registered as the new version", func() error {
			if out, code := a.cli("node", "show", n.name); code != 0 || !strings.Contains(out, "0.3-drill") || !strings.Contains(out, "ready") {
				return fmt.Errorf("exit code %d: %s", code, out)
			}
			return nil
		})
		w.eventually("requests reach its sandboxes", func() error {
			var errs []error
			for _, c := range all {
				errs = append(errs, through(t.Context(), b, c.id))
			}
			return errors.Join(errs...)
		})
		traffic.spare(b, "")
		for _, c := range all {
			c.same(a)
		}
		w.say("agent of %s ended with SIGTERM and is 0.3-drill: its sandboxes have the same processes and counted on, commands ran again after %s; %d requests in all, none to the other node failed",
			n.name, back.Round(100*time.Millisecond), traffic.since(w, all))
	}

	t.Run("an agent too old is refused", func(t *testing.T) {
		n := w.joining("n3", 3, false, a)
		n.bin = ancient
		n.start()
		const why = "(0.1-drill) speaks revision 1 of the fleet's protocol and this replica only 2 and 3: upgrade the node"
		w.eventually("it says why", func() error {
			if log := n.log.String(); !strings.Contains(log, why) {
				return fmt.Errorf("its log: %s", log)
			}
			return nil
		})
		known, err := a.Client.Nodes(t.Context())
		must(t, err)
		for _, k := range known {
			if k.Name == "n3" {
				t.Errorf("it is registered: %+v", k)
			}
		}
		n.stop(t)
		n.bin = next
		n.start()
		a.ready("n3")
		w.say("an agent of 0.1-drill was turned away: %s; as 0.3-drill it joined with the certificate it had got", why)
	})

	must(t, looks(b))
	fresh, err := b.create()
	must(t, err)
	must(t, a.echo(fresh.SandboxID, "new"))
	stop()
	w.say("all %d sandboxes count on after the upgrade, %d requests were served, and a new one runs", len(all), traffic.since(w, all))
	if versions := w.versions(a); !slices.Equal(versions, []string{"0.3-drill"}) {
		t.Errorf("versions of nodes: %v", versions)
	}
	a.killAll()
	for _, n := range nodes {
		n.leaks()
	}
}

// versions lists the versions of the nodes that are ready.
func (w *world) versions(r *replica) (out []string) {
	w.t.Helper()
	nodes, err := r.Client.Nodes(w.t.Context())
	must(w.t, err)
	for _, n := range nodes {
		if n.Status == "ready" && !slices.Contains(out, n.Version) {
			out = append(out, n.Version)
		}
	}
	return out
}
