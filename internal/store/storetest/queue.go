package storetest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// QueueStore is what a queue's implementation offers in all.
type QueueStore interface {
	acheron.Queue
	acheron.Operator
}

// Queue is the suite of acheron.Queue and acheron.Operator.
func Queue(t *testing.T, open Factory[QueueStore]) {
	tests := []struct {
		name string
		run  func(*testing.T, Subject[QueueStore])
	}{
		{"a job is stored as it came", jobStored},
		{"a key gives one job", jobKeys},
		{"of many Enqueues with a key one is stored", jobKeyContention},
		{"a job that cannot work is invalid", jobInvalid},
		{"a node gets its own jobs, oldest first", leaseOrder},
		{"a lease is what it says", leaseContent},
		{"Lease blocks until there is a job", leaseBlocks},
		{"jobs that come at once wake as many calls", leaseBurst},
		{"Lease ends with its context", leaseContext},
		{"a Lease that gives up loses no job", leaseGivesUp},
		{"tenants take turns", leaseFairness},
		{"a long queue delays another tenant by one job", leaseFairnessLong},
		{"a result ends the job and is kept", completeResult},
		{"a lease that ran out is refused and its job redelivered", leaseExpires},
		{"a renewed lease holds", leaseRenewed},
		{"a job whose last attempt ran out is dead", leaseExpiresLast},
		{"a failed job comes back after its backoff", failRetry},
		{"a job that fails for good is dead", failDead},
		{"a job past its deadline is dead and never handed out", deadlineDead},
		{"a deadline does not end work that began", deadlineLeased},
		{"a cancelled job ends", cancelJob},
		{"Position counts those before", jobPosition},
		{"Await returns when the job ends", awaitEnds},
		{"Await returns the job as it is stored", awaitWhole},
		{"Await knows ended and unknown jobs", awaitKnown},
		{"an operator lists jobs by state", operatorList},
		{"a dead job can be requeued", operatorRequeue},
		{"a dead job can be requeued for another node", operatorReassign},
		{"ended jobs can be purged", operatorPurge},
		{"every job is done once under contention", queueContention},
		{"what was acknowledged survives a crash", queueCrash},
		{"histories are linearizable", queueHistories},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, open(t)) })
	}
}

// long is a lease that does not end during a test, short is one that does.
const (
	long  = time.Minute
	short = 200 * time.Millisecond
)

func job(id string) acheron.Job {
	return acheron.Job{ID: id, Tenant: "acme", Node: "n1", Kind: "create", MaxAttempts: 3}
}

func enqueue(t *testing.T, q acheron.Queue, jobs ...acheron.Job) {
	t.Helper()
	for _, j := range jobs {
		_, err := q.Enqueue(patient(t), j)
		must(t, err)
	}
}

// lease takes exactly n jobs of n1 and returns them in the order they came.
func lease(t *testing.T, q acheron.Queue, n int, ttl time.Duration) []acheron.Lease {
	t.Helper()
	var all []acheron.Lease
	for len(all) < n {
		got, err := q.Lease(patient(t), "n1", n-len(all), ttl)
		must(t, err)
		all = append(all, got...)
	}
	return all
}

// wantNone checks that nothing is handed out to n1 at the moment.
func wantNone(t *testing.T, q acheron.Queue) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	got, err := q.Lease(ctx, "n1", 10, long)
	if len(got) != 0 || err == nil {
		t.Fatalf("handed out %d jobs, error %v", len(got), err)
	}
}

func wantState(t *testing.T, q acheron.Queue, id string, state acheron.State) acheron.Job {
	t.Helper()
	j, err := q.Job(patient(t), id)
	must(t, err)
	if j.State != state {
		t.Fatalf("job %s is %s, want %s: %+v", id, j.State, state, j)
	}
	if j.State.Ended() == j.EndedAt.IsZero() {
		t.Fatalf("job %s is %s and ended at %s", id, j.State, j.EndedAt)
	}
	return j
}

func jobStored(t *testing.T, s Subject[QueueStore]) {
	ctx := patient(t)
	in := acheron.Job{
		ID: "a", Tenant: "acme", Node: "n1", Kind: "create", Payload: []byte("\x00\xff payload"), Key: "k", Digest: "d",
		MaxAttempts: 2, Deadline: time.Now().Add(time.Hour).UTC().Round(0),
	}
	want := in
	want.State = acheron.Waiting
	// The queue's own fields are its own.
	in.State, in.Attempt, in.Token, in.Position, in.Reason, in.Result, in.EndedAt = acheron.Done, 7, 8, 9, "r", []byte("r"), epoch
	in.EnqueuedAt = epoch
	got, err := s.Store.Enqueue(ctx, in)
	must(t, err)
	if d := time.Since(got.EnqueuedAt); d > patience || d < -patience {
		t.Fatalf("enqueued at %s", got.EnqueuedAt)
	}
	want.EnqueuedAt = got.EnqueuedAt
	wantSame(t, got, want)
	got, err = s.Store.Job(ctx, "a")
	must(t, err)
	want.Position = 1
	wantSame(t, got, want)
	_, err = s.Store.Job(ctx, "b")
	wantKind(t, err, tartarus.NotFound)
}

func jobKeys(t *testing.T, s Subject[QueueStore]) {
	ctx := patient(t)
	a := job("a")
	a.Key, a.Digest = "k", "d"
	first, err := s.Store.Enqueue(ctx, a)
	must(t, err)
	for _, id := range []string{"a", "b"} {
		again := a
		again.ID, again.Payload = id, []byte("other")
		got, err := s.Store.Enqueue(ctx, again)
		must(t, err)
		wantSame(t, got, first)
	}
	_, err = s.Store.Job(ctx, "b")
	wantKind(t, err, tartarus.NotFound)

	keyed := s.Store.(acheron.Keyed)
	got, err := keyed.ByKey(ctx, a.Tenant, "k")
	must(t, err)
	wantSame(t, got, first)
	for _, none := range [][2]string{{a.Tenant, "k2"}, {a.Tenant, ""}, {"beta", "k"}} {
		_, err = keyed.ByKey(ctx, none[0], none[1])
		wantKind(t, err, tartarus.NotFound)
	}

	other := a
	other.ID, other.Digest = "c", "d2"
	_, err = s.Store.Enqueue(ctx, other)
	wantKind(t, err, tartarus.Mismatch)

	for _, key := range []string{"k2", ""} {
		taken := job("a")
		taken.Key, taken.Digest = key, "d"
		_, err = s.Store.Enqueue(ctx, taken)
		wantKind(t, err, tartarus.Conflict)
	}
	taken := a
	taken.Tenant = "beta"
	_, err = s.Store.Enqueue(ctx, taken)
	wantKind(t, err, tartarus.Conflict)
	taken.ID = "e" // a key is unique per tenant only, and the refusal above has not taken it
	got, err = s.Store.Enqueue(ctx, taken)
	must(t, err)
	if got.ID != "e" {
		t.Fatalf("another tenant's key gave job %s", got.ID)
	}
	enqueue(t, s.Store, job("f"), job("g")) // no key is no key of its own

	l := lease(t, s.Store, 1, long)[0]
	must(t, s.Store.Complete(ctx, l, []byte("done")))
	got, err = s.Store.Enqueue(ctx, a)
	must(t, err)
	byKey, err := keyed.ByKey(ctx, a.Tenant, "k")
	must(t, err)
	wantSame(t, byKey, got)
	if got.ID != "a" || got.State != acheron.Done || string(got.Result) != "done" {
		t.Fatalf("a key whose job is done gave %+v", got)
	}
}

func jobKeyContention(t *testing.T, s Subject[QueueStore]) {
	const n = 24
	ids := make([]string, n)
	each(n, func(i int) {
		j := job(fmt.Sprint("j", i))
		j.Key, j.Digest = "k", "d"
		got, err := s.Store.Enqueue(patient(t), j)
		if err != nil {
			t.Error(err)
		}
		ids[i] = got.ID
	})
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("one key gave jobs %v", ids)
		}
	}
	lease(t, s.Store, 1, long)
	wantNone(t, s.Store)
}

func jobInvalid(t *testing.T, s Subject[QueueStore]) {
	ctx := patient(t)
	for name, spoil := range map[string]func(*acheron.Job){
		"no id":       func(j *acheron.Job) { j.ID = "" },
		"no tenant":   func(j *acheron.Job) { j.Tenant = "" },
		"no node":     func(j *acheron.Job) { j.Node = "" },
		"no attempts": func(j *acheron.Job) { j.MaxAttempts = 0 },
	} {
		j := job("a")
		spoil(&j)
		if _, err := s.Store.Enqueue(ctx, j); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	big := job("a")
	big.Payload = make([]byte, acheron.MaxBytes+1)
	_, err := s.Store.Enqueue(ctx, big)
	wantKind(t, err, tartarus.TooLarge)
	big.Payload = big.Payload[1:]
	enqueue(t, s.Store, big)
	l := lease(t, s.Store, 1, long)[0]
	if len(l.Job.Payload) != acheron.MaxBytes {
		t.Fatalf("payload came with %d bytes", len(l.Job.Payload))
	}
	wantKind(t, s.Store.Complete(ctx, l, make([]byte, acheron.MaxBytes+1)), tartarus.TooLarge)

	_, err = s.Store.Lease(ctx, "", 1, long)
	wantKind(t, err, tartarus.Invalid)
	_, err = s.Store.Lease(ctx, "n1", 0, long)
	wantKind(t, err, tartarus.Invalid)
	_, err = s.Store.Lease(ctx, "n1", 1, 0)
	wantKind(t, err, tartarus.Invalid)
	wantKind(t, s.Store.Renew(ctx, l, 0), tartarus.Invalid)
}

func completeResult(t *testing.T, s Subject[QueueStore]) {
	ctx := patient(t)
	enqueue(t, s.Store, job("a"), job("b"))
	ls := lease(t, s.Store, 2, long)
	wrong := ls[0]
	wrong.Token++
	wantKind(t, s.Store.Complete(ctx, wrong, nil), tartarus.Conflict)
	wrong.Token -= 2
	wantKind(t, s.Store.Complete(ctx, wrong, nil), tartarus.Conflict)
	swapped := ls[0]
	swapped.Token = ls[1].Token
	wantKind(t, s.Store.Complete(ctx, swapped, nil), tartarus.Conflict)
	unknown := ls[0]
	unknown.Job.ID = "z"
	wantKind(t, s.Store.Complete(ctx, unknown, nil), tartarus.Conflict)

	must(t, s.Store.Complete(ctx, ls[0], []byte("\x00result")))
	j := wantState(t, s.Store, "a", acheron.Done)
	if string(j.Result) != "\x00result" || j.Token != ls[0].Token || j.Attempt != 1 || j.Reason != "" {
		t.Fatalf("done as %+v", j)
	}
	wantKind(t, s.Store.Complete(ctx, ls[0], nil), tartarus.Conflict)
	wantKind(t, s.Store.Fail(ctx, ls[0], "late", true), tartarus.Conflict)
	wantKind(t, s.Store.Renew(ctx, ls[0], long), tartarus.Conflict)
	must(t, s.Store.Complete(ctx, ls[1], nil))
	if j := wantState(t, s.Store, "b", acheron.Done); len(j.Result) != 0 {
		t.Fatalf("no result came back as %q", j.Result)
	}
	wantNone(t, s.Store)
}

func failRetry(t *testing.T, s Subject[QueueStore]) {
	ctx := patient(t)
	j := job("a")
	j.MaxAttempts = 2
	enqueue(t, s.Store, j)
	first := lease(t, s.Store, 1, long)[0]
	before := time.Now()
	must(t, s.Store.Fail(ctx, first, "unavailable: disk is slow", true))
	if j := wantState(t, s.Store, "a", acheron.Waiting); j.Position != 1 || j.Attempt != 1 || j.Reason != "unavailable: disk is slow" {
		t.Fatalf("waits as %+v", j)
	}
	wantKind(t, s.Store.Fail(ctx, first, "again", true), tartarus.Conflict)
	second := lease(t, s.Store, 1, long)[0]
	if waited := time.Since(before); waited < acheron.Backoff(1)-5*time.Millisecond {
		t.Fatalf("handed out again after %s, backoff is %s", waited, acheron.Backoff(1))
	}
	if second.Job.Attempt != 2 || second.Token <= first.Token {
		t.Fatalf("first %+v, then %+v", first, second)
	}
	must(t, s.Store.Fail(ctx, second, "unavailable: still slow", true))
	if j := wantState(t, s.Store, "a", acheron.Dead); j.Reason != "unavailable: still slow" || j.Attempt != 2 {
		t.Fatalf("dead as %+v", j)
	}
	wantNone(t, s.Store)
}

func failDead(t *testing.T, s Subject[QueueStore]) {
	enqueue(t, s.Store, job("a"))
	l := lease(t, s.Store, 1, long)[0]
	must(t, s.Store.Fail(patient(t), l, "invalid: no such template", false))
	if j := wantState(t, s.Store, "a", acheron.Dead); j.Reason != "invalid: no such template" {
		t.Fatalf("dead as %+v", j)
	}
	wantNone(t, s.Store)
}

func deadlineDead(t *testing.T, s Subject[QueueStore]) {
	ctx := patient(t)
	soon, past := job("soon"), job("past")
	soon.Deadline, past.Deadline = time.Now().Add(short), time.Now().Add(-time.Hour)
	enqueue(t, s.Store, soon, past)
	for _, id := range []string{"soon", "past"} {
		// Nobody asks for work, and still it ends.
		j, err := s.Store.Await(ctx, id)
		must(t, err)
		if j.State != acheron.Dead || j.Reason != "deadline" {
			t.Fatalf("%s ended as %+v", id, j)
		}
	}
	if time.Now().Before(soon.Deadline) {
		t.Fatal("it ended before its deadline")
	}
	wantNone(t, s.Store)
	wantState(t, s.Store, "soon", acheron.Dead)

	retried := job("retried") // a deadline ends a backoff too
	retried.Deadline = time.Now().Add(short)
	enqueue(t, s.Store, retried)
	l := lease(t, s.Store, 1, 2*short)[0]
	if j, err := s.Store.Await(ctx, "retried"); err != nil || j.State != acheron.Dead || j.Reason != "deadline" {
		t.Fatalf("ended as %+v, %v", j, err)
	}
	wantKind(t, s.Store.Complete(ctx, l, nil), tartarus.Conflict)
}

func deadlineLeased(t *testing.T, s Subject[QueueStore]) {
	j := job("a")
	j.Deadline = time.Now().Add(5 * short) // the lease must come before it, also on a busy host
	enqueue(t, s.Store, j)
	l := lease(t, s.Store, 1, long)[0]
	time.Sleep(time.Until(j.Deadline) + 10*time.Millisecond) // the deadline itself is what is tested
	wantState(t, s.Store, "a", acheron.Leased)
	must(t, s.Store.Complete(patient(t), l, nil))
	wantState(t, s.Store, "a", acheron.Done)
}

func cancelJob(t *testing.T, s Subject[QueueStore]) {
	ctx := patient(t)
	enqueue(t, s.Store, job("a"), job("b"), job("c"))
	l := lease(t, s.Store, 1, long)[0]
	must(t, s.Store.Cancel(ctx, "a"))
	must(t, s.Store.Cancel(ctx, "b"))
	wantState(t, s.Store, "a", acheron.Cancelled)
	wantState(t, s.Store, "b", acheron.Cancelled)
	wantKind(t, s.Store.Renew(ctx, l, long), tartarus.Conflict)
	wantKind(t, s.Store.Complete(ctx, l, nil), tartarus.Conflict)
	wantKind(t, s.Store.Fail(ctx, l, "late", true), tartarus.Conflict)
	wantKind(t, s.Store.Cancel(ctx, "a"), tartarus.Conflict)
	wantKind(t, s.Store.Cancel(ctx, "z"), tartarus.NotFound)
	if l := lease(t, s.Store, 1, long)[0]; l.Job.ID != "c" {
		t.Fatalf("handed out %s", l.Job.ID)
	}
	wantNone(t, s.Store)
}

func jobPosition(t *testing.T, s Subject[QueueStore]) {
	other := job("o1")
	other.Tenant = "beta"
	elsewhere := job("e1")
	elsewhere.Node = "n2"
	enqueue(t, s.Store, job("a1"), job("a2"), job("a3"), other, elsewhere)
	positions := func() string {
		var b strings.Builder
		for _, id := range []string{"a1", "a2", "a3", "o1", "e1"} {
			j, err := s.Store.Job(patient(t), id)
			must(t, err)
			fmt.Fprintf(&b, "%s %d, ", id, j.Position)
		}
		return b.String()
	}
	// acme and beta take turns, so beta's first comes right behind acme's.
	for _, want := range []string{
		"a1 1, a2 3, a3 4, o1 2, e1 1, ",
		"a1 0, a2 2, a3 3, o1 1, e1 1, ",
		"a1 0, a2 1, a3 2, o1 0, e1 1, ",
	} {
		if got := positions(); got != want {
			t.Fatalf("got %s want %s", got, want)
		}
		lease(t, s.Store, 1, long)
	}
}

func awaitEnds(t *testing.T, s Subject[QueueStore]) {
	enqueue(t, s.Store, job("a"), job("b"))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := s.Store.Await(ctx, "a"); err != ctx.Err() {
		t.Fatalf("Await of a waiting job: %v, its context: %v", err, ctx.Err())
	}
	const n = 8
	got := make(chan acheron.Job, n)
	for range n {
		go func() {
			j, err := s.Store.Await(patient(t), "a")
			if err != nil {
				t.Error(err)
			}
			got <- j
		}()
	}
	l := lease(t, s.Store, 1, long)[0]
	must(t, s.Store.Complete(patient(t), l, []byte("r")))
	for range n {
		if j := <-got; j.State != acheron.Done || string(j.Result) != "r" {
			t.Fatalf("Await returned %+v", j)
		}
	}
	wantState(t, s.Store, "b", acheron.Waiting)
}

// awaitWhole holds that who waited is given the job as it is stored, in every field.
func awaitWhole(t *testing.T, s Subject[QueueStore]) {
	j := job("a")
	j.Payload, j.Key, j.Digest, j.Deadline = []byte("payload"), "key", "digest", time.Now().Add(time.Hour)
	enqueue(t, s.Store, j)
	must(t, s.Store.Fail(patient(t), lease(t, s.Store, 1, long)[0], "again", true)) // after which the reason stands until it ends
	got := make(chan acheron.Job, 1)
	go func() {
		j, err := s.Store.Await(patient(t), "a")
		if err != nil {
			t.Error(err)
		}
		got <- j
	}()
	must(t, s.Store.Complete(patient(t), lease(t, s.Store, 1, long)[0], []byte("r")))
	want, err := s.Store.Job(patient(t), "a")
	must(t, err)
	wantSame(t, <-got, want)
}

func awaitKnown(t *testing.T, s Subject[QueueStore]) {
	ctx := patient(t)
	enqueue(t, s.Store, job("a"))
	must(t, s.Store.Cancel(ctx, "a"))
	j, err := s.Store.Await(ctx, "a")
	must(t, err)
	if j.State != acheron.Cancelled {
		t.Fatalf("Await of an ended job: %+v", j)
	}
	_, err = s.Store.Await(ctx, "z")
	wantKind(t, err, tartarus.NotFound)
}
