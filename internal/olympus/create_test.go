package olympus_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

func TestCreateDefaults(t *testing.T) {
	for name, tc := range map[string]struct {
		path, key, body string
		life            time.Duration
		secured         bool
	}{
		"v1":                     {"/sandboxes", "developer", `{"templateID":"base"}`, 15 * time.Second, false},
		"v1 secure":              {"/sandboxes", "developer", `{"templateID":"base","secure":true}`, 15 * time.Second, true},
		"v2":                     {"/v2/sandboxes", "developer", `{"templateID":"base"}`, 300 * time.Second, true},
		"v2 cannot be unsecured": {"/v2/sandboxes", "developer", `{"templateID":"base","secure":false}`, 300 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			sb := decode[api.Sandbox](r.call(tc.key, "POST", tc.path, tc.body).want(201))
			if got := sb.EnvdAccessToken != ""; got != tc.secured {
				t.Errorf("secured: %v", got)
			}
			d := r.detail(sb.SandboxID)
			if life := d.EndAt.Sub(d.StartedAt); life != tc.life {
				t.Errorf("lives %s", life)
			}
			if !d.AllowInternetAccess || d.Phase != "running" || d.Runtime != "fake" || d.Node != "one" || d.Tier != "none" || d.Alias != "base" {
				t.Errorf("got %+v", d)
			}
			// The template's own resources come before the limits' defaults.
			if got := r.Node.Held()[0].Resources; got.MemoryMB != 512 || got.DiskMB != 1024 || got.VCPU != 2 || got.PIDs != 4096 {
				t.Errorf("resources %+v", got)
			}
		})
	}
}

// A key that may not exec is told no token, and cannot get a sandbox that asks for none.
func TestTokensAreForExec(t *testing.T) {
	r := newRig(t, nil)
	sb := decode[api.Sandbox](r.call("noexec", "POST", "/sandboxes", `{"templateID":"base","network":{"allowPublicTraffic":false}}`).want(201))
	if sb.EnvdAccessToken != "" || sb.TrafficAccessToken != "" {
		t.Errorf("got %+v", sb)
	}
	if s := r.Node.Held()[0].Secrets; s.AgentToken == "" || s.TrafficToken == "" {
		t.Error("the sandbox has no tokens")
	}
	for _, key := range []string{"noexec", "reader"} {
		if d := decode[api.SandboxDetail](r.call(key, "GET", "/sandboxes/"+sb.SandboxID, "")); d.EnvdAccessToken != "" || d.TrafficAccessToken != "" {
			t.Errorf("%s is told %+v", key, d)
		}
	}
	if a := r.call("noexec", "POST", "/v2/sandboxes/"+sb.SandboxID+"/connect", "{}").want(200); strings.Contains(a.body, "AccessToken") {
		t.Errorf("connect tells %s", a.body)
	}
	if d := r.detail(sb.SandboxID); d.EnvdAccessToken == "" || d.TrafficAccessToken == "" {
		t.Errorf("the developer is told %+v", d)
	}
}

func TestCreateAsksForMore(t *testing.T) {
	r := newRig(t, nil)
	r.create(`{"templateID":"tiny","cpuCount":4,"memoryMB":2048,"diskSizeMB":10,"runtime":"fake","tier":"none","mcp":{"x":{}},"unknownField":1,"iam":null,"volumeMounts":[]}`)
	spec := r.Node.Held()[0].Spec
	if spec.Resources != (tartarus.Resources{VCPU: 4, MemoryMB: 2048, DiskMB: 10, PIDs: 4096}) || spec.Runtime != "fake" || spec.RequestID == "" {
		t.Errorf("got %+v", spec)
	}
	r.create(`{"templateID":""}`)
	r.call("developer", "POST", "/sandboxes", `{"templateID":"tiny","runtime":"qemu"}`).want(400, "runtime qemu")
	r.call("developer", "POST", "/sandboxes", `{"templateID":"tiny","tier":"hardware-vm"}`).want(400, "hardware-vm")
}

// A node that cannot do it: the caller learns why, nothing is left, and the registry remembers.
func TestCreateFails(t *testing.T) {
	for name, tc := range map[string]struct {
		err    error
		status int
		retry  string
	}{
		"no room":         {&tartarus.Error{Kind: tartarus.Unavailable, Message: "the node is full"}, 503, "true"},
		"machine fails":   {fmt.Errorf("boot: exit status 1"), 502, "false"},
		"broken template": {tartarus.Errorf(tartarus.Corrupt, "root file system is damaged"), 409, ""},
		"no template":     {tartarus.Errorf(tartarus.NotFound, "template is gone"), 404, ""},
		"no such runtime": {tartarus.Errorf(tartarus.Unsupported, "runtime is not usable"), 400, ""},
		"bad rules":       {tartarus.Errorf(tartarus.Invalid, "rules make no sense"), 400, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(_ *olympus.Config, n *olympustest.Node) {
				n.Start = func(context.Context, tartarus.Spec) error { return tc.err }
			})
			a := r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base"}`).want(tc.status, tc.err.Error())
			if got := a.header.Get("Should-Retry"); got != tc.retry {
				t.Errorf("Should-Retry is %q, want %q", got, tc.retry)
			}
			list := decode[[]api.ListedSandbox](r.call("developer", "GET", "/v2/sandboxes?state=failed", "").want(200))
			if len(list) != 1 || list[0].Reason != "start" || !strings.Contains(list[0].Message, tc.err.Error()) || list[0].State != "failed" {
				t.Fatalf("the registry says %+v", list)
			}
			r.call("developer", "GET", "/sandboxes/"+list[0].SandboxID, "").want(404, "ended")
			r.call("developer", "GET", "/sandboxes/"+list[0].SandboxID+"?ended=true", "").want(200, "failed")
			if list := decode[[]api.ListedSandbox](r.call("developer", "GET", "/v2/sandboxes", "")); len(list) != 0 {
				t.Errorf("SDKs see %+v", list)
			}
		})
	}
}

func TestNoNode(t *testing.T) {
	r := newRig(t, func(_ *olympus.Config, n *olympustest.Node) { n.Self.Cordoned = true })
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base"}`).want(503, "cordoned")
}

// A node that joins is used at once, although the list of nodes is cached.
func TestNewNodeIsSeen(t *testing.T) {
	r := newRig(t, nil)
	if err := r.DB.Registry().RemoveNode(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base"}`).want(503)
	if err := r.Node.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.create(`{"templateID":"base"}`)
}

// slow makes starts take until release is called.
func slow(t *testing.T, more func(*olympus.Config)) (r *rig, begun chan string, release func()) {
	begun, gate := make(chan string, 100), make(chan struct{})
	var once sync.Once
	release = func() { once.Do(func() { close(gate) }) }
	t.Cleanup(release)
	r = newRig(t, func(c *olympus.Config, n *olympustest.Node) {
		if more != nil {
			more(c)
		}
		n.Start = func(ctx context.Context, s tartarus.Spec) error {
			begun <- s.ID
			select {
			case <-gate:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	t.Cleanup(release) // before the stack waits for its node
	return r, begun, release
}

// Nobody waits for ever, and what comes up too late is taken down again.
func TestCreateDeadline(t *testing.T) {
	r, begun, release := slow(t, func(c *olympus.Config) { c.CreateTime = 50 * time.Millisecond })
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base"}`).want(503, "in time")
	id := <-begun
	if d := decode[api.SandboxDetail](r.call("developer", "GET", "/sandboxes/"+id+"?ended=true", "").want(200)); d.Phase != "failed" || d.Reason != "start" {
		t.Errorf("the registry says %+v", d)
	}
	release()
	r.held(0)
	eventually(t, "the registry knows that it ended", func() bool {
		sb, err := r.DB.Registry().Sandbox(t.Context(), hades.AnyTenant, id)
		return err == nil && sb.Phase.Ended()
	})
}

// A client that goes away takes its create with it.
func TestCreateClientGone(t *testing.T) {
	r, begun, release := slow(t, nil)
	srv := httptest.NewServer(r.Server.Handler())
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "POST", srv.URL+"/v2/sandboxes", strings.NewReader(`{"templateID":"base"}`))
	req.Header.Set("X-API-KEY", r.Keys["developer"])
	failed := make(chan error, 1)
	go func() {
		_, err := srv.Client().Do(req)
		failed <- err
	}()
	id := <-begun
	cancel()
	if err := <-failed; err == nil {
		t.Fatal("the request was answered")
	}
	eventually(t, "the job is cancelled", func() bool {
		j, err := r.DB.Queue().Job(t.Context(), id)
		return err == nil && j.State == "cancelled"
	})
	release()
	r.held(0)
	srv.Client().CloseIdleConnections()
}

// A client that goes away when its sandbox is there, but before it is told so, takes it with it, unless it can ask for it again.
func TestCreateClientGoneLate(t *testing.T) {
	var leave func()
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) { c.Changed = func(tartarus.Sandbox) { leave() } })
	var serving context.Context
	served := make(chan struct{}, 2)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		defer func() { served <- struct{}{} }()
		serving = req.Context()
		r.Server.Handler().ServeHTTP(w, req)
	}))
	defer srv.Close()
	create := func(header ...string) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		leave = func() {
			cancel()
			<-serving.Done() // the server has noticed
		}
		req, _ := http.NewRequestWithContext(ctx, "POST", srv.URL+"/v2/sandboxes", strings.NewReader(`{"templateID":"base"}`))
		req.Header.Set("X-API-KEY", r.Keys["developer"])
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		if res, err := srv.Client().Do(req); err == nil {
			res.Body.Close()
			t.Fatal("the request was answered")
		}
		<-served
	}
	create("Idempotency-Key", "again")
	r.held(1)
	kept := r.Node.Held()
	create()
	srv.Client().CloseIdleConnections()
	srv.Close() // waits for the handlers
	if held := r.Node.Held(); len(held) != 1 || held[0].ID != kept[0].ID {
		t.Errorf("the node holds %d sandboxes, want the one that can be asked for again", len(held))
	}
}

// A sandbox that still waits can be killed; who waits for it learns.
func TestKillQueued(t *testing.T) {
	r, begun, release := slow(t, nil)
	done := make(chan answer, 1)
	go func() { done <- r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base"}`) }()
	id := <-begun
	eventually(t, "it is entered", func() bool { return r.call("developer", "GET", "/sandboxes/"+id, "").status == 200 })
	d := r.detail(id)
	if d.State != "queued" || d.Phase != "queued" {
		t.Errorf("got %+v", d)
	}
	r.call("other", "DELETE", "/sandboxes/"+id, "").want(404)
	r.call("developer", "POST", "/sandboxes/"+id+"/timeout", `{"timeout":5}`).want(409)
	r.call("developer", "DELETE", "/sandboxes/"+id, "").want(204)
	(<-done).want(409, "called off")
	r.call("developer", "GET", "/sandboxes/"+id, "").want(404)
	release()
	eventually(t, "what came up all the same is taken down", func() bool {
		sb, err := r.DB.Registry().Sandbox(t.Context(), hades.AnyTenant, id)
		return err == nil && sb.Driver == "fake" && sb.Phase.Ended() && len(r.Node.Held()) == 0
	})
}

func TestIdempotency(t *testing.T) {
	r := newRig(t, nil)
	const body = `{"templateID":"base","metadata":{"a":"1"}}`
	once := func(key, path, body, idem string) answer {
		return r.call(key, "POST", path, body, "Idempotency-Key", idem)
	}
	first := once("developer", "/v2/sandboxes", body, "k-1").want(201)
	if again := once("developer", "/v2/sandboxes", body, "k-1").want(201); again.body != first.body {
		t.Errorf("got %s, then %s", first.body, again.body)
	}
	once("developer", "/v2/sandboxes", `{"templateID":"tiny"}`, "k-1").want(422)
	once("developer", "/sandboxes", body, "k-1").want(422)
	if o := once("other", "/v2/sandboxes", body, "k-1").want(201); o.body == first.body {
		t.Error("another tenant got this one's sandbox")
	}
	if o := once("developer", "/v2/sandboxes", body, "k-2").want(201); o.body == first.body {
		t.Error("another key gave the same sandbox")
	}
	r.held(3)
	if list := decode[[]api.ListedSandbox](r.call("developer", "GET", "/v2/sandboxes?state=running,queued,failed,stopped", "")); len(list) != 2 {
		t.Errorf("the registry has %d entries, want 2", len(list))
	}
	for _, bad := range []string{"", "A", "a_b", "a b", "ä", strings.Repeat("a", 256), "k#2"} {
		once("developer", "/v2/sandboxes", body, bad).want(400, "Idempotency-Key")
	}
	once("developer", "/v2/sandboxes", body, strings.Repeat("a", 255)).want(201)
}

// Many at once under one key make one sandbox, and all are told the same.
func TestIdempotencyConcurrent(t *testing.T) {
	r := newRig(t, nil)
	answers := make([]answer, 16)
	var group sync.WaitGroup
	for i := range answers {
		group.Go(func() {
			answers[i] = r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base"}`, "Idempotency-Key", "same")
		})
	}
	group.Wait()
	for _, a := range answers {
		if a.want(201); a.body != answers[0].body {
			t.Errorf("got %s and %s", answers[0].body, a.body)
		}
	}
	r.held(1)
}

// A key whose create failed for a passing cause may be used again; one that can never work gives the same answer.
func TestIdempotencyAfterFailure(t *testing.T) {
	var fail error
	var mu sync.Mutex
	set := func(err error) { mu.Lock(); fail = err; mu.Unlock() }
	r := newRig(t, func(_ *olympus.Config, n *olympustest.Node) {
		n.Start = func(context.Context, tartarus.Spec) error { mu.Lock(); defer mu.Unlock(); return fail }
	})
	again := func() answer {
		return r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base"}`, "Idempotency-Key", "k")
	}
	set(&tartarus.Error{Kind: tartarus.Unavailable, Message: "full"})
	again().want(503)
	again().want(503)
	set(nil)
	first := again().want(201)
	if second := again().want(201); second.body != first.body {
		t.Error("the key gave two sandboxes")
	}
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"tiny"}`, "Idempotency-Key", "k").want(422)
	r.held(1)
}

func TestChangedIsTold(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) {
		c.Changed = func(sb tartarus.Sandbox) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, string(sb.Phase))
		}
	})
	sb := r.create(`{"templateID":"base"}`)
	r.call("developer", "PUT", "/sandboxes/"+sb.SandboxID+"/network", `{}`).want(204)
	r.call("developer", "DELETE", "/sandboxes/"+sb.SandboxID, "").want(204)
	if got := strings.Join(seen, " "); got != "running running stopped" {
		t.Errorf("told %q", got)
	}
}

// BenchmarkCreate is the path of a create with a durable store and a node that starts nothing.
func BenchmarkCreate(b *testing.B) {
	s := olympustest.New(b, func(c *olympus.Config, n *olympustest.Node) { c.Rate, n.Hands = -1, 256 })
	h := s.Server.Handler()
	b.SetParallelism(256)
	b.ReportAllocs()
	used := func() time.Duration {
		var u syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	began := used()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			req := httptest.NewRequestWithContext(context.Background(), "POST", "/v2/sandboxes", strings.NewReader(`{"templateID":"base","timeout":86400,"metadata":{"a":"b"}}`))
			req.Header.Set("X-API-KEY", s.Keys["developer"])
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, req)
			if rec.Code != 201 {
				b.Errorf("got %d %s", rec.Code, rec.Body)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
	// Unlike the rate, this does not depend on what else the machine does: 400 leave 5,000 creates a second on two processors.
	b.ReportMetric(float64((used()-began).Microseconds())/float64(b.N), "cpu-µs/op")
}
