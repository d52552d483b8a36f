package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

func ids(ls []acheron.Lease) string {
	var out []string
	for _, l := range ls {
		out = append(out, l.Job.ID)
	}
	return strings.Join(out, " ")
}

func leaseOrder(t *testing.T, s Subject[QueueStore]) {
	other := job("x")
	other.Node = "n2"
	enqueue(t, s.Store, other)
	for i := range 5 {
		enqueue(t, s.Store, job(fmt.Sprint("j", i)))
	}
	got, err := s.Store.Lease(patient(t), "n1", 3, long)
	must(t, err)
	if ids(got) != "j0 j1 j2" {
		t.Fatalf("asked for three: %s", ids(got))
	}
	got, err = s.Store.Lease(patient(t), "n1", 100, long)
	must(t, err)
	if ids(got) != "j3 j4" {
		t.Fatalf("asked for a hundred: %s", ids(got))
	}
	wantNone(t, s.Store)
}

func leaseContent(t *testing.T, s Subject[QueueStore]) {
	in := job("a")
	in.Payload = []byte("\x00payload")
	enqueue(t, s.Store, in)
	before := time.Now()
	l := lease(t, s.Store, 1, long)[0]
	if most := time.Now().Add(acheron.Trust(long)); l.Until.After(most) || l.Until.Before(before.Add(acheron.Trust(long)-patience)) {
		t.Fatalf("trusted until %s, at most %s", l.Until, most)
	}
	j := wantState(t, s.Store, "a", acheron.Leased)
	wantSame(t, l.Job, j)
	if l.Token < 1 || l.Token != j.Token || j.Attempt != 1 || string(j.Payload) != "\x00payload" || j.Position != 0 {
		t.Fatalf("lease %+v of %+v", l, j)
	}
}

func leaseBlocks(t *testing.T, s Subject[QueueStore]) {
	const n = 8
	got := make(chan string, n)
	for range n {
		go func() {
			ls, err := s.Store.Lease(patient(t), "n1", 1, long)
			if err != nil {
				t.Error(err)
			}
			got <- ids(ls)
		}()
	}
	seen := map[string]bool{}
	for i := range n { // each job wakes one of them
		enqueue(t, s.Store, job(fmt.Sprint("j", i)))
		seen[<-got] = true
	}
	if len(seen) != n || seen[""] {
		t.Fatalf("handed out %v", seen)
	}
}

// leaseBurst has as many jobs come at once as calls wait: each of them is woken, and none finds out by looking again at some time.
func leaseBurst(t *testing.T, s Subject[QueueStore]) {
	const n = 32
	for round := range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		var all, put sync.WaitGroup
		for w := range n {
			all.Go(func() {
				if ls, err := s.Store.Lease(ctx, "n1", 1, long); len(ls) != 1 {
					t.Errorf("round %d, call %d: %v, %v", round, w, ls, err)
				}
			})
		}
		for i := range n {
			put.Go(func() { enqueue(t, s.Store, job(fmt.Sprint("j", round, "x", i))) })
		}
		put.Wait()
		all.Wait()
	}
}

func leaseContext(t *testing.T, s Subject[QueueStore]) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	got, err := s.Store.Lease(ctx, "n1", 1, long)
	if len(got) != 0 || err != context.DeadlineExceeded {
		t.Fatalf("after its deadline: %v, %v", got, err)
	}
	enqueue(t, s.Store, job("a"))
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if got, err := s.Store.Lease(ctx, "n1", 1, long); len(got) != 0 || err != context.Canceled {
		t.Fatalf("already cancelled: %v, %v", got, err)
	}
	lease(t, s.Store, 1, long)
}

// leaseGivesUp has Lease calls end at any moment while jobs come: each job reaches exactly one of them all the same,
// or else it would lie idle until its lease ends.
func leaseGivesUp(t *testing.T, s Subject[QueueStore]) {
	const n = 200
	var mu sync.Mutex
	seen := map[string]int{}
	var count atomic.Int64
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for try := 0; count.Load() < n && try < 20_000; try++ {
				ctx, cancel := context.WithTimeout(patient(t), time.Duration(100+(try*37+w*11)%1500)*time.Microsecond)
				ls, err := s.Store.Lease(ctx, "n1", 2, long)
				cancel()
				if err != nil && !isContext(err) {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, l := range ls {
					seen[l.Job.ID]++
				}
				mu.Unlock()
				count.Add(int64(len(ls)))
			}
		})
	}
	for i := range n {
		enqueue(t, s.Store, job(fmt.Sprint("j", i)))
	}
	wg.Wait()
	if len(seen) != n {
		t.Fatalf("%d of %d jobs were handed out", len(seen), n)
	}
	for id, times := range seen {
		if times != 1 {
			t.Fatalf("%s was handed out %d times", id, times)
		}
	}
}

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

func leaseFairness(t *testing.T, s Subject[QueueStore]) {
	for _, id := range []string{"a1", "a2", "a3", "a4", "b1", "b2", "c1"} {
		j := job(id)
		j.Tenant = id[:1]
		enqueue(t, s.Store, j)
	}
	got := ids(lease(t, s.Store, 3, long)) + " " + ids(lease(t, s.Store, 4, long))
	if got != "a1 b1 c1 a2 b2 a3 a4" {
		t.Fatalf("handed out %s", got)
	}
}

// leaseFairnessLong is the promise to operators: whoever comes behind ten thousand jobs of another waits for one.
func leaseFairnessLong(t *testing.T, s Subject[QueueStore]) {
	const n = 10_000
	each(50, func(w int) {
		for i := range n / 50 {
			j := job(fmt.Sprintf("a%d-%d", w, i))
			j.Tenant = "greedy"
			if _, err := s.Store.Enqueue(patient(t), j); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for round := range 5 {
		j := job(fmt.Sprint("b", round))
		j.Tenant = "modest"
		enqueue(t, s.Store, j)
		if stored, err := s.Store.Job(patient(t), j.ID); err != nil || stored.Position > 2 {
			t.Fatalf("round %d: position %d, %v", round, stored.Position, err)
		}
		if got := ids(lease(t, s.Store, 2, long)); !strings.Contains(got, j.ID) {
			t.Fatalf("round %d: the next two were %s", round, got)
		}
	}
}

func leaseExpires(t *testing.T, s Subject[QueueStore]) {
	ctx := patient(t)
	enqueue(t, s.Store, job("a"))
	before := time.Now()
	first := lease(t, s.Store, 1, short)[0]
	second := lease(t, s.Store, 1, long)[0] // blocks until the first has run out
	if waited := time.Since(before); waited < short-5*time.Millisecond {
		t.Fatalf("a lease of %s was handed to another after %s", short, waited)
	}
	if second.Job.ID != "a" || second.Job.Attempt != 2 || second.Token <= first.Token {
		t.Fatalf("first %+v, then %+v", first, second)
	}
	if !time.Now().After(first.Until) {
		t.Fatal("its holder still trusts a lease that another has")
	}
	wantKind(t, s.Store.Renew(ctx, first, long), tartarus.Conflict)
	wantKind(t, s.Store.Complete(ctx, first, []byte("stale")), tartarus.Conflict)
	wantKind(t, s.Store.Fail(ctx, first, "stale", false), tartarus.Conflict)
	must(t, s.Store.Complete(ctx, second, []byte("fresh")))
	if j := wantState(t, s.Store, "a", acheron.Done); string(j.Result) != "fresh" {
		t.Fatalf("done as %+v", j)
	}
}

func leaseRenewed(t *testing.T, s Subject[QueueStore]) {
	ctx := patient(t)
	enqueue(t, s.Store, job("a"))
	first := lease(t, s.Store, 1, 5*short)[0]
	taken := make(chan acheron.Lease, 1)
	go func() {
		for range 100 {
			ls, err := s.Store.Lease(patient(t), "n1", 1, long)
			if err != nil {
				t.Error(err)
			}
			if len(ls) > 0 {
				taken <- ls[0]
				return
			}
		}
	}()
	began, last := time.Now(), time.Now()
	for time.Since(began) < 6*short {
		last = time.Now()
		must(t, s.Store.Renew(ctx, first, 5*short))
		select {
		case l := <-taken:
			t.Fatalf("a renewed lease was taken: %+v", l)
		case <-time.After(short / 4):
		}
	}
	second := <-taken
	if held := time.Since(last); held < 5*short-5*time.Millisecond {
		t.Fatalf("taken %s after a renewal for %s", held, 5*short)
	}
	if second.Token <= first.Token || second.Job.Attempt != 2 {
		t.Fatalf("first %+v, then %+v", first, second)
	}
	wantKind(t, s.Store.Renew(ctx, first, long), tartarus.Conflict)
}

func leaseExpiresLast(t *testing.T, s Subject[QueueStore]) {
	j := job("a")
	j.MaxAttempts = 1
	enqueue(t, s.Store, j)
	lease(t, s.Store, 1, short)
	ended, err := s.Store.Await(patient(t), "a")
	must(t, err)
	if ended.State != acheron.Dead || tartarus.KindOf(acheron.FromReason(ended.Reason)) != tartarus.Unavailable {
		t.Fatalf("ended as %+v", ended)
	}
	wantNone(t, s.Store)
}

// queueContention has several holders, some of which fail or stall, work off what several clients wait for.
func queueContention(t *testing.T, s Subject[QueueStore]) {
	const clients, perClient, holders = 8, 25, 6
	ctx, cancel := context.WithCancel(patient(t))
	var work sync.WaitGroup
	var done sync.Map
	for h := range holders {
		work.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				ls, err := s.Store.Lease(ctx, "n1", 1+h, 5*time.Second)
				if err != nil && !isContext(err) {
					t.Error(err)
					return
				}
				for i, l := range ls {
					if (n+i)%7 == h && l.Job.Attempt < l.Job.MaxAttempts {
						err = s.Store.Fail(ctx, l, "try again", true)
					} else if err = s.Store.Complete(ctx, l, append([]byte("of "), l.Job.Payload...)); err == nil {
						if _, twice := done.LoadOrStore(l.Job.ID, h); twice {
							t.Errorf("%s was completed twice", l.Job.ID)
						}
					}
					if err != nil && !isContext(err) {
						t.Errorf("report on %s: %v", l.Job.ID, err)
					}
				}
			}
		})
	}
	each(clients, func(c int) {
		for i := range perClient {
			j := job(fmt.Sprintf("j%d-%d", c, i))
			j.Tenant, j.Payload = fmt.Sprint("t", c%3), []byte(fmt.Sprint(c, i))
			if _, err := s.Store.Enqueue(ctx, j); err != nil {
				t.Error(err)
				return
			}
			got, err := s.Store.Await(ctx, j.ID)
			if err != nil || got.State != acheron.Done || string(got.Result) != "of "+string(j.Payload) {
				t.Errorf("%s: %v, %+v", j.ID, err, got)
				return
			}
		}
	})
	cancel()
	work.Wait()
}

func queueCrash(t *testing.T, s Subject[QueueStore]) {
	if s.Crash == nil {
		t.Skip("this store outlives its clients")
	}
	ctx := patient(t)
	keyed := job("done")
	keyed.Key, keyed.Digest = "k", "d"
	brief := job("brief")
	enqueue(t, s.Store, keyed, job("dead"), job("leased"), brief, job("waiting"), job("cancelled"))
	ls := lease(t, s.Store, 3, long)
	expiring := lease(t, s.Store, 1, short)[0]
	must(t, s.Store.Complete(ctx, ls[0], []byte("r")))
	must(t, s.Store.Fail(ctx, ls[1], "internal: why", false))
	must(t, s.Store.Cancel(ctx, "cancelled"))

	q := s.Crash(t)
	if j := wantState(t, q, "done", acheron.Done); string(j.Result) != "r" {
		t.Fatalf("%+v", j)
	}
	if j := wantState(t, q, "dead", acheron.Dead); j.Reason != "internal: why" {
		t.Fatalf("%+v", j)
	}
	wantState(t, q, "cancelled", acheron.Cancelled)
	got, err := q.Enqueue(ctx, keyed)
	must(t, err)
	if got.State != acheron.Done {
		t.Fatalf("the key gave %+v", got)
	}
	must(t, q.Renew(ctx, ls[2], long))
	newest := int64(0)
	for _, l := range lease(t, q, 2, long) { // the waiting one at once, the brief one when its lease ran out
		newest = max(newest, l.Token)
		for _, old := range append(ls, expiring) {
			if l.Token <= old.Token {
				t.Fatalf("token %d after %d", l.Token, old.Token)
			}
		}
	}
	wantNone(t, q)
	wantKind(t, q.Complete(ctx, expiring, nil), tartarus.Conflict)
	must(t, q.Complete(ctx, ls[2], []byte("late")))
	wantState(t, q, "leased", acheron.Done)
}
