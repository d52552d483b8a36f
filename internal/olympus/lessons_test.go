package olympus_test

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

// What a template's sandboxes did at one replica counts at the others, and at one that starts after the first has gone.
func TestReplicasLearnFromEachOther(t *testing.T) {
	var cfg olympus.Config
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) {
		cfg = *c
	})
	cfg.Values = r.DB.Vault()
	replica := func() *olympus.Server {
		t.Helper()
		s, err := olympus.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	heat := func(s *olympus.Server) api.Placement {
		t.Helper()
		req := httptest.NewRequestWithContext(t.Context(), "POST", "/placements", strings.NewReader(`{"templateID":"base","timeout":7200}`))
		req.Header.Set("X-API-KEY", r.Keys["operator"])
		rec := httptest.NewRecorder()
		s.Handler().ServeHTTP(rec, req)
		return decode[api.Placement](answer{t, "place", rec.Code, rec.Header(), rec.Body.String()}.want(200))
	}
	a, b := replica(), replica()
	now := time.Now()
	before := heat(b)
	for i := range 5 { // each kept two processors busy for ten seconds
		started := now.Add(-time.Minute)
		a.Observe(tartarus.Sandbox{
			Spec:  tartarus.Spec{ID: "i" + string(rune('a'+i)), Tenant: "default", TemplateID: "basetemplateid000000"},
			Phase: tartarus.Stopped, StartedAt: started, EndedAt: started.Add(10 * time.Second), CPU: 20 * time.Second,
		})
	}
	if got := heat(a); got.Heat != "hot" || got.Own != 2 {
		t.Fatalf("where they ended: %s, %g", got.Heat, got.Own)
	}
	if got := heat(b); got.Heat != before.Heat || got.Own != before.Own {
		t.Fatalf("before it was told: %s, %g", got.Heat, got.Own)
	}
	exchange := func(servers ...*olympus.Server) {
		t.Helper()
		for _, s := range servers {
			if err := olympus.Exchange(s, t.Context(), now); err != nil {
				t.Fatal(err)
			}
		}
	}
	exchange(a, b, a, b)
	later := replica()
	exchange(later)
	for name, s := range map[string]*olympus.Server{"the other": b, "a later one": later} {
		if got := heat(s); got.Heat != "hot" || got.Own != 2 || !strings.Contains(got.HeatWhy, "its template's sandboxes keep 2 processors busy") {
			t.Errorf("%s: %s, %g: %s", name, got.Heat, got.Own, got.HeatWhy)
		}
	}

	// What nobody understands is left out.
	for name, body := range map[string]string{"past/x": "no JSON", "past/y": `{"basetemplateid000000":{"n":9,"cpu":-1,"life":1,"at":"2026-01-01T00:00:00Z"}}`, "past/z": "{}" + strings.Repeat(" ", 300<<10)} {
		if err := cfg.Values.Set(t.Context(), name, []byte(body), time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	exchange(b)
	if got := heat(b); got.Own != 2 {
		t.Errorf("with nonsense beside it: %g", got.Own)
	}
}
