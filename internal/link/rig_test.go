package link

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// longest bounds everything that a test waits for.
const longest = 30 * time.Second

var quiet = slog.New(slog.DiscardHandler)

// fakeNode is an agent that holds sandboxes in memory and whose guests echo.
type fakeNode struct {
	mu      sync.Mutex
	held    map[string]tartarus.Sandbox
	refills int
	disown  []string
	guest   net.Listener
}

func newFakeNode(t *testing.T) *fakeNode {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var guests sync.WaitGroup
	guests.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			guests.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); guests.Wait() })
	return &fakeNode{held: map[string]tartarus.Sandbox{}, guest: l}
}

func (n *fakeNode) Describe(id string) (tartarus.Sandbox, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if sb, ok := n.held[id]; ok {
		return sb, nil
	}
	return tartarus.Sandbox{}, tartarus.Errorf(tartarus.NotFound, "sandbox %s is not on this node", id)
}

func (n *fakeNode) Stop(_ context.Context, id string, reason tartarus.Reason) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.held[id]; !ok {
		return tartarus.Errorf(tartarus.NotFound, "sandbox %s is not on this node", id)
	}
	delete(n.held, id)
	return nil
}

func (n *fakeNode) SetDeadline(_ context.Context, id string, deadline time.Time, _ bool) (tartarus.Sandbox, error) {
	sb, err := n.Describe(id)
	sb.Deadline = deadline
	return sb, err
}

func (n *fakeNode) SetNetwork(_ context.Context, id string, w tartarus.Network) (tartarus.Sandbox, error) {
	sb, err := n.Describe(id)
	sb.Network = w
	return sb, err
}

func (n *fakeNode) Logs(_ context.Context, _ string, q olympus.LogQuery) ([]olympus.LogEntry, error) {
	return []olympus.LogEntry{{Message: q.Search, Level: q.Level}}, nil
}

func (n *fakeNode) Samples(_ context.Context, _ string, start, _ time.Time) ([]olympus.Sample, error) {
	return []olympus.Sample{{Time: start, CPUCount: 2}}, nil
}

func (n *fakeNode) Pause(_ context.Context, id string, _ tartarus.PauseHow) (tartarus.Sandbox, error) {
	return tartarus.Sandbox{}, &tartarus.Error{Kind: tartarus.Conflict, Message: "not now", Code: "busy", RetryAfter: time.Second}
}

func (n *fakeNode) Dial(ctx context.Context, id string, port int) (net.Conn, error) {
	if _, err := n.Describe(id); err != nil {
		return nil, tartarus.Errorf(tartarus.GuestGone, "sandbox %s does not run here", id)
	}
	if port != 80 {
		return nil, tartarus.Errorf(tartarus.PortClosed, "nobody listens on port %d", port)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", n.guest.Addr().String())
}

// fleet is a store, and replicas and nodes over it.
type fleet struct {
	t  *testing.T
	db *sqlite.DB
}

func newFleet(t *testing.T) *fleet {
	db, err := sqlite.Open(context.WithoutCancel(t.Context()), sqlite.Default(filepath.Join(t.TempDir(), "db")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return &fleet{t, db}
}

// replica is a hub that runs until stop.
type replica struct {
	*Hub
	addr string
	stop func()
}

func (f *fleet) replica(name string, change func(*HubConfig)) *replica {
	f.t.Helper()
	return f.replicaAt(name, "127.0.0.1:0", change)
}

func (f *fleet) replicaAt(name, addr string, change func(*HubConfig)) *replica {
	f.t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		f.t.Fatal(err)
	}
	cfg := HubConfig{
		Vault: f.db.Vault(), Queue: f.db.Queue(), Registry: f.db.Registry(), Replica: name, Advertise: l.Addr().String(),
		AuthorityFile: filepath.Join(f.t.TempDir(), "fleet.pem"), Version: "test", Log: quiet,
	}
	if change != nil {
		change(&cfg)
	}
	h, err := NewHub(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	r := &replica{Hub: h, addr: l.Addr().String()}
	r.stop = f.run(func(ctx context.Context) error { return h.Run(ctx, l) })
	f.eventually("the replica finds the authority", func() bool { return h.auth.Load() != nil })
	return r
}

// run runs something until the returned function is called, or the test ends.
func (f *fleet) run(what func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.t.Context()))
	done := make(chan error, 1)
	go func() { done <- what(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				f.t.Error(err)
			}
		case <-time.After(longest):
			f.t.Error("it does not stop")
		}
	})
	f.t.Cleanup(stop)
	return stop
}

// joined is a node in the fleet.
type joined struct {
	*Uplink
	node *fakeNode
	stop func()
}

// join makes a node and joins it through a replica. own gives it a listener of its own.
func (f *fleet) join(r *replica, name string, own bool, change func(*UplinkConfig)) *joined {
	f.t.Helper()
	token, _, err := r.Token(name, time.Minute)
	if err != nil {
		f.t.Fatal(err)
	}
	cfg := UplinkConfig{Node: name, Version: "test", Replicas: []string{r.addr}, Dir: f.t.TempDir(), TokenFile: f.file(token), Log: quiet}
	var l net.Listener
	if own {
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			f.t.Fatal(err)
		}
		cfg.Address = l.Addr().String()
	}
	if change != nil {
		change(&cfg)
	}
	u, err := NewUplink(f.t.Context(), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	m := &joined{Uplink: u, node: newFakeNode(f.t)}
	m.stop = f.run(func(ctx context.Context) error {
		return u.Run(ctx, Duties{
			Node:   m.node,
			Refill: func() { m.node.mu.Lock(); m.node.refills++; m.node.mu.Unlock() },
			Disown: func(ids []string) {
				m.node.mu.Lock()
				m.node.disown = append(m.node.disown, ids...)
				m.node.mu.Unlock()
			},
		}, l)
	})
	return m
}

func (f *fleet) file(text string) string {
	name := filepath.Join(f.t.TempDir(), "token")
	if err := os.WriteFile(name, []byte(text+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return name
}

func (f *fleet) eventually(what string, ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(longest); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	f.t.Fatal("not in time: " + what)
}

// connected waits for a node's session.
func (f *fleet) connected(r *replica, name string) {
	f.t.Helper()
	f.eventually("node "+name+" has a session", func() bool {
		for _, n := range r.Connected() {
			if n == name {
				return true
			}
		}
		return false
	})
}

func (f *fleet) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) wantKind(err error, kind tartarus.Kind) {
	f.t.Helper()
	if !tartarus.Is(err, kind) {
		f.t.Fatalf("error is %v, want one of kind %s", err, kind)
	}
}

func sandbox(id, node string) tartarus.Sandbox {
	return tartarus.Sandbox{Spec: tartarus.Spec{ID: id, Tenant: "acme"}, Node: node, Phase: tartarus.Running, CreatedAt: time.Now()}
}

var _ hades.Registry = (*sqlite.Registry)(nil)

// Terminate implements olympus.Terminator.
func (n *fakeNode) Terminate(ctx context.Context, id string, t tartarus.Termination) error {
	return n.Stop(ctx, id, t.Reason)
}

// CancelTermination implements olympus.Terminator.
func (n *fakeNode) CancelTermination(_ context.Context, id string) (tartarus.Sandbox, error) {
	return tartarus.Sandbox{}, tartarus.Errorf(tartarus.Conflict, "no termination of sandbox %s is pending", id)
}

func (n *fakeNode) Snapshot(_ context.Context, id string, how tartarus.SnapshotHow) (tartarus.Snapshot, error) {
	if id == "absent" {
		return tartarus.Snapshot{}, tartarus.Errorf(tartarus.NotFound, "sandbox %s is not on this node", id)
	}
	return tartarus.Snapshot{ID: "snap", SandboxID: id, Names: how.Names, Disk: how.Disk}, nil
}

func (n *fakeNode) Snapshots(_ context.Context, q tartarus.SnapshotQuery) ([]tartarus.Snapshot, error) {
	return []tartarus.Snapshot{{ID: "snap", Tenant: q.Tenant, Names: []string{q.Name}}}, nil
}

func (n *fakeNode) RemoveSnapshot(_ context.Context, id string) error {
	if id != "snap" {
		return tartarus.Errorf(tartarus.NotFound, "snapshot %s not found", id)
	}
	return nil
}

func (n *fakeNode) VerifySnapshot(_ context.Context, id string) (tartarus.Snapshot, error) {
	return tartarus.Snapshot{}, tartarus.Errorf(tartarus.Corrupt, "chunk 1 of snapshot %s is damaged", id)
}

func (n *fakeNode) Quarantine(_ context.Context, id string, q tartarus.Quarantine) (tartarus.Sandbox, error) {
	sb, err := n.Describe(id)
	sb.Phase, sb.Quarantine = tartarus.Quarantined, &q
	return sb, err
}

func (n *fakeNode) Release(_ context.Context, id string) (tartarus.Sandbox, error) {
	return tartarus.Sandbox{}, tartarus.Errorf(tartarus.Conflict, "sandbox %s is not quarantined", id)
}

func (n *fakeNode) Evidence(_ context.Context, id string) (tartarus.Evidence, error) {
	sb, err := n.Describe(id)
	return tartarus.Evidence{Sandbox: sb}, err
}

func (n *fakeNode) Examine(_ context.Context, id string) (tartarus.Inspection, error) {
	_, err := n.Describe(id)
	return tartarus.Inspection{Files: []tartarus.GuestFile{{Path: "/tmp/x"}}}, err
}

func (n *fakeNode) Evict(_ context.Context, id string) (tartarus.Move, error) {
	sb, err := n.Describe(id)
	return tartarus.Move{Sandbox: sb, Snapshot: "s"}, err
}

func (n *fakeNode) Leave(_ context.Context, id string) error {
	_, err := n.Describe(id)
	return err
}

func (n *fakeNode) Holds(_ context.Context, id string) (bool, error) {
	_, err := n.Describe(id)
	return err == nil, nil
}
