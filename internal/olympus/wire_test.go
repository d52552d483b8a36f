package olympus_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// What e2b 2.51.0 sends, byte for byte as it was recorded.
func TestRecordedBodies(t *testing.T) {
	r := newRig(t, nil)
	sb := r.create(`{"templateID":"base","metadata":{"a":"b c"},"envVars":{"X":"1"},"timeout":61,"network":{"allowOut":["1.1.1.1"],"denyOut":["0.0.0.0/0"],"allowPublicTraffic":false,"maskRequestHost":"h:${PORT}"},"autoPause":true,"autoPauseMemory":true,"autoResume":{"enabled":true}}`)
	if sb.TrafficAccessToken == "" || sb.EnvdAccessToken == "" || sb.EnvdVersion != "0.6.13" || sb.TemplateID != "basetemplateid000000" || sb.Domain == nil || *sb.Domain != "sb.test:8443" {
		t.Fatalf("got %+v", sb)
	}
	d := r.detail(sb.SandboxID)
	if d.Metadata["a"] != "b c" || d.AllowInternetAccess || d.Network.MaskRequestHost != "h:${PORT}" || *d.Network.AllowPublicTraffic ||
		d.Lifecycle.OnTimeout != "pause" || !d.Lifecycle.AutoResume || d.State != "running" || d.EnvdAccessToken != sb.EnvdAccessToken {
		t.Fatalf("got %+v", d)
	}
	if life := d.EndAt.Sub(d.StartedAt); life != 61*time.Second {
		t.Errorf("lives %s, want 61 s", life)
	}
	spec := r.Node.Held()[0].Spec
	if spec.Env["X"] != "1" || strings.Join(spec.Network.Allow, " ") != "1.1.1.1" || strings.Join(spec.Network.Deny, " ") != "0.0.0.0/0 ::/0" {
		t.Errorf("the node got %+v", spec)
	}

	id := sb.SandboxID
	r.call("developer", "POST", "/v2/sandboxes/"+id+"/connect", `{}`).want(200)
	if life := time.Until(r.detail(id).EndAt); life < 295*time.Second || life > 301*time.Second {
		t.Errorf("connect without a timeout leaves %s, want 300 s", life)
	}
	r.call("developer", "POST", "/sandboxes/"+id+"/timeout", `{"timeout":5}`).want(204)
	if life := time.Until(r.detail(id).EndAt); life > 5*time.Second {
		t.Errorf("a shorter timeout leaves %s", life)
	}
	r.call("developer", "PUT", "/sandboxes/"+id+"/network", `{"denyOut":["8.8.8.8"]}`).want(204)
	n := r.Node.Held()[0].Network
	if len(n.Allow) != 0 || strings.Join(n.Deny, " ") != "8.8.8.8" || !n.Internet || n.PublicTraffic || n.MaskRequestHost != "h:${PORT}" {
		t.Errorf("an update clears what it leaves out, and only that: %+v", n)
	}
	r.call("developer", "GET", "/sandboxes/"+id+"/metrics?start=0", "").want(200)

	r.call("developer", "POST", "/sandboxes/"+id+"/snapshots", `{"name":"n"}`).want(201)
	r.call("developer", "POST", "/sandboxes/"+id+"/fork", `{"count":2}`).want(201)
	r.call("developer", "DELETE", "/sandboxes/"+id, "").want(204)
	r.call("developer", "DELETE", "/sandboxes/"+id, "").want(404)
}

// The filter of a list arrives escaped three times.
func TestRecordedList(t *testing.T) {
	r := newRig(t, nil)
	const query = `/v2/sandboxes?metadata=k%252520y%3Dv%2525261&state=running,paused&startedAfter=1970-01-01T00%3A00%3A00.000Z&order=asc&limit=2`
	for range 3 {
		r.create(`{"templateID":"base","metadata":{"k y":"v&1"}}`)
	}
	r.create(`{"templateID":"base","metadata":{"k y":"other"}}`)
	first := r.call("developer", "GET", query, "").want(200)
	token := first.header.Get("X-Next-Token")
	if got := decode[[]api.ListedSandbox](first); len(got) != 2 || token == "" || got[0].Metadata["k y"] != "v&1" {
		t.Fatalf("got %s, token %q", first.body, token)
	}
	if got := first.header.Get("X-Total-Running"); got != "4" {
		t.Errorf("X-Total-Running is %q, want 4", got)
	}
	second := r.call("developer", "GET", query+"&nextToken="+token, "").want(200)
	if got := decode[[]api.ListedSandbox](second); len(got) != 1 || second.header.Get("X-Next-Token") != "" {
		t.Fatalf("second page: %s", second.body)
	}
}

// Fields that the generated Python client needs are there, also where they are deprecated or empty.
func TestRequiredFields(t *testing.T) {
	r := newRig(t, nil)
	created := r.call("developer", "POST", "/sandboxes", `{"templateID":"tiny"}`).want(201)
	sb := decode[api.Sandbox](created)
	r.Node.Measure(sb.SandboxID, tartarus.Sample{Time: time.Now(), CPUCount: 2})
	has := func(a answer, pick func(any) any, fields string) {
		t.Helper()
		var v any
		if err := json.Unmarshal([]byte(a.body), &v); err != nil {
			t.Fatal(err)
		}
		object := pick(v).(map[string]any)
		for _, f := range strings.Split(fields, " ") {
			if _, ok := object[f]; !ok {
				t.Errorf("%s: no %s in %s", a.what, f, a.body)
			}
		}
	}
	self := func(v any) any { return v }
	first := func(v any) any { return v.([]any)[0] }
	has(created, self, "sandboxID templateID clientID envdVersion domain")
	const common = "sandboxID templateID clientID startedAt endAt state cpuCount memoryMB diskSizeMB envdVersion metadata volumeMounts"
	has(r.call("reader", "GET", "/sandboxes/"+sb.SandboxID, ""), self, common+" domain allowInternetAccess network lifecycle")
	has(r.call("reader", "GET", "/v2/sandboxes", ""), first, common)
	has(r.call("reader", "GET", "/sandboxes", ""), first, common)
	const metric = "timestamp timestampUnix cpuCount cpuUsedPct memUsed memTotal memCache diskUsed diskTotal"
	has(r.call("reader", "GET", "/sandboxes/"+sb.SandboxID+"/metrics", ""), first, metric)
	has(r.call("reader", "GET", "/sandboxes/metrics?sandbox_ids="+sb.SandboxID, ""), func(v any) any {
		return v.(map[string]any)["sandboxes"].(map[string]any)[sb.SandboxID]
	}, metric)
	has(r.call("reader", "GET", "/sandboxes/"+sb.SandboxID+"/logs", ""), self, "logs logEntries")
	has(r.call("reader", "GET", "/templates/aliases/base", ""), self, "templateID public")
	r.call("reader", "GET", "/templates/aliases/no-such-template", "").want(404)
	r.call("reader", "GET", "/templates/aliases/ns%2Fnone", "").want(404)
	has(r.call("reader", "GET", "/teams", ""), first, "teamID name apiKey isDefault")
	has(r.call("reader", "GET", "/templates", ""), first, "templateID buildID cpuCount memoryMB diskSizeMB public aliases names createdAt updatedAt createdBy lastSpawnedAt spawnCount buildCount envdVersion buildStatus")
}
