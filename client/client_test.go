package client_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// connect makes a client of a real control plane, as the key with this name.
func connect(t *testing.T, key string, change func(*olympus.Config, *olympustest.Node)) (*client.Client, *olympustest.Stack) {
	t.Helper()
	s := olympustest.New(t, change)
	srv := httptest.NewServer(s.Server.Handler())
	t.Cleanup(srv.Close)
	c, err := client.New(client.Config{URL: srv.URL + "/", APIKey: s.Keys[key]})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, s
}

func create(t *testing.T, c *client.Client, in api.NewSandbox) *api.Sandbox {
	t.Helper()
	in.TemplateID = "base"
	sb, err := c.Create(t.Context(), in, client.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func TestLife(t *testing.T) {
	c, s := connect(t, "developer", nil)
	ctx := t.Context()
	if err := c.Health(ctx); err != nil {
		t.Fatal(err)
	}
	sb := create(t, c, api.NewSandbox{Metadata: map[string]string{"a b": "c&d=%+"}})
	d, err := c.Get(ctx, sb.SandboxID)
	if err != nil || d.State != "running" || d.EnvdAccessToken != sb.EnvdAccessToken || d.Metadata["a b"] != "c&d=%+" {
		t.Fatalf("got %+v, %v", d, err)
	}
	if err := c.SetTimeout(ctx, sb.SandboxID, 1500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if d, _ := c.Get(ctx, sb.SandboxID); time.Until(d.EndAt) > 2*time.Second || time.Until(d.EndAt) < 500*time.Millisecond {
		t.Errorf("ends in %s, want 2 s: parts of a second are rounded up", time.Until(d.EndAt))
	}
	if again, err := c.Connect(ctx, sb.SandboxID, 0); err != nil || again.EnvdAccessToken != sb.EnvdAccessToken {
		t.Errorf("got %+v, %v", again, err)
	}
	if d, _ := c.Get(ctx, sb.SandboxID); time.Until(d.EndAt) < 290*time.Second {
		t.Errorf("ends in %s, want 300 s", time.Until(d.EndAt))
	}
	if err := c.SetNetwork(ctx, sb.SandboxID, api.NetworkConfig{DenyOut: []string{"8.8.8.8"}}); err != nil {
		t.Error(err)
	}
	s.Node.Measure(sb.SandboxID, tartarus.Sample{Time: time.Now(), MemUsed: 7})
	if m, err := c.Metrics(ctx, sb.SandboxID, time.Now().Add(-time.Minute), time.Now().Add(time.Minute)); err != nil || len(m) != 1 || m[0].MemUsed != 7 {
		t.Errorf("got %+v, %v", m, err)
	}
	if m, err := c.MetricsOf(ctx, sb.SandboxID, "iother"); err != nil || len(m) != 1 {
		t.Errorf("got %+v, %v", m, err)
	}
	if err := c.Kill(ctx, sb.SandboxID); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(ctx, sb.SandboxID); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("killed twice: %v", err)
	}
	if _, err := c.Get(ctx, sb.SandboxID); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("after its end: %v", err)
	}
	if d, err := c.GetEnded(ctx, sb.SandboxID); err != nil || d.Reason != "user" {
		t.Errorf("got %+v, %v", d, err)
	}
	if list, err := c.Templates(ctx); err != nil || len(list) != 2 {
		t.Errorf("templates: %+v, %v", list, err)
	}
	if list, err := c.Teams(ctx); err != nil || len(list) != 1 {
		t.Errorf("teams: %+v, %v", list, err)
	}
	if _, err := c.Nodes(ctx); !tartarus.Is(err, tartarus.Forbidden) {
		t.Errorf("nodes: %v", err)
	}
}

func TestListGoesThroughPages(t *testing.T) {
	c, _ := connect(t, "developer", nil)
	want := map[string]bool{}
	for range 5 {
		want[create(t, c, api.NewSandbox{Metadata: map[string]string{"k y": "v&1+%"}}).SandboxID] = true
	}
	create(t, c, api.NewSandbox{})
	got := 0
	for sb, err := range c.List(t.Context(), client.ListOptions{Metadata: map[string]string{"k y": "v&1+%"}, PageSize: 2, Ascending: true, StartedAfter: time.Now().Add(-time.Minute), Template: "base", States: []string{"running"}}) {
		if err != nil || !want[sb.SandboxID] {
			t.Fatalf("got %+v, %v", sb, err)
		}
		got++
	}
	if got != 5 {
		t.Errorf("got %d, want 5", got)
	}
	for range c.List(t.Context(), client.ListOptions{PageSize: 1}) {
		break // a caller that has seen enough
	}
	for _, err := range c.List(t.Context(), client.ListOptions{PageSize: 1000}) {
		if !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("got %v", err)
		}
	}
}

// A followed log has every line once, those written after the caller came, and ends with the sandbox.
func TestLogsFollow(t *testing.T) {
	c, s := connect(t, "developer", nil)
	id := create(t, c, api.NewSandbox{}).SandboxID
	at := time.Now()
	line := func(i int, text string) tartarus.LogEntry {
		return tartarus.LogEntry{Time: at.Add(time.Duration(i)), Level: "info", Message: text}
	}
	s.Node.Log(id, line(1, "one"), line(2, "two"))
	var got []string
	for e, err := range c.Logs(t.Context(), id, client.LogOptions{Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Message)
		if e.Message == "two" {
			s.Node.Log(id, line(3, "three"))
			go func() {
				time.Sleep(10 * time.Millisecond) // the order does not matter: both ways all three lines come
				_ = c.Kill(context.WithoutCancel(t.Context()), id)
			}()
		}
	}
	if strings.Join(got, " ") != "one two three" {
		t.Errorf("got %q", got)
	}
	got = nil
	for e, err := range c.Logs(t.Context(), id, client.LogOptions{Since: at.Add(2), Search: "t"}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Message)
	}
	if strings.Join(got, " ") != "two three" {
		t.Errorf("got %q", got)
	}
	for _, err := range c.Logs(t.Context(), "iunknown", client.LogOptions{Follow: true}) {
		if !tartarus.Is(err, tartarus.NotFound) {
			t.Errorf("got %v", err)
		}
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	c, _ := connect(t, "developer", nil)
	id := create(t, c, api.NewSandbox{}).SandboxID
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var last error
	for _, err := range c.Logs(ctx, id, client.LogOptions{Follow: true}) {
		last = err
	}
	if !errors.Is(last, context.DeadlineExceeded) && !tartarus.Is(last, tartarus.Deadline) {
		t.Errorf("got %v", last)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	c, _ := connect(t, "developer", func(c *olympus.Config, n *olympustest.Node) {
		n.Start = func(_ context.Context, spec tartarus.Spec) error {
			if k := tartarus.Kind(spec.Metadata["fail"]); k != "" {
				return &tartarus.Error{Kind: k, Message: "on purpose"}
			}
			return nil
		}
	})
	for kind, want := range map[tartarus.Kind]tartarus.Kind{
		tartarus.Unavailable: tartarus.Unavailable, tartarus.Corrupt: tartarus.Corrupt, tartarus.Unsupported: tartarus.Unsupported,
		tartarus.Invalid: tartarus.Invalid, tartarus.Denied: tartarus.Denied, tartarus.Exhausted: tartarus.Exhausted,
	} {
		_, err := c.Create(t.Context(), api.NewSandbox{TemplateID: "base", Metadata: map[string]string{"fail": string(kind)}}, client.CreateOptions{})
		if !tartarus.Is(err, want) || !strings.Contains(err.Error(), "on purpose") {
			t.Errorf("%s came as %s: %v", kind, tartarus.KindOf(err), err)
		}
	}
	_, err := c.Create(t.Context(), api.NewSandbox{TemplateID: "base", Metadata: map[string]string{"fail": "unavailable"}}, client.CreateOptions{})
	if e, ok := errors.AsType[*tartarus.Error](err); !ok || e.RetryAfter != 5*time.Second {
		t.Errorf("got %+v", err)
	}
	opt := client.CreateOptions{IdempotencyKey: "k"}
	if _, err := c.Create(t.Context(), api.NewSandbox{TemplateID: "base"}, opt); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), api.NewSandbox{TemplateID: "tiny"}, opt); !tartarus.Is(err, tartarus.Mismatch) {
		t.Errorf("got %v", err)
	}
}

// Answers of other servers and none at all are errors of a kind too.
func TestOddServers(t *testing.T) {
	status, body := 500, ""
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	c, err := client.New(client.Config{URL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, tc := range []struct {
		status int
		body   string
		want   tartarus.Kind
	}{
		{500, "<html>", tartarus.Internal},
		{404, "", tartarus.NotFound},
		{418, "tea", tartarus.Internal},
		{502, `{"message":"The sandbox is running but port is not open"}`, tartarus.PortClosed},
		{502, `{"message":"The sandbox was not found"}`, tartarus.GuestGone},
		{403, `{"code":403,"message":"m","error_code":"denied"}`, tartarus.Denied},
		{409, `{"code":409,"message":"m","error_code":"some_detail"}`, tartarus.Conflict},
		{200, "not JSON", tartarus.Internal},
	} {
		status, body = tc.status, tc.body
		if _, err := c.Get(t.Context(), "i1"); !tartarus.Is(err, tc.want) {
			t.Errorf("%d %s: got %s (%v), want %s", tc.status, tc.body, tartarus.KindOf(err), err, tc.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Health(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	srv.Close()
	if err := c.Health(t.Context()); !tartarus.Is(err, tartarus.Unavailable) {
		t.Errorf("no server: %v", err)
	}
	for _, url := range []string{"", "127.0.0.1:7300", "ftp://x", "http://", "http://a b"} {
		if _, err := client.New(client.Config{URL: url}); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%q: %v", url, err)
		}
	}
}
