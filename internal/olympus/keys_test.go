package olympus_test

import (
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

// as makes a secret known to the rig under a name.
func (r *rig) as(name string, k api.Key) string {
	r.t.Helper()
	if k.Key == "" {
		r.t.Fatal("a new key has no secret")
	}
	r.Keys[name] = k.Key
	return name
}

func TestKeysLive(t *testing.T) {
	r := newRig(t, nil)
	r.call("admin", "POST", "/keys", `{"tenant":"acme"}`).want(404, "create it first")
	r.call("admin", "POST", "/tenants", `{"name":"acme","quota":{"sandboxes":3},"labels":{"plan":"free"}}`).want(201)
	r.call("admin", "POST", "/tenants", `{"name":"acme"}`).want(409)
	k := decode[api.Key](r.call("admin", "POST", "/keys", `{"tenant":"acme","name":"ci","role":"reader","exec":false}`).want(201))
	ci := r.as("ci", k)
	r.call(ci, "GET", "/sandboxes", "").want(200)
	r.call(ci, "POST", "/v2/sandboxes", `{"templateID":"base"}`).want(403)

	// Rotated with a grace, both work; without one, only the new one does.
	next := decode[api.Key](r.call("admin", "POST", "/keys/"+k.KeyID+"/rotations", `{"graceSeconds":60}`).want(201))
	if next.Replaces != k.KeyID || next.Role != "reader" || next.Exec || next.Tenant != "acme" || next.Key == k.Key {
		t.Fatalf("got %+v", next)
	}
	ci2 := r.as("ci2", next)
	r.call(ci, "GET", "/sandboxes", "").want(200)
	r.call(ci2, "GET", "/sandboxes", "").want(200)
	third := decode[api.Key](r.call("admin", "POST", "/keys/"+next.KeyID+"/rotations", "").want(201))
	r.call(ci2, "GET", "/sandboxes", "").want(401)
	ci3 := r.as("ci3", third)
	r.call(ci3, "GET", "/sandboxes", "").want(200)
	r.call("admin", "POST", "/keys/"+next.KeyID+"/rotations", "").want(409)

	// Last used is seen at once here, and written for others by and by.
	used := func() (at *time.Time) {
		for _, k := range decode[[]api.Key](r.call("admin", "GET", "/keys?tenant=acme", "").want(200)) {
			if k.Key != "" {
				t.Fatal("a list shows a secret")
			}
			if k.KeyID == third.KeyID {
				at = k.LastUsed
			}
		}
		return at
	}
	if used() == nil {
		t.Error("last use is not shown")
	}
	if err := olympus.Sweep(r.Server, t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if recs, err := r.DB.Shelf().List(t.Context(), "keys.used"); err != nil || len(recs) < 3 {
		t.Errorf("written uses: %d %v", len(recs), err)
	}

	r.call("admin", "DELETE", "/tenants/acme", "").want(409, "revoke its keys")
	r.call("admin", "DELETE", "/keys/"+third.KeyID, "").want(204)
	r.call("admin", "DELETE", "/keys/"+third.KeyID, "").want(204)
	r.call("admin", "DELETE", "/keys/"+k.KeyID, "").want(204)
	r.call(ci3, "GET", "/sandboxes", "").want(401)
	r.call("admin", "DELETE", "/keys/admin", "").want(409, "with another one")
	r.call("admin", "DELETE", "/tenants/acme", "").want(204)
	r.call("admin", "GET", "/tenants/acme", "").want(404)
}

func TestKeyExpires(t *testing.T) {
	r := newRig(t, nil)
	at := time.Now().Add(1500 * time.Millisecond).UTC().Format(time.RFC3339Nano)
	k := decode[api.Key](r.call("admin", "POST", "/keys", `{"expiresAt":"`+at+`"}`).want(201))
	name := r.as("short", k)
	if k.Tenant != "default" || k.Role != "developer" || !k.Exec {
		t.Errorf("defaults are %+v", k)
	}
	eventually(t, "key expires", func() bool { return r.call(name, "GET", "/teams", "").status == 401 })
}

func TestKeyHasItsOwnRate(t *testing.T) {
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) { c.Rate = -1 })
	name := r.as("slow", decode[api.Key](r.call("admin", "POST", "/keys", `{"rate":0.1,"burst":2}`).want(201)))
	for range 2 {
		r.call(name, "GET", "/teams", "").want(200)
	}
	r.call(name, "GET", "/teams", "").want(429)
	r.call("developer", "GET", "/teams", "").want(200)
}

func TestDisabledTenant(t *testing.T) {
	r := newRig(t, nil)
	r.call("admin", "POST", "/tenants", `{"name":"other"}`).want(201)
	r.call("other", "GET", "/teams", "").want(200)
	r.call("admin", "PATCH", "/tenants/other", `{"disabled":true}`).want(200)
	r.call("other", "GET", "/teams", "").want(401, "disabled")
	r.call("admin", "PATCH", "/tenants/other", `{"disabled":false,"title":"The other"}`).want(200, "The other")
	r.call("other", "GET", "/teams", "").want(200)
}

func TestBadKeysAndTenants(t *testing.T) {
	r := newRig(t, nil)
	for _, body := range []string{``, `[]`, `{"role":"king"}`, `{"tenant":"UPPER"}`, `{"rate":-1}`, `{"expiresAt":"2001-01-01T00:00:00Z"}`, `{"name":"e2b_00"}`, `{"unknown":1}`} {
		r.call("admin", "POST", "/keys", body).want(400)
	}
	for _, body := range []string{``, `{}`, `{"name":"-a"}`, `{"name":"a","quota":{"vcpu":-1}}`, `{"name":"a","quota":{"x":1}}`, `{"name":"*"}`} {
		r.call("admin", "POST", "/tenants", body).want(400)
	}
	r.call("admin", "PATCH", "/tenants/nobody", `{"title":"x"}`).want(404)
	r.call("admin", "DELETE", "/keys/nobody", "").want(404)
	r.call("admin", "POST", "/keys/nobody/rotations", "").want(404)
	r.call("admin", "POST", "/keys/admin/rotations", `{"graceSeconds":-1}`).want(400)
}
