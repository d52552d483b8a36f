package olympus_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a stack with the calls that tests make.
type rig struct {
	*olympustest.Stack
	t *testing.T
}

func newRig(t *testing.T, change func(*olympus.Config, *olympustest.Node)) *rig {
	t.Helper()
	return &rig{olympustest.New(t, change), t}
}

type answer struct {
	t      *testing.T
	what   string
	status int
	header http.Header
	body   string
}

// call makes a request with a key by name; further strings are header names and values in turn.
func (r *rig) call(key, method, path, body string, header ...string) answer {
	r.t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	req := httptest.NewRequestWithContext(r.t.Context(), method, path, in)
	if key != "" {
		req.Header.Set("X-API-KEY", r.Keys[key])
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	r.Server.Handler().ServeHTTP(rec, req)
	return answer{r.t, method + " " + path + " " + body, rec.Code, rec.Header(), rec.Body.String()}
}

// want fails unless the answer has this status and, for an error, the body that goes with it.
func (a answer) want(status int, message ...string) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("%s: got %d %s, want %d", a.what, a.status, a.body, status)
	}
	if status == http.StatusNoContent && a.body != "" {
		a.t.Fatalf("%s: a 204 with a body: %s", a.what, a.body)
	}
	if status >= 400 {
		e := decode[api.Error](a)
		if e.Code != status || e.Message == "" || e.ErrorCode == "" {
			a.t.Fatalf("%s: the error body does not say what it is: %s", a.what, a.body)
		}
		if status == 429 || status == 503 {
			if s := a.header.Get("Retry-After"); s == "" || s == "0" || strings.ContainsAny(s, ".-") {
				a.t.Fatalf("%s: Retry-After is %q", a.what, s)
			}
		}
	}
	for _, m := range message {
		if !strings.Contains(a.body, m) {
			a.t.Fatalf("%s: %s lacks %q", a.what, a.body, m)
		}
	}
	return a
}

func decode[T any](a answer) T {
	a.t.Helper()
	var v T
	if got := a.header.Get("Content-Type"); got != "application/json" {
		a.t.Fatalf("%s: content type %q", a.what, got)
	}
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		a.t.Fatalf("%s: %v in %s", a.what, err, a.body)
	}
	return v
}

// create makes a sandbox with the developer's key.
func (r *rig) create(body string) api.Sandbox {
	r.t.Helper()
	return decode[api.Sandbox](r.call("developer", "POST", "/v2/sandboxes", body).want(201))
}

func (r *rig) detail(id string) api.SandboxDetail {
	r.t.Helper()
	return decode[api.SandboxDetail](r.call("developer", "GET", "/sandboxes/"+id, "").want(200))
}

// eventually waits for something that happens elsewhere.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// held fails unless the node comes to hold exactly n sandboxes.
func (r *rig) held(n int) {
	r.t.Helper()
	eventually(r.t, "node holds the right number of sandboxes", func() bool { return len(r.Node.Held()) == n })
}
