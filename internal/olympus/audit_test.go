package olympus_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/audit"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

// records are those that a filter finds, with the attempts first written.
func (r *rig) records(query string) []audit.Record {
	r.t.Helper()
	// Nobody waits for outcomes; this comes behind them.
	if err := r.Audit.Append(r.t.Context(), audit.Record{Action: "test.barrier", Stage: audit.Attempt}); err != nil {
		r.t.Fatal(err)
	}
	return decode[[]audit.Record](r.call("operator", "GET", "/audit?limit=1000&"+query, "").want(200))
}

func TestActsAreRecorded(t *testing.T) {
	r := newRig(t, nil)
	sb := r.create(`{"templateID":"base"}`)
	path := "/sandboxes/" + sb.SandboxID
	r.call("developer", "POST", path+"/timeout", `{"timeout":60}`).want(204)
	r.call("developer", "PUT", path+"/network", `{"allowOut":["1.1.1.1"]}`).want(204)
	r.call("developer", "GET", path, "").want(200)
	r.call("developer", "POST", path+"/pause", "").want(204)
	r.call("developer", "POST", path+"/connect", `{"timeout":60}`).want(201)
	r.call("developer", "DELETE", path, "").want(204)
	r.call("developer", "DELETE", path, "").want(404)
	var got []string
	for _, rec := range r.records("object=" + sb.SandboxID) {
		got = append(got, rec.Action+" "+string(rec.Stage)+" "+string(rec.Verdict)+rec.Error)
		if rec.Actor.ID != "developer" || rec.Actor.Tenant != "default" || rec.Actor.Address != "192.0.2.1" || rec.Tenant != "default" || rec.Request == "" {
			t.Errorf("%s: who is not told: %+v", rec.Action, rec)
		}
	}
	want := []string{
		"sandbox.create attempt allow", "sandbox.create outcome ",
		"sandbox.timeout attempt allow", "sandbox.timeout outcome ",
		"sandbox.network attempt allow", "sandbox.network outcome ",
		"sandbox.read attempt allow",
		"sandbox.pause attempt allow", "sandbox.pause outcome ",
		"sandbox.connect attempt allow", "sandbox.connect outcome ",
		"sandbox.kill attempt allow", "sandbox.kill outcome ",
		"sandbox.kill attempt allow", "sandbox.kill outcome not_found",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestDenialsAreRecorded(t *testing.T) {
	r := newRig(t, nil)
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base","timeout":999999999}`).want(400)
	r.call("reader", "DELETE", "/sandboxes/i0000", "").want(403)
	r.call("", "GET", "/sandboxes", "", "X-API-KEY", "e2b_"+strings.Repeat("0", 40)).want(401)
	r.call("revoked", "GET", "/sandboxes", "").want(401)
	found := map[string]string{}
	for _, rec := range r.records("verdict=deny") {
		found[rec.Action] = rec.Actor.Kind + " " + rec.Actor.ID + ": " + rec.Reasons[0].Message
		if rec.Stage != audit.Attempt {
			t.Errorf("%s: a denial has an outcome", rec.Action)
		}
	}
	for action, want := range map[string]string{
		"sandbox.create": "key developer: timeout is", "sandbox.kill": "key reader: this needs the role developer", "login.failure": "nobody : the API key is not valid",
	} {
		if !strings.HasPrefix(found[action], want) {
			t.Errorf("%s: got %q, want %q", action, found[action], want)
		}
	}
}

// What cannot be recorded does not happen.
func TestNothingHappensUnrecorded(t *testing.T) {
	var failing atomic.Bool
	log, err := audit.Open(audit.Config{Dir: t.TempDir(), Chain: "one", Fail: func(string) error {
		if failing.Load() {
			return errors.New("no space left on device")
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) { c.Audit = log })
	sb := r.create(`{"templateID":"base"}`)
	failing.Store(true)
	r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base"}`).want(503, "audit log")
	r.call("developer", "DELETE", "/sandboxes/"+sb.SandboxID, "").want(503, "audit log")
	r.held(1)
	failing.Store(false)
	r.call("developer", "DELETE", "/sandboxes/"+sb.SandboxID, "").want(204)
	r.held(0)
}

// Whatever secret a client has or sends, none is in the log.
func TestNoSecretIsRecorded(t *testing.T) {
	const canary = "canary5ecret"
	r := newRig(t, nil)
	sb := r.create(`{"templateID":"base","envVars":{"A_` + canary + `":"` + canary + `"},"metadata":{"m":"` + canary + `"},"network":{"allowPublicTraffic":false}}`)
	for _, body := range []string{`{"templateID":"` + canary + `"}`, `{"templateID":"base","cpuCount":"` + canary + `"}`, `{"templateID":"base","network":{"allowOut":["` + canary + `"]}}`} {
		r.call("developer", "POST", "/v2/sandboxes", body)
	}
	key := "e2b_" + strings.Repeat("ca", 20)
	r.call("", "GET", "/sandboxes", "", "X-API-KEY", key).want(401)
	r.call("developer", "DELETE", "/sandboxes/"+key, "")
	r.call("developer", "POST", "/secrets/"+key, `{"value":"`+canary+`"}`)
	r.call("developer", "GET", "/sandboxes/"+sb.SandboxID+"/logs?x="+canary, "")
	if err := r.Sealer.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if sb.EnvdAccessToken == "" || sb.TrafficAccessToken == "" {
		t.Fatalf("the sandbox has no tokens to look for: %+v", sb)
	}
	forbidden := []string{canary, key, strings.TrimPrefix(key, "e2b_"), sb.EnvdAccessToken, sb.TrafficAccessToken}
	for _, secret := range r.Keys {
		forbidden = append(forbidden, secret)
	}
	files := 0
	err := filepath.Walk(r.Audit.Dir(), func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() || filepath.Base(path) == "signing.key" {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for _, s := range forbidden {
			if strings.Contains(strings.ToLower(string(raw)), s) {
				t.Errorf("%s has the secret %q", path, s)
			}
		}
		return nil
	})
	if err != nil || files < 3 {
		t.Fatalf("looked at %d files: %v", files, err)
	}
}

func TestAuditOverTheAPI(t *testing.T) {
	r := newRig(t, nil)
	for range 3 {
		r.create(`{"templateID":"base"}`)
	}
	first := r.call("operator", "GET", "/audit?action=sandbox.create&limit=2", "").want(200)
	if got := decode[[]audit.Record](first); len(got) != 2 {
		t.Fatalf("got %d records", len(got))
	}
	r.create(`{"templateID":"base"}`)
	token := first.header.Get("X-Next-Token")
	next := decode[[]audit.Record](r.call("operator", "GET", "/audit?action=sandbox.create&nextToken="+token, "").want(200))
	// How the earlier ones ended may be written only now.
	if !slices.ContainsFunc(next, func(r audit.Record) bool { return r.Stage == audit.Attempt }) {
		t.Fatalf("after the token: %+v", next)
	}
	for _, bad := range []string{"since=yesterday", "verdict=maybe", "limit=0", "limit=x", "nextToken=%00", "failed=perhaps"} {
		r.call("operator", "GET", "/audit?"+bad, "").want(400)
	}
	lines := r.call("operator", "GET", "/audit/export", "").want(200).body
	if n, err := audit.VerifyLines([]byte(lines)); err != nil || n < 9 {
		t.Fatalf("an export of %d lines: %v", n, err)
	}
	if n, err := audit.VerifyLines([]byte(strings.Replace(lines, `"allow"`, `"deny"`, 1))); err == nil {
		t.Fatalf("a changed export verifies: %d", n)
	}
	for line := range strings.Lines(r.call("operator", "GET", "/audit/export?format=cef", "").want(200).body) {
		if !strings.HasPrefix(line, "CEF:0|Tartarus|Tartarus|test|") || strings.Count(line, "|") < 7 {
			t.Fatalf("not CEF: %s", line)
		}
	}
	for line := range strings.Lines(r.call("operator", "GET", "/audit/export?format=ocsf", "").want(200).body) {
		var o map[string]any
		if err := json.Unmarshal([]byte(line), &o); err != nil || o["type_uid"] != o["class_uid"].(float64)*100+o["activity_id"].(float64) {
			t.Fatalf("not OCSF: %s %v", line, err)
		}
	}
	r.call("operator", "GET", "/audit/export?format=xml", "").want(400)
	if err := r.Sealer.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.call("operator", "POST", "/audit/keys", "").want(403)
	key := decode[api.AuditKey](r.call("admin", "POST", "/audit/keys", "").want(201))
	keys := decode[[]api.AuditKey](r.call("operator", "GET", "/audit/keys", "").want(200))
	if len(keys) != 1 || keys[0] != key || !key.Own {
		t.Fatalf("keys are %+v", keys)
	}
	r.call("admin", "PUT", "/audit/keys/0000000000000000", "").want(404)
	r.call("admin", "DELETE", "/audit/keys/"+key.KeyID, "").want(409)
	report := decode[audit.Report](r.call("operator", "GET", "/audit/verification", "").want(200))
	if !report.OK || report.Records < 9 || report.Checkpoints < 2 {
		t.Fatalf("report is %+v", report)
	}
	if bad := decode[audit.Report](r.call("operator", "GET", "/audit/verification?root=0000", "").want(200)); bad.OK {
		t.Fatal("another root verifies")
	}
}
