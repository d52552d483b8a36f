package storetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

func operatorList(t *testing.T, s Subject[QueueStore]) {
	ctx := patient(t)
	// Jobs 0 to 4 are done, 5 to 9 dead, 10 to 14 leased, 15 to 19 cancelled, 20 to 24 wait.
	for i := range 25 {
		enqueue(t, s.Store, job(fmt.Sprintf("j%02d", i)))
	}
	for i, l := range lease(t, s.Store, 15, long) {
		switch i / 5 {
		case 0:
			must(t, s.Store.Complete(ctx, l, nil))
		case 1:
			must(t, s.Store.Fail(ctx, l, "why", false))
		}
	}
	for i := range 5 {
		must(t, s.Store.Cancel(ctx, fmt.Sprintf("j%02d", 15+i)))
	}
	for n, state := range []acheron.State{acheron.Done, acheron.Dead, acheron.Leased, acheron.Cancelled, acheron.Waiting} {
		for limit, count := range map[int]int{1000: 5, 5: 5, 2: 2} {
			jobs, err := s.Store.List(ctx, state, limit)
			must(t, err)
			if len(jobs) != count {
				t.Fatalf("%s, limit %d: %d jobs", state, limit, len(jobs))
			}
			for i, j := range jobs {
				if j.ID != fmt.Sprintf("j%02d", n*5+i) || j.State != state {
					t.Fatalf("%s: job %d is %s, %s", state, i, j.ID, j.State)
				}
			}
		}
	}
	_, err := s.Store.List(ctx, "dancing", 1)
	wantKind(t, err, tartarus.Invalid)
	_, err = s.Store.List(ctx, acheron.Done, 0)
	wantKind(t, err, tartarus.Invalid)
}

func operatorRequeue(t *testing.T, s Subject[QueueStore]) {
	ctx := patient(t)
	j := job("a")
	j.MaxAttempts, j.Deadline, j.Payload = 1, time.Now().Add(short), []byte("p")
	enqueue(t, s.Store, j)
	first := lease(t, s.Store, 1, long)[0]
	wantKind(t, s.Store.Requeue(ctx, "a", ""), tartarus.Conflict)
	must(t, s.Store.Fail(ctx, first, "why", true))
	wantState(t, s.Store, "a", acheron.Dead)
	time.Sleep(time.Until(j.Deadline) + 10*time.Millisecond) // its deadline must not end it again

	must(t, s.Store.Requeue(ctx, "a", ""))
	if j := wantState(t, s.Store, "a", acheron.Waiting); j.Attempt != 0 || j.Reason != "" || j.Position != 1 {
		t.Fatalf("waits as %+v", j)
	}
	wantKind(t, s.Store.Requeue(ctx, "a", ""), tartarus.Conflict)
	wantKind(t, s.Store.Requeue(ctx, "z", ""), tartarus.NotFound)
	second := lease(t, s.Store, 1, long)[0]
	if second.Job.Attempt != 1 || second.Token <= first.Token || string(second.Job.Payload) != "p" {
		t.Fatalf("first %+v, then %+v", first, second)
	}
	wantKind(t, s.Store.Complete(ctx, first, nil), tartarus.Conflict)
	must(t, s.Store.Complete(ctx, second, nil))
	wantState(t, s.Store, "a", acheron.Done)
	wantKind(t, s.Store.Requeue(ctx, "a", ""), tartarus.Conflict)

	waits := job("b")
	waits.Deadline = time.Now().Add(-time.Hour)
	enqueue(t, s.Store, waits)
	must(t, s.Store.Requeue(ctx, "b", ""))
	awaited := make(chan acheron.Job, 1)
	go func() {
		j, err := s.Store.Await(patient(t), "b") // a requeued job can be awaited again
		if err != nil {
			t.Error(err)
		}
		awaited <- j
	}()
	must(t, s.Store.Complete(ctx, lease(t, s.Store, 1, long)[0], nil))
	if j := <-awaited; j.State != acheron.Done {
		t.Fatalf("ended as %+v", j)
	}
}

// A job that goes on on another node is that node's alone, in the place that its age gives it, and stays so over a restart.
func operatorReassign(t *testing.T, s Subject[QueueStore]) {
	ctx := patient(t)
	first := job("a")
	first.Payload, first.Key, first.Digest = []byte("p"), "key", "d"
	enqueue(t, s.Store, first)
	younger := job("b")
	younger.Node = "other"
	enqueue(t, s.Store, younger)
	must(t, s.Store.Fail(ctx, lease(t, s.Store, 1, long)[0], "no room", false))
	must(t, s.Store.Requeue(ctx, "a", "other"))
	if j := wantState(t, s.Store, "a", acheron.Waiting); j.Node != "other" || j.Position != 1 {
		t.Fatalf("waits as %+v", j)
	}
	kept := s.Store
	if s.Crash != nil {
		kept = s.Crash(t)
	}
	soon, cancel := context.WithTimeout(ctx, short)
	defer cancel()
	if ls, err := kept.Lease(soon, first.Node, 1, long); len(ls) > 0 {
		t.Fatalf("the node that gave it back got %+v, %v", ls, err)
	}
	ls, err := kept.Lease(ctx, "other", 1, long)
	must(t, err)
	if j := ls[0].Job; j.ID != "a" || j.Node != "other" || string(j.Payload) != "p" || j.Key != "key" || j.Attempt != 1 {
		t.Fatalf("leased %+v", j)
	}
	must(t, kept.Complete(ctx, ls[0], []byte("r")))
	again, err := kept.Enqueue(ctx, first)
	must(t, err)
	if again.ID != "a" || again.State != acheron.Done || string(again.Result) != "r" || again.Node != "other" {
		t.Fatalf("under its key there is %+v", again)
	}
}

func operatorPurge(t *testing.T, s Subject[QueueStore]) {
	ctx := patient(t)
	const n = 30
	for i := range n {
		j := job(fmt.Sprintf("j%02d", i))
		j.Key, j.Digest = j.ID, "d"
		enqueue(t, s.Store, j)
	}
	ls := lease(t, s.Store, n-2, long) // two wait
	for _, l := range ls[:20] {
		must(t, s.Store.Complete(ctx, l, nil))
	}
	must(t, s.Store.Fail(ctx, ls[20], "why", false))
	must(t, s.Store.Cancel(ctx, ls[21].Job.ID))
	ended := wantState(t, s.Store, "j21", acheron.Cancelled).EndedAt

	count, err := s.Store.Purge(ctx, wantState(t, s.Store, "j00", acheron.Done).EndedAt)
	must(t, err)
	if count != 0 {
		t.Fatalf("purged %d that ended before the first", count)
	}
	count, err = s.Store.Purge(ctx, ended)
	must(t, err)
	if count != 21 {
		t.Fatalf("purged %d jobs, want 21", count)
	}
	wantState(t, s.Store, "j21", acheron.Cancelled) // it ended at, not before
	count, err = s.Store.Purge(ctx, time.Now().Add(time.Hour))
	must(t, err)
	if count != 1 {
		t.Fatalf("purged %d jobs, want 1", count)
	}
	_, err = s.Store.Job(ctx, "j00")
	wantKind(t, err, tartarus.NotFound)
	wantState(t, s.Store, "j22", acheron.Leased)
	wantState(t, s.Store, "j28", acheron.Waiting)

	again := job("j00") // id and key are free again, but a token of its former life is not
	again.Key, again.Digest = "j00", "d2"
	enqueue(t, s.Store, again)
	wantKind(t, s.Store.Complete(ctx, ls[0], nil), tartarus.Conflict)
	for _, l := range lease(t, s.Store, 3, long) {
		if l.Token <= ls[0].Token {
			t.Fatalf("token %d after %d", l.Token, ls[0].Token)
		}
	}
	wantKind(t, s.Store.Complete(ctx, ls[0], nil), tartarus.Conflict)
}
