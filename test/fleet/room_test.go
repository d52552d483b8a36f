package fleet

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

// TestFullFleet fills two nodes through two replicas at once, neither of which knows what the other places: no node hands out more than it has, what one
// refuses goes to the other, and what finds no room waits in the queue until there is some.
func TestFullFleet(t *testing.T) {
	w := newWorld(t)
	const each, size = 3, 512
	w.nodeEnv = []string{fmt.Sprint("TARTARUS_NODE_MEMORY_MB=", each*size+size/2)}
	a, b := w.newReplica("a"), w.newReplica("b")
	w.newNode("n1", 1, true, a, b)
	w.newNode("n2", 2, false, a, b)
	a.ready("n1", "n2")
	b.ready("n1", "n2")
	defer a.killAll()

	life, memory := int64(1800), int64(size)
	create := func(r *replica) (*api.Sandbox, error) {
		return r.Client.Create(t.Context(), api.NewSandbox{TemplateID: "tiny", Timeout: &life, MemoryMB: &memory}, client.CreateOptions{})
	}
	bounded := func() {
		t.Helper()
		nodes, err := a.Client.Nodes(t.Context())
		must(t, err)
		for _, n := range nodes {
			if n.Allocated.MemoryMB > n.Capacity.MemoryMB || n.Capacity.MemoryMB != each*size+size/2 {
				t.Errorf("node %s handed out %d of %d MB", n.Name, n.Allocated.MemoryMB, n.Capacity.MemoryMB)
			}
		}
	}
	var mu sync.Mutex
	on := map[string][]string{}
	var creating sync.WaitGroup
	for i := range 2 * each {
		creating.Go(func() {
			sb, err := create([]*replica{a, b}[i%2])
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("create %d: %v", i, err)
				return
			}
			on[sb.Node] = append(on[sb.Node], sb.SandboxID)
		})
	}
	creating.Wait()
	if len(on["n1"]) != each || len(on["n2"]) != each {
		t.Fatalf("sandboxes by node: %v", on)
	}
	bounded()
	for _, id := range append(on["n1"], on["n2"]...) {
		must(t, b.echo(id, "runs"))
	}
	w.say("%d creates at once through two replicas filled both nodes of %d MB: %d sandboxes of %d MB each", 2*each, each*size+size/2, each, size)

	late := make(chan error, 1)
	var got *api.Sandbox
	go func() {
		sb, err := create(b)
		got = sb
		late <- err
	}()
	var job api.Job
	w.eventually("a seventh waits in the queue", func() error {
		out := a.must("queue", "ls", "--state", "waiting", "--json")
		var jobs []api.Job
		if err := json.Unmarshal([]byte(out), &jobs); err != nil || len(jobs) != 1 {
			return fmt.Errorf("the queue has %s, %v", out, err)
		}
		job = jobs[0]
		return nil
	})
	if out, code := a.cli("queue", "show", job.ID); code != 0 || !strings.Contains(out, "waiting") && !strings.Contains(out, "leased") {
		t.Errorf("exit code %d: %s", code, out)
	}
	time.Sleep(6 * time.Second) // the nodes have said how full they are
	select {
	case err := <-late:
		t.Fatalf("there is no room, and yet: %+v, %v", got, err)
	default:
	}
	bounded()
	other := map[string]string{"n1": "n2", "n2": "n1"}[job.Node] // not the one in whose queue it is
	must(t, a.Client.Kill(t.Context(), on[other][0]))
	began := time.Now()
	select {
	case err := <-late:
		must(t, err)
	case <-time.After(patience):
		t.Fatal("it waits still")
	}
	must(t, a.echo(got.SandboxID, "in the end"))
	if got.Node != other {
		t.Errorf("it runs on %s, and room was on %s", got.Node, other)
	}
	if _, err := a.Client.Get(t.Context(), on[other][0]); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("the one that made room: %v", err)
	}
	bounded()
	w.say("a seventh waited in the queue of %s, and ran on %s %s after a sandbox was killed there", job.Node, other, time.Since(began).Round(10*time.Millisecond))
}
