package hecatoncheir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot/remote"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/fake"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/pagefault"
)

func TestMain(m *testing.M) {
	pagefault.Main(map[string]pagefault.Opener{remote.Kind: remote.Open})
	goleak.VerifyTestMain(m)
}

// rig is a node on a host of fake machines, with the real embedded store.
type rig struct {
	t       *testing.T
	dir     string
	db      *sqlite.DB
	host    *fake.Host
	fault   atomic.Pointer[func(ctx context.Context, op, id string) error]
	control Control
	journal Journal

	change []func(*Config)
	agent  *Agent
	stop   func()
}

type oneTemplate struct{}

func (oneTemplate) Template(_ context.Context, id, _ string) (Template, error) {
	if id != "tmpl" {
		return Template{}, tartarus.Errorf(tartarus.NotFound, "template %s is unknown", id)
	}
	return Template{ID: id, RootFS: "/dev/null"}, nil
}

func newRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), host: fake.NewHost(), change: change}
	db, err := sqlite.Open(t.Context(), sqlite.Default(filepath.Join(r.dir, "db")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	r.db, r.control, r.journal = db, Direct{Queue: db.Queue(), Registry: db.Registry()}, db.Journal()
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

// start runs a new agent on the rig, as a new process would.
func (r *rig) start() {
	r.t.Helper()
	driver, err := fake.New(fake.Config{Host: r.host, Fault: func(ctx context.Context, op, id string) error {
		if f := r.fault.Load(); f != nil {
			return (*f)(ctx, op, id)
		}
		return nil
	}})
	if err != nil {
		r.t.Fatal(err)
	}
	cfg := Config{
		Name: "node", Dir: filepath.Join(r.dir, "node"), Control: r.control, Journal: r.journal, Templates: oneTemplate{},
		Drivers: []vmm.Driver{driver}, MaxLive: 16, Starts: 4, StartTime: 5 * time.Second, Log: slog.New(slog.DiscardHandler),
	}
	_, direct := r.control.(Direct)
	if _, own := r.journal.(*sqlite.Journal); own && direct { // or the test wants to see each step
		cfg.Arrivals = r.db
	}
	for _, f := range r.change {
		f(&cfg)
	}
	r.agent, err = New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.agent.Run(ctx) }()
	var stopped bool
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("agent: %v", err)
		}
	}
	select {
	case <-r.agent.Ready():
	case err := <-done:
		stopped = true
		r.t.Fatalf("agent ended: %v", err)
	}
}

// on makes every operation with this name fail, or do whatever f does, until off.
func (r *rig) on(op string, f func(ctx context.Context) error) {
	hook := func(ctx context.Context, got, _ string) error {
		if got != op {
			return nil
		}
		return f(ctx)
	}
	r.fault.Store(&hook)
}

func (r *rig) off() { r.fault.Store(nil) }

func (r *rig) spec(change ...func(*tartarus.Spec)) tartarus.Spec {
	s := tartarus.Spec{
		ID: tartarus.NewID(), Tenant: "acme", TemplateID: "tmpl", Timeout: time.Minute,
		Resources: tartarus.Resources{VCPU: 1, MemoryMB: 128, DiskMB: 64, PIDs: 64},
	}
	for _, f := range change {
		f(&s)
	}
	return s
}

func (r *rig) enqueue(kind string, s tartarus.Spec, attempts int) acheron.Job {
	r.t.Helper()
	payload, err := json.Marshal(s)
	if err != nil {
		r.t.Fatal(err)
	}
	job, err := r.db.Queue().Enqueue(r.t.Context(), acheron.Job{
		ID: tartarus.NewID(), Tenant: s.Tenant, Node: "node", Kind: kind, Payload: payload, MaxAttempts: attempts, Deadline: time.Now().Add(time.Minute),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return job
}

func (r *rig) await(job acheron.Job) acheron.Job {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	done, err := r.db.Queue().Await(ctx, job.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	return done
}

// create starts a sandbox and expects it to run.
func (r *rig) create(change ...func(*tartarus.Spec)) tartarus.Sandbox {
	r.t.Helper()
	s := r.spec(change...)
	if _, err := r.db.Registry().PutSandbox(r.t.Context(), tartarus.Sandbox{Spec: s, Node: "node", Phase: tartarus.Queued, CreatedAt: time.Now()}); err != nil {
		r.t.Fatal(err)
	}
	job := r.await(r.enqueue(acheron.Create, s, 3))
	if job.State != acheron.Done {
		r.t.Fatalf("create ended %s: %s", job.State, job.Reason)
	}
	var sb tartarus.Sandbox
	if err := json.Unmarshal(job.Result, &sb); err != nil {
		r.t.Fatal(err)
	}
	if sb.Phase != tartarus.Running || r.host.Machine(sb.ID) == nil {
		r.t.Fatalf("sandbox is %s, machine %v", sb.Phase, r.host.Machine(sb.ID))
	}
	return sb
}

// hurry lets a sandbox's time be up after d.
func (r *rig) hurry(id string, d time.Duration) tartarus.Sandbox {
	r.t.Helper()
	sb, err := r.agent.SetDeadline(r.t.Context(), id, time.Now().Add(d), false)
	if err != nil {
		r.t.Fatal(err)
	}
	return sb
}

// expect waits until the registry says this of a sandbox.
func (r *rig) expect(id string, phase tartarus.Phase, reason tartarus.Reason) tartarus.Sandbox {
	r.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		sb, err := r.db.Registry().Sandbox(r.t.Context(), hades.AnyTenant, id)
		if err == nil && sb.Phase == phase && sb.Reason == reason {
			return sb
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("sandbox is %s because of %q (%s), %v; want %s because of %q", sb.Phase, sb.Reason, sb.Message, err, phase, reason)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// empty expects nothing of the sandbox to be left on node and host.
func (r *rig) empty(id string) {
	r.t.Helper()
	if r.host.Machine(id) != nil {
		r.t.Error("its machine is still there")
	}
	records, err := r.journal.All(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if _, ok := records[id]; ok {
		r.t.Error("its journal record is still there")
	}
	if _, err := r.agent.find(id); err == nil {
		r.t.Error("the agent still holds it")
	}
}

func TestCreateAndStop(t *testing.T) {
	r := newRig(t)
	sb := r.create()
	if sb.Driver != "fake" || sb.Tier != tartarus.TierNone || !sb.Deadline.After(sb.StartedAt) {
		t.Errorf("incomplete: %+v", sb)
	}
	r.expect(sb.ID, tartarus.Running, "")
	if err := r.agent.Stop(t.Context(), sb.ID, tartarus.ReasonUser); err != nil {
		t.Fatal(err)
	}
	r.empty(sb.ID)
	r.expect(sb.ID, tartarus.Stopped, tartarus.ReasonUser)
	if err := r.agent.Stop(t.Context(), sb.ID, tartarus.ReasonUser); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("stopping it again: %v", err)
	}
}

// TestStartThatFails holds that of a start that fails at any step nothing is left, and that the reason arrives.
func TestStartThatFails(t *testing.T) {
	tests := map[string]struct {
		change  func(*tartarus.Spec)
		fault   string
		want    tartarus.Kind
		attempt int
	}{
		"template unknown": {change: func(s *tartarus.Spec) { s.TemplateID = "other" }, want: tartarus.NotFound, attempt: 1},
		"runtime unknown":  {change: func(s *tartarus.Spec) { s.Runtime = "other" }, want: tartarus.Invalid, attempt: 1},
		"id is a path":     {change: func(s *tartarus.Spec) { s.ID = "../x" }, want: tartarus.Invalid, attempt: 1},
		"boot fails":       {fault: "boot", want: tartarus.Internal, attempt: 2},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if tt.fault != "" {
				r.on(tt.fault, func(context.Context) error { return errors.New("out of luck") })
			}
			s := r.spec()
			if tt.change != nil {
				tt.change(&s)
			}
			job := r.await(r.enqueue(acheron.Create, s, 2))
			if got := acheron.FromReason(job.Reason); job.State != acheron.Dead || got.Kind != tt.want || job.Attempt != tt.attempt {
				t.Errorf("job is %s after %d attempts: %q", job.State, job.Attempt, job.Reason)
			}
			r.empty(s.ID)
		})
	}
}

// TestWithdrawnStart cancels the job while the machine boots: the boot is called off and leaves nothing.
func TestWithdrawnStart(t *testing.T) {
	r := newRig(t)
	booting := make(chan struct{})
	r.on("boot", func(ctx context.Context) error {
		close(booting)
		<-ctx.Done()
		return ctx.Err()
	})
	s := r.spec()
	job := r.enqueue(acheron.Create, s, 1)
	<-booting
	if err := r.db.Queue().Cancel(t.Context(), job.ID); err != nil {
		t.Fatal(err)
	}
	if err := r.agent.Stop(t.Context(), s.ID, tartarus.ReasonUser); err != nil {
		t.Fatal(err)
	}
	r.empty(s.ID)
}

// TestCompletedTooLate cancels the job just before it is completed: nobody waits for the sandbox, so it ends.
func TestCompletedTooLate(t *testing.T) {
	r := newRig(t)
	s := r.spec()
	job := acheron.Job{}
	enqueued := make(chan struct{})
	r.on("boot", func(ctx context.Context) error {
		<-enqueued
		return r.db.Queue().Cancel(ctx, job.ID)
	})
	job = r.enqueue(acheron.Create, s, 1)
	close(enqueued)
	r.expect(s.ID, tartarus.Stopped, tartarus.ReasonUser)
	r.empty(s.ID)
}

// TestSecondDelivery delivers one start twice, as after a lease that ran out: it is one sandbox.
func TestSecondDelivery(t *testing.T) {
	r := newRig(t)
	sb := r.create()
	job := r.await(r.enqueue(acheron.Create, sb.Spec, 1))
	var again tartarus.Sandbox
	if err := json.Unmarshal(job.Result, &again); err != nil || job.State != acheron.Done || !again.StartedAt.Equal(sb.StartedAt) {
		t.Errorf("second delivery: %s, %v, started %s and %s", job.State, err, sb.StartedAt, again.StartedAt)
	}
	if r.host.Len() != 1 {
		t.Errorf("%d machines", r.host.Len())
	}
}

func TestFullNode(t *testing.T) {
	r := newRig(t)
	for range 16 {
		r.create()
	}
	job := r.await(r.enqueue(acheron.Create, r.spec(), 1))
	if got := acheron.FromReason(job.Reason); got.Kind != tartarus.Unavailable {
		t.Errorf("the seventeenth: %s, %q", job.State, job.Reason)
	}
}

func TestTimeIsUp(t *testing.T) {
	r := newRig(t)
	sb := r.create(func(s *tartarus.Spec) { s.Timeout = 2 * time.Second }) // long enough for create to look at it
	r.expect(sb.ID, tartarus.Stopped, tartarus.ReasonTimeout)
	r.empty(sb.ID)

	long := r.create()
	if _, err := r.agent.SetDeadline(t.Context(), long.ID, time.Now().Add(time.Second), true); err != nil {
		t.Fatal(err)
	}
	if got := r.expect(long.ID, tartarus.Running, ""); !got.Deadline.Equal(long.Deadline) {
		t.Errorf("extending moved the deadline from %s to %s", long.Deadline, got.Deadline)
	}
	if _, err := r.agent.SetDeadline(t.Context(), long.ID, time.Now().Add(20*time.Millisecond), false); err != nil {
		t.Fatal(err)
	}
	r.expect(long.ID, tartarus.Stopped, tartarus.ReasonTimeout)
}

func TestMachineEndsByItself(t *testing.T) {
	r := newRig(t)
	for _, reason := range []tartarus.Reason{tartarus.ReasonOOM, tartarus.ReasonCrashed} {
		sb := r.create()
		r.host.Machine(sb.ID).End(reason, "as told")
		if got := r.expect(sb.ID, tartarus.Failed, reason); got.Message != "as told" || got.EndedAt.IsZero() {
			t.Errorf("message %q, ended %s", got.Message, got.EndedAt)
		}
		r.empty(sb.ID)
	}
}

// TestAdoption follows an agent by another one: what lives is taken over with its deadline, what ended meanwhile is reported, and
// what no record speaks of is removed.
func TestAdoption(t *testing.T) {
	r := newRig(t)
	lives := r.create()
	dies := r.create()
	late := r.create()
	late = r.hurry(late.ID, 300*time.Millisecond)
	r.stop()
	r.host.Machine(dies.ID).End(tartarus.ReasonCrashed, "while nobody looked")
	stray := r.spec()
	driver, err := fake.New(fake.Config{Host: r.host})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := driver.Boot(t.Context(), vmm.Config{ID: stray.ID, RootFS: "/dev/null", Resources: stray.Resources}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(late.Deadline)) // the clock must find it overdue
	r.start()

	r.expect(dies.ID, tartarus.Failed, tartarus.ReasonCrashed)
	r.expect(late.ID, tartarus.Stopped, tartarus.ReasonTimeout)
	if r.host.Machine(stray.ID) != nil {
		t.Error("the stray machine is still there")
	}
	h, err := r.agent.find(lives.ID)
	if err != nil || !h.sandbox().Deadline.Equal(lives.Deadline) {
		t.Fatalf("not adopted: %v", err)
	}
	r.host.Machine(lives.ID).End(tartarus.ReasonOOM, "")
	r.expect(lives.ID, tartarus.Failed, tartarus.ReasonOOM) // the new agent watches it
}

// TestStopThatFails holds that a sandbox which the host does not let go of stays known, and that the clock tries again.
func TestStopThatFails(t *testing.T) {
	r := newRig(t)
	sb := r.create()
	r.on("stop", func(context.Context) error { return errors.New("busy") })
	if err := r.agent.Stop(t.Context(), sb.ID, tartarus.ReasonUser); err == nil {
		t.Fatal("stop said it worked")
	}
	if _, err := r.agent.find(sb.ID); err != nil {
		t.Fatalf("forgotten while its machine is there: %v", err)
	}
	r.off()
	r.agent.rewind()
	r.expect(sb.ID, tartarus.Stopped, tartarus.ReasonUser)
	r.empty(sb.ID)
}

// awayControl is a control plane that can be away.
type awayControl struct {
	Control
	away atomic.Bool
}

func (c *awayControl) Report(ctx context.Context, sb ...tartarus.Sandbox) error {
	if c.away.Load() {
		return tartarus.Errorf(tartarus.Unavailable, "away")
	}
	return c.Control.Report(ctx, sb...)
}

// TestControlPlaneAway holds that the node keeps time without its control plane, and tells it afterwards.
func TestControlPlaneAway(t *testing.T) {
	r := newRig(t)
	away := &awayControl{Control: r.control}
	r.control = away
	r.stop()
	r.start()
	sb := r.create()
	away.away.Store(true)
	r.hurry(sb.ID, 20*time.Millisecond)
	deadline := time.Now().Add(10 * time.Second)
	for r.host.Machine(sb.ID) != nil {
		if time.Now().After(deadline) {
			t.Fatal("the node waits for its control plane")
		}
		time.Sleep(5 * time.Millisecond)
	}
	away.away.Store(false)
	r.expect(sb.ID, tartarus.Stopped, tartarus.ReasonTimeout)
}

// TestChangesAreToldAtOnce holds that who changed a sandbox finds the change in the registry, however quickly it looks.
func TestChangesAreToldAtOnce(t *testing.T) {
	r := newRig(t)
	sb := r.create()
	for i := range 50 {
		want := time.Now().Add(time.Duration(i+5) * time.Minute).Truncate(time.Millisecond)
		if _, err := r.agent.SetDeadline(t.Context(), sb.ID, want, false); err != nil {
			t.Fatal(err)
		}
		got, err := r.db.Registry().Sandbox(t.Context(), sb.Tenant, sb.ID)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Deadline.Equal(want) {
			t.Fatalf("change %d: the registry has deadline %s, want %s", i, got.Deadline, want)
		}
		rules := tartarus.Network{Internet: i%2 == 0}
		if _, err := r.agent.SetNetwork(t.Context(), sb.ID, rules); err != nil {
			t.Fatal(err)
		}
		if got, err = r.db.Registry().Sandbox(t.Context(), sb.Tenant, sb.ID); err != nil || got.Network.Internet != rules.Internet {
			t.Fatalf("change %d: the registry has internet %t, %v", i, got.Network.Internet, err)
		}
	}
}

func TestPauseAndResume(t *testing.T) {
	r := newRig(t)
	sb := r.create()
	for round := range 3 {
		paused, err := r.agent.Pause(t.Context(), sb.ID, tartarus.PauseHow{})
		if err != nil || paused.Phase != tartarus.Paused {
			t.Fatalf("round %d: %s, %v", round, paused.Phase, err)
		}
		if r.host.Len() != 0 {
			t.Fatal("a paused sandbox holds a machine")
		}
		if _, err := r.agent.Pause(t.Context(), sb.ID, tartarus.PauseHow{}); !tartarus.Is(err, tartarus.Conflict) {
			t.Errorf("pausing it again: %v", err)
		}
		if round == 1 { // the next agent finds it paused, and its snapshot
			r.stop()
			r.start()
			r.expect(sb.ID, tartarus.Paused, "")
		}
		s := sb.Spec
		s.Timeout = time.Hour
		if job := r.await(r.enqueue(acheron.Resume, s, 1)); job.State != acheron.Done {
			t.Fatalf("resume ended %s: %s", job.State, job.Reason)
		}
		if got := r.expect(sb.ID, tartarus.Running, ""); time.Until(got.Deadline) < 50*time.Minute {
			t.Errorf("resumed until %s", got.Deadline)
		}
	}
	if _, err := r.agent.Pause(t.Context(), sb.ID, tartarus.PauseHow{}); err != nil {
		t.Fatal(err)
	}
	if err := r.agent.Stop(t.Context(), sb.ID, tartarus.ReasonUser); err != nil {
		t.Fatalf("kill while paused: %v", err)
	}
	r.empty(sb.ID)
	if left := r.agent.snapshots.List(snapshot.Filter{}); len(left) > 0 {
		t.Errorf("snapshots left: %v", left)
	}
}

// TestPausedWhenTimeIsUp holds that a sandbox which asked for it is paused instead of ended.
func TestPausedWhenTimeIsUp(t *testing.T) {
	r := newRig(t)
	sb := r.create(func(s *tartarus.Spec) { s.Lifecycle.PauseOnTimeout = true })
	r.hurry(sb.ID, 20*time.Millisecond)
	if got := r.expect(sb.ID, tartarus.Paused, ""); !got.Deadline.IsZero() {
		t.Errorf("a paused sandbox has deadline %s", got.Deadline)
	}
}

// TestPauseThatFails holds that a sandbox runs on when it cannot be written, and stays paused when it cannot be read.
func TestPauseThatFails(t *testing.T) {
	r := newRig(t)
	sb := r.create()
	r.on("snapshot", func(context.Context) error { return errors.New("disk full") })
	if _, err := r.agent.Pause(t.Context(), sb.ID, tartarus.PauseHow{}); err == nil {
		t.Fatal("pause said it worked")
	}
	if m := r.host.Machine(sb.ID); m == nil || m.Paused() || r.mustFind(sb.ID).sandbox().Phase != tartarus.Running {
		t.Fatal("it does not run on")
	}
	r.off()
	if _, err := r.agent.Pause(t.Context(), sb.ID, tartarus.PauseHow{}); err != nil {
		t.Fatal(err)
	}
	r.on("restore", func(context.Context) error { return tartarus.Errorf(tartarus.Corrupt, "damaged") })
	job := r.await(r.enqueue(acheron.Resume, sb.Spec, 1))
	if got := acheron.FromReason(job.Reason); got.Kind != tartarus.Corrupt {
		t.Errorf("resume of a damaged snapshot: %s, %q", job.State, job.Reason)
	}
	if phase := r.mustFind(sb.ID).sandbox().Phase; phase != tartarus.Paused || r.host.Len() != 0 {
		t.Errorf("it is %s, with %d machines", phase, r.host.Len())
	}
	r.off()
	if job := r.await(r.enqueue(acheron.Resume, sb.Spec, 1)); job.State != acheron.Done {
		t.Errorf("resume afterwards: %s, %q", job.State, job.Reason)
	}
}

func (r *rig) mustFind(id string) *held {
	r.t.Helper()
	h, err := r.agent.find(id)
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

// brokenJournal loses everything from a point on.
type brokenJournal struct {
	Journal
	broken atomic.Bool
	spare  atomic.Int32 // so many records are written before it loses everything
}

func (j *brokenJournal) Put(ctx context.Context, id string, record []byte) error {
	if j.broken.Load() && j.spare.Add(-1) < 0 {
		return tartarus.Errorf(tartarus.Unavailable, "disk full")
	}
	return j.Journal.Put(ctx, id, record)
}

// TestJournalFails holds that nothing is started that could not be found again.
func TestJournalFails(t *testing.T) {
	r := newRig(t)
	j := &brokenJournal{Journal: r.journal}
	r.journal = j
	r.stop()
	r.start()
	j.broken.Store(true)
	job := r.await(r.enqueue(acheron.Create, r.spec(), 1))
	if job.State != acheron.Dead || r.host.Len() != 0 {
		t.Errorf("job is %s, %d machines", job.State, r.host.Len())
	}
	// The machine runs, and the control plane has heard so, when that cannot be written down.
	j.spare.Store(1)
	spec := r.spec()
	job = r.await(r.enqueue(acheron.Create, spec, 1))
	if job.State != acheron.Dead || r.host.Len() != 0 {
		t.Errorf("job is %s, %d machines", job.State, r.host.Len())
	}
	r.expect(spec.ID, tartarus.Failed, tartarus.ReasonStart)
}

func TestSelectLogs(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	all := func() (out []tartarus.LogEntry) {
		for i := range 10 {
			level := []string{"debug", "info", "warn", "error"}[i%4]
			out = append(out, tartarus.LogEntry{Time: at(i), Level: level, Message: fmt.Sprintf("line %d", i)})
		}
		return out
	}
	tests := map[string]struct {
		q    tartarus.LogQuery
		want string
	}{
		"all":        {tartarus.LogQuery{}, "0123456789"},
		"cursor":     {tartarus.LogQuery{Cursor: at(7)}, "789"},
		"descending": {tartarus.LogQuery{Cursor: at(2), Descending: true}, "210"},
		"limit":      {tartarus.LogQuery{Limit: 2}, "01"},
		"level":      {tartarus.LogQuery{Level: "warn"}, "2367"},
		"search":     {tartarus.LogQuery{Search: "line 4"}, "4"},
	}
	for name, tt := range tests {
		got := ""
		for _, e := range selectLogs(all(), tt.q) {
			got += e.Message[len("line "):]
		}
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
	}
}

func TestSamples(t *testing.T) {
	var s samples
	res := tartarus.Resources{VCPU: 2, MemoryMB: 64, DiskMB: 32}
	t0 := time.Unix(1000, 0)
	for i := range keepSamples + 10 {
		s.add(t0.Add(time.Duration(i)*5*time.Second), nil, vmm.Usage{CPU: time.Duration(i) * time.Second, MemoryBytes: int64(i)}, nil, res)
	}
	all := s.between(time.Time{}, time.Time{})
	if len(all) != keepSamples || all[0].MemUsed != 10 || all[len(all)-1].MemUsed != keepSamples+9 {
		t.Fatalf("kept %d from %d to %d", len(all), all[0].MemUsed, all[len(all)-1].MemUsed)
	}
	if all[5].CPUPercent != 20 { // one second of five
		t.Errorf("share %v", all[5].CPUPercent)
	}
	if some := s.between(t0.Add(100*time.Second), t0.Add(110*time.Second)); len(some) != 3 {
		t.Errorf("%d samples in ten seconds", len(some))
	}
}
