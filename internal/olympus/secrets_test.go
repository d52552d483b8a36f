package olympus_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

const hush = "the-value-nobody-gets-back"

func TestSecrets(t *testing.T) {
	var logs bytes.Buffer
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) {
		c.Log = slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	made := r.call("developer", "POST", "/secrets", `{"name":"My-Key","value":"`+hush+`","metadata":{"env":"test"}}`).want(201, `"name":"my-key"`)
	var s api.Secret
	if err := json.Unmarshal([]byte(made.body), &s); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"my-key", "MY-KEY", s.SecretID} {
		a := r.call("reader", "GET", "/secrets/"+ref, "").want(200, s.SecretID)
		if strings.Contains(a.body, hush) {
			t.Fatalf("the value came back: %s", a.body)
		}
		r.call("other", "GET", "/secrets/"+ref, "").want(404)
	}
	r.call("developer", "POST", "/secrets", `{"name":"my-KEY","value":"x"}`).want(409)
	r.call("reader", "POST", "/secrets", `{"name":"another","value":"x"}`).want(403)
	r.call("developer", "POST", "/secrets/my-key", `{"value":"`+hush+`2"}`).want(200, `"currentVersion":2`, `"env":"test"`)
	r.call("other", "POST", "/secrets/my-key", `{"value":"x"}`).want(404)
	r.call("other", "DELETE", "/secrets/"+s.SecretID, "").want(404)
	r.call("developer", "DELETE", "/secrets/my-key", "").want(204)
	r.call("developer", "DELETE", "/secrets/my-key", "").want(404)
	for _, body := range []string{
		``, `[]`, `{"name":"x"}`, `{"value":"` + hush + `"}`, `{"name":"no{brace}","value":"x"}`, `{"name":"sec_x","value":"x"}`, `{"name":"..","value":"x"}`,
		`{"name":"x","value":7}`, `{"name":"x","value":"` + strings.Repeat("v", 17<<10) + `"}`, `{"name":"x","value":"x","metadata":{"":"x"}}`, `{"name":"x","value":"` + hush,
	} {
		a := r.call("developer", "POST", "/secrets", body).want(400)
		if strings.Contains(a.body, hush) {
			t.Errorf("the error shows the value: %s", a.body)
		}
	}
	if strings.Contains(logs.String(), hush) {
		t.Error("the log has the value")
	}
}

func TestSecretPages(t *testing.T) {
	r := newRig(t, nil)
	for _, name := range []string{"c", "a", "b"} {
		r.call("developer", "POST", "/secrets", `{"name":"`+name+`","value":"x"}`).want(201)
	}
	a := r.call("reader", "GET", "/secrets?limit=2", "").want(200, `"name":"a"`, `"name":"b"`)
	next := a.header.Get("X-Next-Token")
	if next == "" {
		t.Fatal("no token of the next page")
	}
	a = r.call("reader", "GET", "/secrets?limit=2&nextToken="+next, "").want(200, `"name":"c"`)
	if a.header.Get("X-Next-Token") != "" {
		t.Error("the last page has a next one")
	}
	r.call("other", "GET", "/secrets", "").want(200, `[]`)
	r.call("reader", "GET", "/secrets?limit=0", "").want(400)
	r.call("reader", "GET", "/secrets?nextToken=%25", "").want(400)
}
