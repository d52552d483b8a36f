package olympus_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// document is what the tests need of openapi.yaml.
type document struct {
	Paths map[string]map[string]struct {
		OperationID string           `yaml:"operationId"`
		Security    *[]any           `yaml:"security"`
		Responses   map[string]any   `yaml:"responses"`
		Parameters  []map[string]any `yaml:"parameters"`
	}
}

// The table, the document and the rules agree: every row has a rule and a description, and nothing is described that is not there.
func TestRoutesAreDocumented(t *testing.T) {
	var doc document
	// Parameters beside the methods of a path are a list, not an operation.
	var raw map[string]any
	if err := yaml.Unmarshal(api.Document, &raw); err != nil {
		t.Fatal(err)
	}
	for _, item := range raw["paths"].(map[string]any) {
		delete(item.(map[string]any), "parameters")
	}
	clean, err := yaml.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(clean, &doc); err != nil {
		t.Fatal(err)
	}
	described, ids := map[string]bool{}, map[string]bool{}
	for path, item := range doc.Paths {
		for method, op := range item {
			described[strings.ToUpper(method)+" "+path] = op.Security != nil && len(*op.Security) == 0
			if op.OperationID == "" || ids[op.OperationID] {
				t.Errorf("%s %s: operationId %q is missing or used twice", method, path, op.OperationID)
			}
			ids[op.OperationID] = true
			if op.Responses["default"] == nil || len(op.Responses) < 2 {
				t.Errorf("%s %s: needs a success and the default error", method, path)
			}
		}
	}
	seen := map[string]bool{}
	for _, row := range olympus.Routes() {
		name := row.Method + " " + row.Pattern
		open, ok := described[name]
		switch {
		case seen[name]:
			t.Errorf("%s is in the table twice", name)
		case !ok:
			t.Errorf("%s is not in openapi.yaml", name)
		case open != (row.Role == "anyone"):
			t.Errorf("%s: the rule is %q, but openapi.yaml says open=%v", name, row.Role, open)
		case row.Role != "anyone" && row.Role != "volume" && !tenant.Admin.Covers(row.Role):
			t.Errorf("%s: %q is no rule", name, row.Role)
		}
		seen[name] = true
	}
	for name := range described {
		if !seen[name] {
			t.Errorf("%s is in openapi.yaml only", name)
		}
	}
}

// Every row holds its rule: no key, a wrong one, an ended one and one of too low a role do not pass.
func TestRoutesHoldTheirRules(t *testing.T) {
	r := newRig(t, nil)
	lower := map[tenant.Role][]string{tenant.Developer: {"reader"}, tenant.Operator: {"reader", "developer"}}
	for _, row := range olympus.Routes() {
		path := strings.ReplaceAll(row.Pattern, "{sandboxID}", "i0000")
		t.Run(row.Method+row.Pattern, func(t *testing.T) {
			r := &rig{r.Stack, t}
			if row.Role == "anyone" {
				r.call("", row.Method, path, "").want(200)
				return
			}
			if row.Role == "volume" {
				holdsByVolume(r, row.Method, row.Pattern)
				return
			}
			r.call("", row.Method, path, "").want(401, "X-API-KEY")
			r.call("", row.Method, path, "", "Authorization", "Basic Zm9vOmJhcg==").want(401)
			for _, bad := range []string{"e2b_" + strings.Repeat("0", 40), "e2b_zz", "nonsense", strings.Repeat("e2b_", 10000), "e2b_\x00"} {
				r.call("", row.Method, path, "", "X-API-KEY", bad).want(401, "not valid")
			}
			for _, name := range []string{"expired", "revoked"} {
				r.call(name, row.Method, path, "").want(401)
			}
			for _, name := range lower[row.Role] {
				r.call(name, row.Method, path, "").want(403, string(row.Role))
			}
			// With the right key it comes to the handler, by header or as a bearer.
			for _, key := range []string{"X-API-KEY", "Authorization"} {
				value := r.Keys["admin"]
				if key == "Authorization" {
					value = "bearer " + value
				}
				if a := r.call("", row.Method, path, "", key, value); a.status == 401 || a.status == 403 || a.status >= 500 {
					t.Fatalf("%s: got %d %s", a.what, a.status, a.body)
				}
			}
		})
	}
}

// holdsByVolume checks that a route takes the token of its own volume and nothing else.
func holdsByVolume(r *rig, method, pattern string) {
	r.t.Helper()
	name := strings.ToLower(method) + strings.NewReplacer("/", "", "{", "", "}", "").Replace(pattern)
	mine := decode[api.VolumeAndToken](r.call("developer", "POST", "/volumes", `{"name":"mine`+name+`"}`).want(201))
	other := decode[api.VolumeAndToken](r.call("developer", "POST", "/volumes", `{"name":"other`+name+`"}`).want(201))
	path := strings.ReplaceAll(pattern, "{volumeID}", mine.VolumeID) + "?path=/x"
	r.call("", method, path, "").want(401, "token")
	r.call("admin", method, path, "").want(401, "token")
	for _, bad := range []string{r.Keys["admin"], "e30.e30.e30", mine.Token + "x", strings.Repeat("a", 10000)} {
		r.call("", method, path, "", "Authorization", "Bearer "+bad).want(401, "token")
	}
	r.call("", method, path, "", "Authorization", "Bearer "+other.Token).want(403)
	if a := r.call("", method, path, "", "Authorization", "bearer "+mine.Token); a.status == 401 || a.status == 403 || a.status >= 500 {
		r.t.Fatalf("%s: got %d %s", a.what, a.status, a.body)
	}
	if method == "GET" {
		return
	}
	reader := decode[api.VolumeAndToken](r.call("reader", "GET", "/volumes/"+mine.VolumeID, "").want(200))
	r.call("", method, path, "{}", "Authorization", "Bearer "+reader.Token).want(403, "reading only")
}

func TestUnknownRoutesAreJSON(t *testing.T) {
	r := newRig(t, nil)
	for _, path := range []string{"/", "/nothing", "/sandboxes/", "//sandboxes", "/sandboxes/a/b/c", "/v3/templates", "/sandboxes/i1/spoon", "/%00", "/v2/../sandboxes/x/y"} {
		r.call("admin", "POST", path, "{}").want(404, "there is no route")
	}
	a := r.call("admin", "PATCH", "/sandboxes", "{}").want(405)
	if got := a.header.Get("Allow"); got != "GET, POST" {
		t.Errorf("Allow is %q", got)
	}
	r.call("admin", "BREW", "/sandboxes", "").want(405)
}

func TestDocumentIsServed(t *testing.T) {
	r := newRig(t, nil)
	if a := r.call("", "GET", "/openapi.yaml", ""); a.status != 200 || a.body != string(api.Document) {
		t.Fatalf("got %d", a.status)
	}
}

func TestReadyNeedsALivingNode(t *testing.T) {
	r := newRig(t, nil)
	r.call("", "GET", "/readyz", "").want(200)
	if err := r.DB.Registry().RemoveNode(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	r.call("", "GET", "/readyz", "").want(503, "no node")
	r.call("", "GET", "/health", "").want(200, `"status":"ok"`)
}

type panicky struct{ olympustest.Templates }

func (panicky) List(context.Context, string) ([]olympus.Template, error) { panic("on purpose") }

// A panic is the only 500, and the server goes on.
func TestPanicIsCaught(t *testing.T) {
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) { c.Templates = panicky{} })
	a := r.call("developer", "GET", "/templates", "").want(500, "request ")
	if strings.Contains(a.body, "on purpose") || !strings.Contains(a.body, a.header.Get("X-Request-Id")) {
		t.Errorf("the body should name the request and nothing else: %s", a.body)
	}
	r.call("developer", "GET", "/teams", "").want(200)
}

// explosive is a registry that panics where handlers use it from goroutines of their own.
type explosive struct{ hades.Registry }

func (explosive) PutSandbox(context.Context, tartarus.Sandbox) (int64, error) { panic("on purpose") }
func (explosive) Sandbox(context.Context, string, string) (tartarus.Sandbox, error) {
	panic("on purpose")
}

func TestPanicBesideAHandler(t *testing.T) {
	r := newRig(t, func(c *olympus.Config, n *olympustest.Node) { c.Registry, c.Entrance = explosive{c.Registry}, nil })
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base"}`).want(500)
	r.held(0)
	r.call("developer", "GET", "/sandboxes/metrics?sandbox_ids=i1", "").want(200, `{"sandboxes":{}}`)
	r.call("developer", "GET", "/sandboxes/i1", "").want(500)
}

// What the store cannot answer is no 500, and does not tell the client what went wrong inside.
func TestStoreAway(t *testing.T) {
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) { c.Registry, c.Entrance = away{c.Registry}, nil })
	a := r.call("developer", "GET", "/v2/sandboxes", "").want(503)
	if strings.Contains(a.body, "disk") || a.header.Get("Should-Retry") != "true" {
		t.Errorf("got %s", a.body)
	}
	r.call("developer", "GET", "/sandboxes/i1", "").want(503)
	r.call("developer", "DELETE", "/sandboxes/i1", "").want(503)
	r.call("developer", "POST", "/sandboxes", `{"templateID":"base"}`).want(503)
	r.held(0)
}

// away is a registry whose sandboxes cannot be read or written.
type away struct{ hades.Registry }

var errDisk = errors.New("disk I/O error")

func (away) PutSandbox(context.Context, tartarus.Sandbox) (int64, error) { return 0, errDisk }
func (away) Sandbox(context.Context, string, string) (tartarus.Sandbox, error) {
	return tartarus.Sandbox{}, errDisk
}
func (away) ListSandboxes(context.Context, hades.Query) (hades.Page, error) {
	return hades.Page{}, errDisk
}

func TestRateIsPerKey(t *testing.T) {
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) { c.Rate, c.Burst = 0.5, 3 })
	for range 3 {
		r.call("developer", "GET", "/teams", "").want(200)
	}
	a := r.call("developer", "GET", "/teams", "").want(429, "too many requests")
	if got := a.header.Get("Retry-After"); got != "2" {
		t.Errorf("Retry-After is %q, want 2 at half a request per second", got)
	}
	if got := a.header.Get("Should-Retry"); got != "true" {
		t.Errorf("Should-Retry is %q", got)
	}
	r.call("reader", "GET", "/teams", "").want(200)
	r.call("", "GET", "/health", "").want(200)
}

// Handlers are served over a real connection too: what they answer is whole, and has its length.
func TestOverTheWire(t *testing.T) {
	r := newRig(t, nil)
	srv := httptest.NewServer(r.Server.Handler())
	defer srv.Close()
	defer srv.Client().CloseIdleConnections()
	req, _ := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/v2/sandboxes", strings.NewReader(`{"templateID":"base"}`))
	req.Header.Set("X-API-KEY", r.Keys["developer"])
	res, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 201 || res.ContentLength <= 0 || slices.Contains(res.TransferEncoding, "chunked") {
		t.Fatalf("got %d, length %d, %v", res.StatusCode, res.ContentLength, res.TransferEncoding)
	}
}
