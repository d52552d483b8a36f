package redis

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/store/storetest"
)

func clusterSubject[T any](nodes []*server, part func(*DB) T) storetest.Factory[T] {
	return func(t *testing.T) storetest.Subject[T] {
		return storetest.Subject[T]{Store: part(openTest(t, Config{Addrs: []string{nodes[0].addr(), nodes[1].addr()}, Cluster: true}))}
	}
}

func TestCluster(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 0)
	t.Run("registry", func(t *testing.T) { storetest.Registry(t, clusterSubject(nodes, registryOf)) })
	t.Run("queue", func(t *testing.T) { storetest.Queue(t, clusterSubject(nodes, queueOf)) })
	t.Run("policies", func(t *testing.T) { storetest.Policies(t, clusterSubject(nodes, policiesOf)) })
	t.Run("keys", func(t *testing.T) { storetest.Keys(t, clusterSubject(nodes, keysOf)) })
	t.Run("shelf", func(t *testing.T) { storetest.Shelf(t, clusterSubject(nodes, shelfOf)) })
	t.Run("secrets", func(t *testing.T) { storetest.Secrets(t, clusterSubject(nodes, secretsOf)) })
	t.Run("volumes", func(t *testing.T) { storetest.Volumes(t, clusterSubject(nodes, volumesOf)) })
	t.Run("quotas", func(t *testing.T) {
		storetest.Quotas(t, clusterSubject(nodes, func(db *DB) storetest.Counted { return storetest.Counted{Shelf: db.Shelf(), Registry: db.Registry()} }))
	})
	t.Run("vault", func(t *testing.T) { storetest.Vault(t, clusterSubject(nodes, vaultOf)) })
	t.Run("keys are spread", func(t *testing.T) {
		for _, n := range nodes {
			c := goredis.NewClient(&goredis.Options{Addr: n.addr(), Protocol: 2})
			defer c.Close()
			if size, err := c.DBSize(t.Context()).Result(); err != nil || size == 0 {
				t.Errorf("%s holds %d keys, %v", n.addr(), size, err)
			}
		}
	})
}

func TestDeadCluster(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 0)
	const timeout = 500 * time.Millisecond
	db := openTest(t, Config{Addrs: []string{nodes[0].addr(), nodes[1].addr(), nodes[2].addr()}, Cluster: true, Timeout: timeout})
	if err := db.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.kill()
	}
	for round := range 2 {
		var wg sync.WaitGroup
		for name, run := range everyCall(db) {
			wg.Go(func() {
				began := time.Now()
				err := run(t.Context())
				if took := time.Since(began); !tartarus.Is(err, tartarus.Unavailable) || took > 2*timeout+time.Second {
					t.Errorf("round %d, %s: %v after %s", round, name, err, took)
				}
			})
		}
		wg.Wait()
	}
	for _, n := range nodes {
		n.start(t)
	}
	wait(t, "it recovers by itself", func() error { return db.Ping(t.Context()) })
}

// TestFailover kills a master of a Cluster under load: calls fail for a moment and recover by themselves. What the
// asynchronous replication lost is counted, and each lost job is there again once its client repeats itself under its key.
func TestFailover(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short")
	}
	nodes := startCluster(t, 1)
	db := openTest(t, Config{Addrs: []string{nodes[0].addr(), nodes[1].addr(), nodes[2].addr()}, Cluster: true, Timeout: time.Second})
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	master := masterOf(t, db, nodes)

	var failed, done atomic.Int64
	var acknowledged sync.Map
	job := func(w, i int) acheron.Job {
		id := fmt.Sprintf("w%di%d", w, i)
		return acheron.Job{ID: id, Tenant: "t", Node: "n1", Key: id, Digest: "d", MaxAttempts: 5}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := db.Queue().Enqueue(ctx, job(w, i)); err != nil {
					if !tartarus.Is(err, tartarus.Unavailable) {
						t.Errorf("enqueue: %v", err)
					}
					failed.Add(1)
					continue
				}
				acknowledged.Store(job(w, i).ID, job(w, i))
				done.Add(1)
			}
		})
	}
	wait(t, "work flows", func() error { return atLeast(&done, 500) })
	before := done.Load()
	began := time.Now()
	master.kill()
	wait(t, "work flows again", func() error { return atLeast(&done, before+500) })
	outage := time.Since(began)
	close(stop)
	wg.Wait()

	lost := 0
	acknowledged.Range(func(_, v any) bool {
		j := v.(acheron.Job)
		_, err := db.Queue().Job(ctx, j.ID)
		if tartarus.Is(err, tartarus.NotFound) {
			lost++
			_, err = db.Queue().Enqueue(ctx, j)
		}
		if err != nil {
			t.Errorf("%s: %v", j.ID, err)
		}
		got, err := db.Queue().Enqueue(ctx, j) // and once more: it is one job
		if err != nil || got.ID != j.ID {
			t.Errorf("%s repeated: %+v, %v", j.ID, got, err)
		}
		return ctx.Err() == nil
	})
	t.Logf("%d jobs acknowledged, %d calls failed during %s without the master, %d acknowledged jobs lost and enqueued again",
		done.Load(), failed.Load(), outage.Round(10*time.Millisecond), lost)
}

func atLeast(n *atomic.Int64, want int64) error {
	if have := n.Load(); have < want {
		return fmt.Errorf("%d of %d", have, want)
	}
	return nil
}

func masterOf(t *testing.T, db *DB, nodes []*server) *server {
	t.Helper()
	c, err := db.server(t.Context(), db.tag("q"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if n.addr() == c.Options().Addr {
			return n
		}
	}
	t.Fatalf("no server is %s", c.Options().Addr)
	return nil
}
