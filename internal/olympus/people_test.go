package olympus_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/audit"
	"github.com/tartarus-sandbox/tartarus/internal/login"
	"github.com/tartarus-sandbox/tartarus/internal/login/logintest"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// withPeople is a rig that takes tokens of an issuer, whose groups are roles and whose org is the tenant.
func withPeople(t *testing.T) (*rig, *logintest.Issuer) {
	idp := logintest.New(t)
	people, err := login.New(login.Config{
		Issuer: idp.URL, ClientID: logintest.Client, RoleClaim: "groups", TenantClaim: "org",
		Roles: map[string]tenant.Role{"admin": tenant.Admin, "operator": tenant.Operator, "developer": tenant.Developer, "reader": tenant.Reader},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = people.Close() })
	return newRig(t, func(c *olympus.Config, _ *olympustest.Node) { c.People = people }), idp
}

// person has a token made, and gives the name under which the rig knows it.
func (r *rig) person(idp *logintest.Issuer, sub, group, org string) string {
	r.Keys[sub] = idp.Token(map[string]any{"sub": sub, "email": sub + "@example.com", "groups": []string{group}, "org": org})
	return sub
}

// A person with a token may do what the role says in the tenant that the token says, and is on record by name.
func TestPeople(t *testing.T) {
	r, idp := withPeople(t)
	ann, ron := r.person(idp, "ann", "developer", "default"), r.person(idp, "ron", "reader", "default")
	sb := decode[api.Sandbox](r.call(ann, "POST", "/v2/sandboxes", `{"templateID":"base"}`).want(201))
	if sb.EnvdAccessToken == "" {
		t.Error("a developer may exec")
	}
	r.call(ron, "GET", "/sandboxes/"+sb.SandboxID, "").want(200)
	r.call(ron, "DELETE", "/sandboxes/"+sb.SandboxID, "").want(403, "you have reader")
	// By the header that HTTP has for tokens, too.
	r.call("", "GET", "/sandboxes/"+sb.SandboxID, "", "Authorization", "Bearer "+r.Keys["ann"]).want(200)

	r.call("admin", "POST", "/tenants", `{"name":"acme"}`).want(201)
	eve := r.person(idp, "eve", "admin", "acme")
	r.call(eve, "GET", "/sandboxes/"+sb.SandboxID, "").want(404)
	r.call("admin", "PATCH", "/tenants/acme", `{"disabled":true}`).want(200)
	r.call(eve, "GET", "/teams", "").want(401, "disabled")

	var acted []string
	for _, rec := range r.records("action=sandbox.create") {
		if rec.Stage == audit.Attempt {
			acted = append(acted, rec.Actor.Kind+" "+rec.Actor.ID+" "+rec.Actor.Name+" "+rec.Actor.Role)
		}
	}
	if len(acted) != 1 || acted[0] != "person oidc:ann ann@example.com developer" {
		t.Errorf("on record: %q", acted)
	}
	r.call("admin", "DELETE", "/keys/oidc:ann", "").want(404)
	if recs, err := r.DB.Shelf().List(t.Context(), "keys.used"); err != nil {
		t.Fatal(err)
	} else {
		for _, rec := range recs {
			if strings.HasPrefix(rec.Name, "oidc:") {
				t.Errorf("the uses of keys have %s, which is none", rec.Name)
			}
		}
	}
}

// Who cannot come in is on record, with the reason and never the token; whose token is good and worth nothing is named.
func TestLoginFailuresOfPeople(t *testing.T) {
	r, idp := withPeople(t)
	dev := func(name string, value any) map[string]any {
		return map[string]any{"groups": "developer", "org": "default", name: value}
	}
	for name, tt := range map[string]struct {
		token  string
		status int
		why    string
	}{
		"expired":          {idp.Token(dev("exp", time.Now().Add(-time.Minute).Unix())), 401, "has expired"},
		"wrong audience":   {idp.Token(dev("aud", "wiki")), 401, "audience"},
		"wrong issuer":     {idp.Token(dev("iss", "http://127.0.0.1:1")), 401, "different provider"},
		"unknown key":      {idp.Forged(false, dev("a", 1)), 401, "no key"},
		"none":             {idp.Unsigned(dev("a", 1)), 401, "none"},
		"no role":          {idp.Token(dev("groups", "guests")), 403, "oidc:ann (ann@example.com) is given no role"},
		"no tenant":        {idp.Token(dev("org", nil)), 403, "no single tenant"},
		"unknown tenant":   {idp.Token(dev("org", "nowhere")), 403, "not known here"},
		"token, not a key": {"eyJ" + strings.Repeat("a", 50), 401, "not valid"},
	} {
		r.Keys["bad"] = tt.token
		a := r.call("bad", "GET", "/sandboxes", "").want(tt.status, tt.why)
		found := false
		for _, rec := range r.records("action=login.failure") {
			found = found || rec.Verdict == audit.Deny && rec.Actor.Kind == audit.ByNobody && strings.Contains(rec.Reasons[0].Message, tt.why) && rec.Request == a.header.Get("X-Request-Id")
			for _, q := range rec.Reasons {
				if strings.Contains(q.Message, tt.token) {
					t.Fatalf("%s: the record has the token", name)
				}
			}
		}
		if !found {
			t.Errorf("%s is not on record", name)
		}
	}
}

// While the issuer is away nobody new comes in by a token, and keys go on working.
func TestPeopleWithoutIssuer(t *testing.T) {
	r, idp := withPeople(t)
	idp.Away(true)
	r.call(r.person(idp, "bob", "developer", "default"), "GET", "/sandboxes", "").want(503, "issuer_away")
	r.call("developer", "GET", "/sandboxes", "").want(200)
}

// Whoever put a sandbox into quarantine does not let it out, whichever token says who that is.
func TestOnePersonIsOne(t *testing.T) {
	r, idp := withPeople(t)
	id := r.create(`{"templateID":"base","timeout":600}`).SandboxID
	r.call(r.person(idp, "ann", "operator", "default"), "POST", "/sandboxes/"+id+"/quarantine", `{"reason":"seen on its network"}`).want(200)
	idp.Rotate("ES256")
	again := r.Keys["ann"]
	r.call(r.person(idp, "ann", "operator", "default"), "POST", "/quarantine/"+id+"/release", `{"reason":"it was a test"}`).want(403)
	if again == r.Keys["ann"] {
		t.Fatal("it is the same token")
	}
	r.call(r.person(idp, "bob", "operator", "default"), "POST", "/quarantine/"+id+"/release", `{"reason":"it was a test"}`).want(200)
}
