package olympus_test

import (
	"testing"

	"github.com/tartarus-sandbox/tartarus/api"
)

// A paused sandbox in quarantine can be neither brought back, cloned, used nor ended by its owner; released by another operator, it is paused.
func TestQuarantineOfAPausedSandbox(t *testing.T) {
	r := newRig(t, nil)
	id := r.create(`{"templateID":"base","timeout":600}`).SandboxID
	r.call("developer", "POST", "/sandboxes/"+id+"/pause", "").want(204)
	q := decode[api.Quarantined](r.call("operator", "POST", "/sandboxes/"+id+"/quarantine", `{"reason":"its image was found to be bad"}`).want(200))
	if q.Phase != "quarantined" || !q.Paused || q.By != "operator" {
		t.Fatalf("got %+v", q)
	}
	for _, call := range [][3]string{
		{"POST", "/sandboxes/" + id + "/resume", `{"timeout":60}`}, {"POST", "/sandboxes/" + id + "/connect", ""}, {"POST", "/v2/sandboxes/" + id + "/connect", ""},
		{"POST", "/sandboxes/" + id + "/fork", ""}, {"POST", "/sandboxes/" + id + "/snapshots", ""}, {"POST", "/sandboxes/" + id + "/pause", ""},
		{"POST", "/sandboxes/" + id + "/timeout", `{"timeout":60}`}, {"DELETE", "/sandboxes/" + id, ""},
	} {
		r.call("developer", call[0], call[1], call[2]).want(409)
	}
	if d := r.detail(id); d.Phase != "quarantined" {
		t.Errorf("it is %s", d.Phase)
	}
	r.call("operator", "POST", "/quarantine/"+id+"/release", `{"reason":"mine"}`).want(403)
	back := decode[api.Quarantined](r.call("admin", "POST", "/quarantine/"+id+"/release", `{"reason":"the image is good after all"}`).want(200))
	if back.Phase != "paused" || back.Paused {
		t.Fatalf("released: %+v", back)
	}
	r.call("developer", "POST", "/sandboxes/"+id+"/resume", `{"timeout":60}`).want(201)
}
