package redis

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// TestPromotion measures what a failover to a replica loses that was behind, by cutting the replica off before its master dies. Without
// waiting for replicas it is everything acknowledged since, and each of it is there once more when its client repeats itself under its key. With
// waiting nothing is acknowledged that the replica does not have.
func TestPromotion(t *testing.T) {
	t.Parallel()
	const behind = 100
	for _, waits := range []int{0, 1} {
		t.Run(fmt.Sprint("waits for ", waits), func(t *testing.T) {
			master := startServer(t, "--appendfsync", "no")
			stream := startProxy(t, master.addr())
			replica := startServer(t, "--appendfsync", "no", "--replicaof", fmt.Sprint("127.0.0.1 ", stream.listener.Addr().(*net.TCPAddr).Port))
			rc := goredis.NewClient(&goredis.Options{Addr: replica.addr(), Protocol: 2, MaxRetries: -1})
			defer rc.Close()
			wait(t, "the replica is in step", func() error { return inStep(t.Context(), rc) })
			p := startProxy(t, master.addr()) // the name by which clients know the master
			db := openTest(t, Config{Addrs: []string{p.listener.Addr().String()}, Timeout: time.Second, WaitReplicas: waits})
			job := func(i int) acheron.Job {
				id := fmt.Sprint("j", i)
				return acheron.Job{ID: id, Tenant: "t", Node: "n1", Key: id, Digest: "d", MaxAttempts: 2}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := db.Queue().Enqueue(ctx, job(0)); err != nil {
				t.Fatal(err)
			}
			wait(t, "the replica has the first job", func() error {
				if n, err := rc.DBSize(ctx).Result(); err != nil || n == 0 {
					return fmt.Errorf("%d keys, %w", n, err)
				}
				return nil
			})
			held, err := db.Queue().Lease(ctx, "n1", 1, time.Minute)
			if err != nil || len(held) != 1 {
				t.Fatal(held, err)
			}
			wait(t, "the replica is in step again", func() error { return caughtUp(ctx, master, rc) })
			stream.black.Store(true)
			var acknowledged []acheron.Job
			for i := 1; i <= behind; i++ {
				_, err := db.Queue().Enqueue(ctx, job(i))
				switch {
				case err == nil:
					acknowledged = append(acknowledged, job(i))
				case !tartarus.Is(err, tartarus.Unavailable):
					t.Fatal(err)
				}
				if waits > 0 && i == 3 {
					break // each waits for its time
				}
			}
			master.kill()
			wait(t, "the replica is promoted", func() error { return rc.Do(ctx, "REPLICAOF", "NO", "ONE").Err() })
			p.aim(replica.addr())
			p.drop()
			wait(t, "it is found", func() error { _, err := db.Queue().Job(ctx, "j0"); return err })

			lost := 0
			for _, j := range acknowledged {
				if _, err := db.Queue().Job(ctx, j.ID); tartarus.Is(err, tartarus.NotFound) {
					lost++
				} else if err != nil {
					t.Fatal(err)
				}
				for range 2 { // and once more: it is one job
					if got, err := db.Queue().Enqueue(ctx, j); err != nil || got.ID != j.ID {
						t.Fatalf("%s repeated: %+v, %v", j.ID, got, err)
					}
				}
			}
			t.Logf("%d acknowledged while the replica was cut off, %d of them lost when it was promoted, all there after their clients repeated themselves", len(acknowledged), lost)
			if waits == 0 && lost != behind || waits > 0 && len(acknowledged) > 0 {
				t.Errorf("waiting for %d replicas: %d acknowledged, %d lost", waits, len(acknowledged), lost)
			}
			if waits > 0 {
				return // for there is nobody to wait for any more, so that all changes are refused
			}
			// What was replicated holds: the holder of the lease is still the one, and its report counts once.
			if err := db.Queue().Complete(ctx, held[0], []byte("r")); err != nil {
				t.Error(err)
			}
			if err := db.Queue().Complete(ctx, held[0], []byte("r")); !tartarus.Is(err, tartarus.Conflict) {
				t.Errorf("a second report: %v", err)
			}
		})
	}
}

// caughtUp reports whether a replica has everything that its master has written.
func caughtUp(ctx context.Context, master *server, replica *goredis.Client) error {
	mc := goredis.NewClient(&goredis.Options{Addr: master.addr(), Protocol: 2, MaxRetries: -1})
	defer mc.Close()
	n, err := mc.Do(ctx, "WAIT", 1, 1000).Int64()
	if err == nil && n < 1 {
		err = fmt.Errorf("%d replicas have all", n)
	}
	if err != nil {
		return err
	}
	want, err := mc.DBSize(ctx).Result()
	if err != nil {
		return err
	}
	if have, err := replica.DBSize(ctx).Result(); err != nil || have != want {
		return fmt.Errorf("%d of %d keys, %w", have, want, err)
	}
	return nil
}
