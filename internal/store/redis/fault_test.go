package redis

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/store/storetest"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// proxy stands between a client and its server and can lose connections, or swallow what comes through.
type proxy struct {
	listener net.Listener
	black    atomic.Bool

	mu     sync.Mutex
	target string
	conns  map[net.Conn]bool
	wg     sync.WaitGroup
}

func startProxy(t testing.TB, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: target, conns: map[net.Conn]bool{}}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.drop()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) accept() {
	for {
		in, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		target := p.target
		p.mu.Unlock()
		out, err := net.Dial("tcp", target)
		if err != nil {
			in.Close()
			continue
		}
		p.mu.Lock()
		p.conns[in], p.conns[out] = true, true
		p.mu.Unlock()
		p.wg.Go(func() { p.carry(in, out) })
		p.wg.Go(func() { p.carry(out, in) })
	}
}

func (p *proxy) carry(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !p.black.Load() {
			if _, e := to.Write(buf[:n]); e != nil {
				return
			}
		}
		if err != nil {
			if err != io.EOF {
				return
			}
			return
		}
	}
}

// aim sends new connections elsewhere.
func (p *proxy) aim(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// drop cuts every connection.
func (p *proxy) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

// everyCall is one call of each kind.
func everyCall(db *DB) map[string]func(context.Context) error {
	q, r, p, k := db.Queue(), db.Registry(), db.Policies(), db.Keys()
	l := acheron.Lease{Job: acheron.Job{ID: "j", Attempt: 1}, Token: 1}
	return map[string]func(context.Context) error{
		"Enqueue": func(ctx context.Context) error {
			_, err := q.Enqueue(ctx, acheron.Job{ID: "j", Tenant: "t", Node: "n", MaxAttempts: 1})
			return err
		},
		"Lease":    func(ctx context.Context) error { _, err := q.Lease(ctx, "n", 1, time.Minute); return err },
		"Renew":    func(ctx context.Context) error { return q.Renew(ctx, l, time.Minute) },
		"Complete": func(ctx context.Context) error { return q.Complete(ctx, l, nil) },
		"Fail":     func(ctx context.Context) error { return q.Fail(ctx, l, "r", true) },
		"Cancel":   func(ctx context.Context) error { return q.Cancel(ctx, "j") },
		"Job":      func(ctx context.Context) error { _, err := q.Job(ctx, "j"); return err },
		"Await":    func(ctx context.Context) error { _, err := q.Await(ctx, "j"); return err },
		"List":     func(ctx context.Context) error { _, err := q.List(ctx, acheron.Dead, 1); return err },
		"Requeue":  func(ctx context.Context) error { return q.Requeue(ctx, "j", "") },
		"Purge":    func(ctx context.Context) error { _, err := q.Purge(ctx, time.Now()); return err },

		"PutSandbox": func(ctx context.Context) error {
			_, err := r.PutSandbox(ctx, tartarus.Sandbox{Spec: tartarus.Spec{ID: "s", Tenant: "t"}, Phase: tartarus.Queued})
			return err
		},
		"Sandbox":       func(ctx context.Context) error { _, err := r.Sandbox(ctx, "t", "s"); return err },
		"ListSandboxes": func(ctx context.Context) error { _, err := r.ListSandboxes(ctx, hades.Query{Tenant: "t"}); return err },
		"RemoveSandbox": func(ctx context.Context) error { return r.RemoveSandbox(ctx, "s") },
		"PutNode":       func(ctx context.Context) error { return r.PutNode(ctx, hades.Node{Name: "n"}, time.Minute) },
		"Nodes":         func(ctx context.Context) error { _, err := r.Nodes(ctx); return err },
		"RemoveNode":    func(ctx context.Context) error { return r.RemoveNode(ctx, "n") },

		"Put":      func(ctx context.Context) error { _, err := p.Put(ctx, "p", []byte("b"), "", 0); return err },
		"Get":      func(ctx context.Context) error { _, err := p.Get(ctx, "p", 0); return err },
		"Policies": func(ctx context.Context) error { _, err := p.List(ctx); return err },
		"History":  func(ctx context.Context) error { _, err := p.History(ctx, "p"); return err },
		"Remove":   func(ctx context.Context) error { return p.Remove(ctx, "p", "", 1) },
		"Revision": func(ctx context.Context) error { _, err := p.Revision(ctx); return err },

		"PutKey":    func(ctx context.Context) error { return k.PutKey(ctx, tenant.Key{ID: "k", Hash: "h", Tenant: "t"}) },
		"KeyByHash": func(ctx context.Context) error { _, err := k.KeyByHash(ctx, "h"); return err },
		"Keys":      func(ctx context.Context) error { _, err := k.Keys(ctx, "t"); return err },
		"RemoveKey": func(ctx context.Context) error { return k.RemoveKey(ctx, "k") },
		"Ping":      db.Ping,
	}
}

func TestDeadRedis(t *testing.T) {
	const timeout = 300 * time.Millisecond
	s := startServer(t)
	for _, death := range []struct {
		name string
		die  func(*proxy)
		wake func(*proxy)
	}{
		{"refuses", func(*proxy) { s.kill() }, func(*proxy) { s.start(t) }},
		{"is silent", func(p *proxy) { p.black.Store(true) }, func(p *proxy) { p.black.Store(false); p.drop() }},
	} {
		t.Run(death.name, func(t *testing.T) {
			p := startProxy(t, s.addr())
			db := openTest(t, Config{Addrs: []string{p.listener.Addr().String()}, Timeout: timeout})
			if err := db.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			death.die(p)
			var wg sync.WaitGroup
			for name, run := range everyCall(db) {
				wg.Go(func() {
					began := time.Now()
					err := run(t.Context())
					// A call of several commands spends the timeout on each at most, and the first one fails.
					if took := time.Since(began); !tartarus.Is(err, tartarus.Unavailable) || took > 2*timeout+time.Second {
						t.Errorf("%s: %v after %s", name, err, took)
					}
				})
			}
			wg.Wait()
			death.wake(p)
			wait(t, "it recovers by itself", func() error { return db.Ping(t.Context()) })
			for name, run := range everyCall(db) {
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				if err := run(ctx); tartarus.Is(err, tartarus.Unavailable) {
					t.Errorf("%s after it recovered: %v", name, err)
				}
				cancel()
			}
		})
	}
}

// TestOpenWithoutRedis has the store open before its server is there.
func TestOpenWithoutRedis(t *testing.T) {
	s := startServer(t)
	s.kill()
	db := openTest(t, Config{Addrs: []string{s.addr()}, Timeout: 300 * time.Millisecond})
	if err := db.Ping(t.Context()); !tartarus.Is(err, tartarus.Unavailable) {
		t.Fatalf("no server: %v", err)
	}
	s.start(t)
	wait(t, "it is found", func() error { return db.Ping(t.Context()) })
}

// TestWaitersSurviveLostConnections has Lease and Await wait across cuts: what happens meanwhile reaches them.
func TestWaitersSurviveLostConnections(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--appendfsync", "no")
	p := startProxy(t, s.addr())
	cut := openTest(t, Config{Addrs: []string{p.listener.Addr().String()}, Timeout: time.Second})
	other := openTest(t, Config{Addrs: []string{s.addr()}, Prefix: cut.cfg.Prefix})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // sooner than anybody looks unasked
	defer cancel()
	for i := range 5 {
		id := fmt.Sprint("j", i)
		leased := make(chan error, 1)
		go func() {
			ls, err := cut.Queue().Lease(ctx, "n1", 1, time.Minute)
			if err == nil && (len(ls) != 1 || ls[0].Job.ID != id) {
				err = fmt.Errorf("handed out %v", ls)
			}
			leased <- err
		}()
		wait(t, "it waits", func() error {
			cut.bells.mu.Lock()
			defer cut.bells.mu.Unlock()
			if len(cut.bells.nodes["n1"]) == 0 {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		p.drop()
		if _, err := other.Queue().Enqueue(ctx, acheron.Job{ID: id, Tenant: "t", Node: "n1", MaxAttempts: 1}); err != nil {
			t.Fatal(err)
		}
		err := <-leased
		if tartarus.Is(err, tartarus.Unavailable) { // the cut met its question, not its waiting
			_, err = cut.Queue().Lease(ctx, "n1", 1, time.Minute)
		}
		if err != nil {
			t.Fatal(err)
		}
		awaited := make(chan error, 1)
		go func() {
			j, err := cut.Queue().Await(ctx, id)
			if err == nil && j.State != acheron.Cancelled {
				err = fmt.Errorf("ended as %s", j.State)
			}
			awaited <- err
		}()
		p.drop()
		if err := other.Queue().Cancel(ctx, id); err != nil {
			t.Fatal(err)
		}
		if err := <-awaited; err != nil && !tartarus.Is(err, tartarus.Unavailable) {
			t.Fatal(err)
		}
	}
}

// TestHistoriesWithLostConnections records histories while connections are cut at random. What a call without an answer
// did is unknown, and everything else must still fit.
func TestHistoriesWithLostConnections(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--appendfsync", "no")
	p := startProxy(t, s.addr())
	direct := openTest(t, Config{Addrs: []string{s.addr()}})
	cut := openTest(t, Config{Addrs: []string{p.listener.Addr().String()}, Prefix: direct.cfg.Prefix, Timeout: time.Second})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(25 * time.Millisecond):
				p.drop()
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	storetest.QueueHistories(t, storetest.History[storetest.QueueStore]{Stores: []storetest.QueueStore{direct.Queue(), cut.Queue(), cut.Queue()}, Faulty: true})
	storetest.RegistryHistories(t, storetest.History[hades.Registry]{Stores: []hades.Registry{direct.Registry(), cut.Registry()}, Faulty: true})
}

// TestKilledProcess has one process die with its leases and its timers: another takes over both.
func TestKilledProcess(t *testing.T) {
	s := startServer(t, "--appendfsync", "no")
	killed := openTest(t, Config{Addrs: []string{s.addr()}})
	other := openTest(t, Config{Addrs: []string{s.addr()}, Prefix: killed.cfg.Prefix})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, id := range []string{"a", "b"} {
		if _, err := killed.Queue().Enqueue(ctx, acheron.Job{ID: id, Tenant: "t", Node: "n1", MaxAttempts: 2, Deadline: time.Now().Add(400 * time.Millisecond)}); err != nil {
			t.Fatal(err)
		}
	}
	ls, err := killed.Queue().Lease(ctx, "n1", 1, 200*time.Millisecond)
	if err != nil || len(ls) != 1 {
		t.Fatal(ls, err)
	}
	if err := killed.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := other.Queue().Lease(ctx, "n1", 1, time.Minute) // b, which waits
	if err != nil || len(again) != 1 || again[0].Job.ID != "b" {
		t.Fatal(again, err)
	}
	j, err := other.Queue().Await(ctx, "a") // its lease ends, and then its deadline passes
	if err != nil || j.State == acheron.Leased {
		t.Fatal(j, err)
	}
}
