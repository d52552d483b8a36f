package olympus_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/hecatoncheir"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/fake"
)

// anyTemplate has files for every template.
type anyTemplate struct{}

func (anyTemplate) Template(_ context.Context, id, build string) (hecatoncheir.Template, error) {
	return hecatoncheir.Template{ID: id, Build: build, RootFS: "/dev/null"}, nil
}

// agents is a fleet of them.
type agents map[string]*hecatoncheir.Agent

func (f agents) Node(_ context.Context, name string) (olympus.Node, error) {
	if a, ok := f[name]; ok {
		return a, nil
	}
	return nil, tartarus.Errorf(tartarus.Unavailable, "there is no node %s", name)
}

// crowd is two replicas, and a third one with little patience, over one store, with real agents on hosts of fake machines.
type crowd struct {
	*rig
	replicas map[string]*olympus.Server
	agents
}

func newCrowd(t *testing.T) *crowd {
	c := &crowd{replicas: map[string]*olympus.Server{}, agents: agents{}}
	var base olympus.Config
	c.rig = newRig(t, func(cfg *olympus.Config, n *olympustest.Node) {
		n.Self.Cordoned = true // the agents are the nodes here
		cfg.CreateTime, cfg.Fleet = longWait, c.agents
		base = *cfg
	})
	c.replicas["a"] = c.Server
	for name, patience := range map[string]time.Duration{"b": longWait, "hasty": 1500 * time.Millisecond} {
		base.CreateTime = patience
		s, err := olympus.New(base)
		if err != nil {
			t.Fatal(err)
		}
		c.replicas[name] = s
	}
	return c
}

const longWait = 30 * time.Second

// node starts an agent that may hand out so much.
func (c *crowd) node(name string, capacity tartarus.Resources) {
	c.t.Helper()
	journal, err := sqlite.Open(context.WithoutCancel(c.t.Context()), sqlite.Default(filepath.Join(c.t.TempDir(), "db")))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = journal.Close() })
	driver, err := fake.New(fake.Config{Host: fake.NewHost()})
	if err != nil {
		c.t.Fatal(err)
	}
	agent, err := hecatoncheir.New(hecatoncheir.Config{
		Name: name, Dir: c.t.TempDir(), Control: hecatoncheir.Direct{Queue: c.DB.Queue(), Registry: c.DB.Registry()}, Journal: journal.Journal(),
		Templates: anyTemplate{}, Drivers: []vmm.Driver{driver}, Capacity: capacity, MaxLive: 16, Starts: 4, StartTime: 10 * time.Second,
		Ephemeral: true, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.t.Context()))
	done := make(chan error, 1)
	go func() { done <- agent.Run(ctx) }()
	c.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Error(err)
		}
	})
	<-agent.Ready()
	c.agents[name] = agent
}

// ask creates a sandbox of two processors and 512 MB through a replica.
func (c *crowd) ask(replica string) answer {
	req := httptest.NewRequestWithContext(c.t.Context(), "POST", "/v2/sandboxes", strings.NewReader(`{"templateID":"base"}`))
	req.Header.Set("X-API-KEY", c.Keys["developer"])
	rec := httptest.NewRecorder()
	c.replicas[replica].Handler().ServeHTTP(rec, req)
	return answer{c.t, "create through " + replica, rec.Code, rec.Header(), rec.Body.String()}
}

// bounded fails when a node holds more than it may.
func (c *crowd) bounded() {
	c.t.Helper()
	for name, a := range c.agents {
		n := a.Node()
		if n.Capacity.VCPU > 0 && n.Allocated.VCPU > n.Capacity.VCPU || n.Capacity.MemoryMB > 0 && n.Allocated.MemoryMB > n.Capacity.MemoryMB {
			c.t.Fatalf("node %s handed out %+v of %+v", name, n.Allocated, n.Capacity)
		}
	}
}

// Replicas that place side by side know nothing of each other's placements for seconds. A node takes no more than it has all the same; what it
// refuses goes on where there is room, and waits where there is none.
func TestReplicasPlaceAtOnce(t *testing.T) {
	c := newCrowd(t)
	c.node("n1", tartarus.Resources{VCPU: 4})
	first := decode[api.Sandbox](c.ask("a").want(201))
	decode[api.Sandbox](c.ask("a").want(201))
	c.node("n2", tartarus.Resources{MemoryMB: 1024})
	// As far as b knows, both are empty.
	answers := make(chan answer, 2)
	for range 2 {
		go func() { answers <- c.ask("b") }()
	}
	for range 2 {
		sb := decode[api.Sandbox]((<-answers).want(201))
		if got := c.detail(sb.SandboxID); got.Node != "n2" || got.State != "running" {
			t.Errorf("sandbox %s is %s on %s", sb.SandboxID, got.State, got.Node)
		}
	}
	c.bounded()

	late := make(chan answer, 1)
	go func() { late <- c.ask("b") }()
	c.ask("hasty").want(503, "no node could start the sandbox in time", "has no room for the sandbox")
	select {
	case a := <-late:
		t.Fatalf("there is no room, and yet: %d %s", a.status, a.body)
	default:
	}
	c.bounded()
	c.call("developer", "DELETE", "/sandboxes/"+first.SandboxID, "").want(204)
	sb := decode[api.Sandbox]((<-late).want(201))
	if got := c.detail(sb.SandboxID); got.Node != "n1" {
		t.Errorf("it went to %s, and room was on n1", got.Node)
	}
	c.bounded()
	if jobs, err := c.DB.Queue().List(t.Context(), "waiting", 10); err != nil || len(jobs) > 0 {
		t.Errorf("still waiting: %+v, %v", jobs, err)
	}
}

// A request that comes again under its key while the first one is on its way to another node gets the same sandbox.
func TestRefusedRoomUnderAKey(t *testing.T) {
	c := newCrowd(t)
	c.node("n1", tartarus.Resources{VCPU: 2})
	held := decode[api.Sandbox](c.ask("a").want(201))
	ids := make(chan string, 6)
	for i := range 6 {
		go func() {
			req := httptest.NewRequestWithContext(t.Context(), "POST", "/v2/sandboxes", strings.NewReader(`{"templateID":"base"}`))
			req.Header.Set("X-API-KEY", c.Keys["developer"])
			req.Header.Set("Idempotency-Key", "once")
			rec := httptest.NewRecorder()
			c.replicas[[]string{"a", "b"}[i%2]].Handler().ServeHTTP(rec, req)
			if rec.Code != 201 {
				ids <- fmt.Sprint(rec.Code, rec.Body)
				return
			}
			ids <- decode[api.Sandbox](answer{t, "create", rec.Code, rec.Header(), rec.Body.String()}).SandboxID
		}()
	}
	eventually(t, "it was refused", func() bool {
		jobs, err := c.DB.Queue().List(t.Context(), "dead", 10)
		return err == nil && len(jobs) > 0
	})
	c.call("developer", "DELETE", "/sandboxes/"+held.SandboxID, "").want(204)
	one := <-ids
	for range 5 {
		if id := <-ids; id != one {
			t.Errorf("one got %s, another %s", one, id)
		}
	}
	c.bounded()
}

// stuck is a registry whose list of nodes can be read once; then it hangs.
type stuck struct {
	hades.Registry
	reads chan struct{} // filled with what may be read
	tried chan struct{}
}

func (s *stuck) Nodes(ctx context.Context) ([]hades.Node, error) {
	select {
	case s.tried <- struct{}{}:
	default:
	}
	select {
	case <-s.reads:
		return s.Registry.Nodes(ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A create does not wait for the list of nodes while there is one, however long it takes to read a newer one.
func TestCreatesDoNotWaitForNodes(t *testing.T) {
	s := &stuck{reads: make(chan struct{}, 2), tried: make(chan struct{}, 1)}
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) {
		s.Registry = c.Registry
		c.Registry, c.Entrance = s, nil
	})
	s.reads <- struct{}{}
	r.create(`{"templateID":"base"}`)
	<-s.tried
	time.Sleep(hades.RosterEvery + 50*time.Millisecond)
	for range 3 {
		r.create(`{"templateID":"base"}`)
	}
	select {
	case <-s.tried:
	default:
		t.Error("nobody tried to read a newer list")
	}
	s.reads <- struct{}{} // the read ends before the store is closed
}
