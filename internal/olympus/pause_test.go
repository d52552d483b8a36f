package olympus_test

import (
	"testing"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

func TestPauseAndResume(t *testing.T) {
	r := newRig(t, nil)
	id := r.create(`{"templateID":"base"}`).SandboxID
	path := "/sandboxes/" + id
	r.call("reader", "POST", path+"/pause", `{}`).want(403)
	r.call("developer", "POST", path+"/pause", `{}`).want(204)
	r.call("developer", "POST", path+"/pause", `{}`).want(409)
	if d := r.detail(id); d.State != "paused" {
		t.Errorf("state is %s", d.State)
	}
	if got := decode[[]api.ListedSandbox](r.call("developer", "GET", "/v2/sandboxes?state=paused", "").want(200)); len(got) != 1 || got[0].SandboxID != id {
		t.Errorf("paused ones: %+v", got)
	}
	back := decode[api.Sandbox](r.call("developer", "POST", "/v2"+path+"/connect", `{}`).want(201))
	if back.SandboxID != id || back.EnvdAccessToken == "" {
		t.Errorf("connect gave %+v", back)
	}
	r.call("developer", "POST", "/v2"+path+"/connect", `{}`).want(200)
	r.call("developer", "POST", path+"/resume", `{}`).want(409)
	r.call("developer", "POST", path+"/pause", "").want(204)
	r.call("developer", "POST", path+"/resume", `{"timeout":30}`).want(201)
	r.call("developer", "POST", path+"/pause", `{"requireHealthyGuest":true,"memory":false}`).want(204)
	if d := r.detail(id); d.PauseMode != "filesystem" {
		t.Errorf("pause mode is %q", d.PauseMode)
	}
	r.call("developer", "POST", "/v2"+path+"/connect", `{"memory":false}`).want(201)
	if d := r.detail(id); d.PauseMode != "" {
		t.Errorf("pause mode of a running one is %q", d.PauseMode)
	}
	r.Node.LoseAgent(id)
	r.call("developer", "POST", path+"/pause", `{"requireHealthyGuest":true}`).want(503)
	r.call("developer", "POST", path+"/pause", `{"memory":false}`).want(503)
	r.call("developer", "POST", path+"/pause", `{}`).want(204)
	if d := r.detail(id); d.PauseMode != "full" || !d.AgentLost {
		t.Errorf("paused without its agent: %+v", d.ListedSandbox)
	}
	for _, again := range []string{"/v2" + path + "/connect", path + "/connect", path + "/resume"} {
		r.call("developer", "POST", again, `{}`).want(409, "sandbox_snapshot_guest_agent_unresponsive")
	}
	r.call("developer", "POST", "/v2"+path+"/connect", `{"memory":false}`).want(201)
	r.call("developer", "POST", path+"/pause", `{}`).want(204)
	r.call("developer", "DELETE", path, "").want(204)
	r.call("developer", "POST", path+"/pause", `{}`).want(404)
}

func TestPauseWhereItCannotBeDone(t *testing.T) {
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) { c.CanPause = false })
	id := r.create(`{"templateID":"base"}`).SandboxID
	r.call("developer", "POST", "/sandboxes/"+id+"/pause", `{}`).want(400, "pause")
}
