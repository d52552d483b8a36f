package fleet

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

// create makes a sandbox of the tiny template that lives long enough for the test.
func (r *replica) create() (*api.Sandbox, error) {
	ctx, cancel := context.WithTimeout(r.w.t.Context(), patience)
	defer cancel()
	life := int64(1800)
	return r.Client.Create(ctx, api.NewSandbox{TemplateID: "tiny", Timeout: &life}, client.CreateOptions{})
}

// nodeOf is where the registry has a sandbox, and its state.
func (r *replica) nodeOf(id string) (node, state string, err error) {
	for sb, err := range r.Client.List(r.w.t.Context(), client.ListOptions{States: []string{"running", "paused", "failed", "stopped", "starting"}}) {
		if err != nil {
			return "", "", err
		}
		if sb.SandboxID == id {
			return sb.Node, sb.State, nil
		}
	}
	return "", "", fmt.Errorf("sandbox %s is not listed", id)
}

// ready waits until the registry has these nodes alive.
func (r *replica) ready(names ...string) {
	r.w.t.Helper()
	r.w.eventually("nodes are ready", func() error {
		nodes, err := r.Client.Nodes(r.w.t.Context())
		if err != nil {
			return err
		}
		var got []string
		for _, n := range nodes {
			if n.Status == "ready" {
				got = append(got, n.Name)
			}
		}
		for _, name := range names {
			if !slices.Contains(got, name) {
				return fmt.Errorf("ready are %v, want %v", got, names)
			}
		}
		return nil
	})
}

// echo runs a command in a sandbox.
func (r *replica) echo(id, text string) error {
	out, code := r.cli("exec", id, "--", "echo", text)
	if code != 0 || out != text {
		return fmt.Errorf("%s: exec in %s: exit code %d: %s", r.name, id, code, out)
	}
	return nil
}

// killAll ends all sandboxes, so that none outlives its node's agent.
func (r *replica) killAll() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for sb, err := range r.Client.List(ctx, client.ListOptions{States: []string{"running", "starting", "paused"}}) {
		if err != nil {
			r.w.t.Errorf("list at the end: %v", err)
			return
		}
		if err := r.Client.Kill(ctx, sb.SandboxID); err != nil && !tartarus.Is(err, tartarus.NotFound) {
			r.w.t.Errorf("kill %s at the end: %v", sb.SandboxID, err)
		}
	}
}

// lost says what keeps a sandbox from counting as lost with its node: in the API, the registry's listing, and the audit log of whichever replica found it.
func (r *replica) lost(id, node string) error {
	d, err := r.Client.GetEnded(r.w.t.Context(), id)
	if err != nil {
		return err
	}
	if d.Phase != string(tartarus.Failed) || d.Reason != string(tartarus.ReasonNodeLost) || !strings.Contains(d.Message, node) || d.Node != node {
		return fmt.Errorf("sandbox %s is %s on %s because of %q: %s", id, d.Phase, d.Node, d.Reason, d.Message)
	}
	if _, err := r.Client.Get(r.w.t.Context(), id); !tartarus.Is(err, tartarus.NotFound) {
		return fmt.Errorf("sandbox %s is lost, and for SDKs it is there: %v", id, err)
	}
	var records []error
	for _, one := range r.w.replicas {
		records = append(records, one.recorded(id, "sandbox.lost", `"reason":"node-lost"`))
	}
	return either(records...)
}

// recorded looks for a record in this replica's audit log.
func (r *replica) recorded(id, action, text string) error {
	out, code := r.cli("audit", "ls", "--object", id, "--action", action, "--json")
	if compact := strings.NewReplacer(" ", "", "\n", "").Replace(out); code != 0 || !strings.Contains(compact, text) || !strings.Contains(compact, `"kind":"system"`) {
		return fmt.Errorf("%s: records %s of %s: exit code %d: %s", r.name, action, id, code, out)
	}
	return nil
}

// either is nil when one of them is.
func either(errs ...error) error {
	if slices.Contains(errs, nil) {
		return nil
	}
	return errors.Join(errs...)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestTwoNodes is the life of a fleet of two replicas and two nodes, one of which is reached through its session alone.
func TestTwoNodes(t *testing.T) {
	w := newWorld(t)
	a, b := w.newReplica("a"), w.newReplica("b")
	n1 := w.newNode("n1", 1, true, a, b)
	n2 := w.newNode("n2", 2, false, a) // learns of b by itself
	defer a.killAll()                  // before anything is stopped, so that no sandbox outlives its agent
	a.ready("n1", "n2")
	w.say("two replicas over one Redis, two nodes in namespaces of their own, joined with tokens")

	// Redis is the control plane's alone.
	if out, err := exec.Command("nsenter", n1.enter("timeout", "2", "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", w.addr(1), w.redisP))...).CombinedOutput(); err == nil {
		t.Errorf("node n1 reaches Redis: %s", out)
	}

	on := map[string][]string{}
	for i := 0; i < 20 && (len(on["n1"]) < 2 || len(on["n2"]) < 2); i++ {
		sb, err := []*replica{a, b}[i%2].create()
		must(t, err)
		on[sb.Node] = append(on[sb.Node], sb.SandboxID)
	}
	if len(on["n1"]) < 2 || len(on["n2"]) < 2 {
		t.Fatalf("sandboxes by node: %v", on)
	}
	all := slices.Concat(on["n1"], on["n2"])
	for _, id := range all {
		must(t, a.echo(id, "through a"))
		w.eventually("n2 has learned of b", func() error { return b.echo(id, "through b") })
	}
	w.say("%d sandboxes on n1, %d on n2; each runs commands through either replica", len(on["n1"]), len(on["n2"]))

	t.Run("a replica is killed", func(t *testing.T) {
		a.kill()
		for _, id := range all {
			must(t, b.echo(id, "the other one"))
		}
		sb, err := b.create()
		must(t, err)
		must(t, b.echo(sb.SandboxID, "new"))
		must(t, b.Client.Kill(t.Context(), sb.SandboxID))
		a.start()
		w.eventually("the replica that is back reaches both nodes", func() error {
			return errors.Join(a.echo(on["n1"][0], "again"), a.echo(on["n2"][0], "again"))
		})
		w.say("replica a killed with SIGKILL: b served all %d sandboxes and a create; a came back and reached both nodes", len(all))
	})

	t.Run("an agent is killed", func(t *testing.T) {
		id := on["n1"][0]
		a.must("exec", id, "--", "sh", "-c", "echo kept > /tmp/kept")
		n1.kill()
		n1.start()
		w.eventually("the agent that follows has the sandbox", func() error {
			out, code := a.cli("exec", id, "--", "cat", "/tmp/kept")
			if code != 0 || out != "kept" {
				return fmt.Errorf("exit code %d: %s", code, out)
			}
			return nil
		})
		w.say("agent of n1 killed with SIGKILL: the next one adopted its sandboxes with what they held")
	})

	t.Run("the store is away", func(t *testing.T) {
		must(t, a.echo(on["n1"][0], "known"))
		must(t, a.echo(on["n2"][0], "known"))
		w.redis.kill()
		began := time.Now()
		_, err := a.create()
		if !tartarus.Is(err, tartarus.Unavailable) {
			t.Fatalf("a create without a store: %v", err)
		}
		w.say("Redis killed: a create is refused after %s: %v", time.Since(began).Round(time.Millisecond), err)
		for _, id := range []string{on["n1"][0], on["n2"][0]} {
			began := time.Now()
			must(t, a.echo(id, "without redis"))
			w.say("exec in %s without Redis: %s", id, time.Since(began).Round(time.Millisecond))
		}
		w.startRedis()
		w.eventually("creates recover by themselves", func() error {
			sb, err := a.create()
			if err == nil {
				err = a.Client.Kill(t.Context(), sb.SandboxID)
			}
			return err
		})
		w.say("Redis back: creates work again, nobody restarted anything")
	})

	t.Run("the store loses everything", func(t *testing.T) {
		w.redisDo("FLUSHALL")
		w.eventually("the registry is filled again", func() error {
			for _, id := range all {
				if node, state, err := a.nodeOf(id); err != nil || state != "running" || !slices.Contains(on[node], id) {
					return fmt.Errorf("sandbox %s is %s on %s, %v", id, state, node, err)
				}
			}
			return nil
		})
		a.ready("n1", "n2")
		for _, id := range all {
			must(t, a.echo(id, "still here"))
		}
		w.say("FLUSHALL: nodes, keys and all %d sandboxes were registered again; all run", len(all))
	})

	t.Run("a node is cut off", func(t *testing.T) {
		heal := w.cut(n2)
		w.eventually("its sandboxes count as lost", func() error {
			for _, id := range on["n2"] {
				if _, state, err := b.nodeOf(id); err != nil || state != "failed" {
					return fmt.Errorf("sandbox %s is %s, %v", id, state, err)
				}
			}
			return nil
		})
		sb, err := b.create()
		must(t, err)
		if sb.Node != "n1" {
			t.Errorf("placed on %s, which is cut off", sb.Node)
		}
		must(t, b.echo(on["n1"][0], "unharmed"))
		for _, id := range on["n2"] {
			must(t, b.lost(id, "n2"))
			if err := b.echo(id, "nobody"); err == nil {
				t.Errorf("a command ran in sandbox %s, which is lost", id)
			}
		}
		w.say("n2 cut off with nftables: its sandboxes became failed (node-lost) in the registry, each with a record of it in the audit log; creates went to n1")
		heal()
		w.eventually("they are reconciled when it returns", func() error {
			for _, id := range on["n2"] {
				if node, state, err := b.nodeOf(id); err != nil || state != "running" || node != "n2" {
					return fmt.Errorf("sandbox %s is %s on %s, %v", id, state, node, err)
				}
				if err := errors.Join(a.echo(id, "back"), b.echo(id, "back")); err != nil {
					return err
				}
			}
			return nil
		})
		for _, id := range on["n2"] {
			d, err := a.Client.Get(t.Context(), id)
			must(t, err)
			if d.Reason != "" || d.Message != "" {
				t.Errorf("sandbox %s runs and is said to have ended: %s, %s", id, d.Reason, d.Message)
			}
			w.eventually("its return is on record", func() error {
				// Whichever replica the node told first.
				return either(a.recorded(id, "sandbox.returned", `"node":"n2"`), b.recorded(id, "sandbox.returned", `"node":"n2"`))
			})
		}
		w.say("healed: the same sandboxes run on n2 again, by their old ids, and that is on record too")
	})

	a.killAll()
	n1.leaks()
	n2.leaks()
	w.say("all sandboxes killed, nothing of them left on either node")
}
