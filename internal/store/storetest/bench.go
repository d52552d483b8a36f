package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// CreatePath measures what the stores take of a create: Enqueue and Await by clients; by the nodes Lease, journal Put,
// PutSandbox on starting and on running, Complete. It reports creates per second and the time of one as its client sees it.
func CreatePath(b *testing.B, q acheron.Queue, r hades.Registry, j Journaler, clients, nodes int) {
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var work sync.WaitGroup
	for n := range nodes {
		work.Go(func() {
			if err := serveNode(ctx, q, r, j, fmt.Sprint("n", n)); err != nil && !errors.Is(err, context.Canceled) {
				b.Error(err)
				cancel()
			}
		})
	}
	took := make([]time.Duration, b.N)
	b.ResetTimer()
	cpu := processorTime()
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := c; i < b.N; i += clients {
				sb := fullSandbox(tartarus.NewID())
				sb.CreatedAt, sb.StartedAt, sb.EndedAt = time.Now(), time.Time{}, time.Time{}
				sb.Tenant, sb.Node, sb.Metadata = fmt.Sprint("t", c%8), fmt.Sprint("n", i%nodes), nil
				payload, err := json.Marshal(sb)
				began := time.Now()
				if err == nil {
					_, err = q.Enqueue(ctx, acheron.Job{ID: sb.ID, Tenant: sb.Tenant, Node: sb.Node, Kind: "create", Payload: payload, MaxAttempts: 3})
				}
				if err == nil {
					var done acheron.Job
					if done, err = q.Await(ctx, sb.ID); err == nil && done.State != acheron.Done {
						err = fmt.Errorf("ended as %s: %s", done.State, done.Reason)
					}
				}
				if err != nil {
					b.Errorf("create %d: %v", i, err)
					return
				}
				took[i] = time.Since(began)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64((processorTime()-cpu).Microseconds())/float64(b.N), "cpu-µs/create")
	slices.Sort(took)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
	b.ReportMetric(float64(took[b.N/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[b.N*99/100].Microseconds())/1000, "p99-ms")
	cancel()
	work.Wait()
}

// processorTime is what this process has used. Unlike the rate it says the same on a busy machine.
func processorTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// serveNode leases and does the work as a node does it, each job on a goroutine of its own.
func serveNode(ctx context.Context, q acheron.Queue, r hades.Registry, j Journaler, node string) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	failed := make(chan error, 1)
	for {
		leases, err := q.Lease(ctx, node, 64, time.Minute)
		if err != nil {
			return err
		}
		for _, l := range leases {
			wg.Go(func() {
				if err := serveJob(ctx, q, r, j, l); err != nil {
					select {
					case failed <- err:
					default:
					}
				}
			})
		}
		select {
		case err := <-failed:
			return err
		default:
		}
	}
}

func serveJob(ctx context.Context, q acheron.Queue, r hades.Registry, j Journaler, l acheron.Lease) error {
	var sb tartarus.Sandbox
	if err := json.Unmarshal(l.Job.Payload, &sb); err != nil {
		return err
	}
	if j != nil {
		if err := j.Put(ctx, sb.ID, l.Job.Payload); err != nil {
			return err
		}
	}
	for _, p := range []tartarus.Phase{tartarus.Starting, tartarus.Running} {
		if sb.Phase = p; p == tartarus.Running {
			sb.StartedAt = time.Now()
		}
		rev, err := r.PutSandbox(ctx, sb)
		if err != nil {
			return err
		}
		sb.Revision = rev
	}
	return q.Complete(ctx, l, []byte(sb.Node))
}
