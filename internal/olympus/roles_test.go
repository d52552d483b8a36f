package olympus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// owned makes a thing of the default tenant, by the parameter of a path that names it, and says how it is seen that it is still there.
var owned = map[string]func(r *rig) (id, look string){
	"sandboxID": func(r *rig) (string, string) {
		id := r.create(`{"templateID":"base","timeout":600}`).SandboxID
		return id, "/sandboxes/" + id
	},
	"secretID": func(r *rig) (string, string) {
		name := fmt.Sprint("secret-", len(r.call("developer", "GET", "/secrets", "").body))
		s := decode[api.Secret](r.call("developer", "POST", "/secrets", `{"name":"`+name+`","value":"v"}`).want(201))
		return s.SecretID, "/secrets/" + s.SecretID
	},
	"volumeID": func(r *rig) (string, string) {
		name := fmt.Sprint("volume-", len(r.call("developer", "GET", "/volumes", "").body))
		v := decode[api.Volume](r.call("developer", "POST", "/volumes", `{"name":"`+name+`"}`).want(201))
		return v.VolumeID, "/volumes/" + v.VolumeID
	},
	"snapshotID": snapshotOf,
	"templateID": snapshotOf, // routes by this name are about snapshots, as which they serve as templates
	"alias":      func(*rig) (string, string) { return "mine", "/templates/aliases/mine" },
}

func snapshotOf(r *rig) (id, look string) {
	sb := r.create(`{"templateID":"base","timeout":600}`).SandboxID
	snap := decode[api.Snapshot](r.call("developer", "POST", "/sandboxes/"+sb+"/snapshots", "").want(201))
	return snap.ID, "/snapshots/" + snap.ID
}

// private has a template that only the default tenant may use.
type private struct{ olympustest.Templates }

func (p private) Resolve(ctx context.Context, who, ref string) (olympus.Template, error) {
	if own := (olympus.Template{ID: "privatetemplateid000", BuildID: "p1", Names: []string{"mine"}}); who == tenant.Default && (ref == "mine" || ref == own.ID) {
		return own, nil
	}
	return p.Templates.Resolve(ctx, who, ref)
}

// shared makes a thing that is of the whole fleet, by the parameter that names it: those who have the role look after all of them, of whatever tenant
// they are themselves.
var shared = map[string]func(r *rig, n int) (id string){
	"keyID": func(r *rig, n int) string {
		return decode[api.Key](r.call("admin", "POST", "/keys", fmt.Sprintf(`{"name":"key-%d"}`, n)).want(201)).KeyID
	},
	"policy": func(r *rig, n int) string {
		name := fmt.Sprint("policy-", n)
		r.call("operator", "PUT", "/policies/"+name, policyBody(r.t, harmless(name), 0)).want(200)
		return name
	},
	"tenant": func(r *rig, n int) string {
		name := fmt.Sprint("tenant-", n)
		r.call("admin", "POST", "/tenants", `{"name":"`+name+`"}`).want(201)
		return name
	},
	"job": func(r *rig, _ int) string { return r.create(`{"templateID":"base","timeout":600}`).SandboxID },
}

// harmless is a policy that is about nothing.
func harmless(name string) string {
	return "apiVersion: tartarus.io/v1\nname: " + name + "\nscope: global\nrules: [{name: r, when: request.vcpu > 9000, effect: deny, message: m}]\n"
}

// sharedBody is what a route is sent that is about a thing of the fleet.
func sharedBody(t *testing.T, name, id string) string {
	switch name {
	case "PUT /policies/{policy}":
		return policyBody(t, harmless(id), 1)
	case "POST /policies/{policy}/rollbacks":
		return `{"version":1}`
	case "PATCH /tenants/{tenant}":
		return `{"title":"seen"}`
	}
	return ""
}

// ofNoTenant checks a route about a thing of the fleet: who has the role has the same answer, whatever tenant he is of, and who has not is
// told the same of what is there and what is not.
func ofNoTenant(r *rig, row olympus.Row, name string, make func(r *rig, n int) string, keys ...map[tenant.Role]string) (cells int) {
	p, got := param(row.Pattern), map[tenant.Role]int{}
	for i, of := range keys {
		for role, key := range of {
			cells++
			things++
			id := make(r, things)
			call := func(id string) answer {
				return r.call(key, row.Method, strings.ReplaceAll(row.Pattern, "{"+p+"}", id), sharedBody(r.t, name, id))
			}
			if !role.Covers(row.Role) {
				if a, b := call(id).want(403, string(row.Role)), call("no-such-thing").want(403); strings.ReplaceAll(a.body, id, "ID") != strings.ReplaceAll(b.body, "no-such-thing", "ID") {
					r.t.Errorf("%s learns whether it exists: %s or %s", key, a.body, b.body)
				}
				continue
			}
			a := call(id)
			if i == 0 {
				got[role] = a.status
			}
			if a.status == 401 || a.status == 403 || a.status == 404 || a.status >= 500 || a.status != got[role] {
				r.t.Errorf("%s: got %d, and %d of the default tenant: %s", key, a.status, got[role], a.body)
			}
			if b := call("no-such-thing"); b.status != 404 && row.Method != "PUT" {
				r.t.Errorf("%s: of what is not there: %d %s", key, b.status, b.body)
			}
		}
	}
	return cells
}

// things numbers what shared makes.
var things int

// bodies are what routes are sent that want a body.
var bodies = map[string]string{
	"POST /sandboxes": `{"templateID":"base"}`, "POST /v2/sandboxes": `{"templateID":"base"}`,
	"POST /sandboxes/{sandboxID}/timeout": `{"timeout":60}`, "PUT /sandboxes/{sandboxID}/network": `{}`,
	"POST /sandboxes/{sandboxID}/quarantine": `{"reason":"seen on its network"}`, "POST /quarantine/{sandboxID}/release": `{"reason":"it was a test"}`,
	"POST /secrets": `{"name":"another","value":"v"}`, "POST /secrets/{secretID}": `{"value":"v"}`, "POST /volumes": `{"name":"another"}`,
}

// param is the parameter in a pattern, empty when there is none.
func param(pattern string) string {
	_, rest, ok := strings.Cut(pattern, "{")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "}")
	return name
}

// byKey reports whether a route is for keys with a role.
func byKey(row olympus.Row) bool {
	switch row.Role {
	case tenant.Admin, tenant.Operator, tenant.Developer, tenant.Reader:
		return true
	}
	return false
}

// ofTheFleet reports whether a route is about sandboxes of whatever tenant: operators look after all of them.
func ofTheFleet(row olympus.Row) bool { return strings.Contains(row.Pattern, "quarantine") }

// anyOperator checks a route of the fleet: operators of every tenant have the same answer, and nobody else has one.
func anyOperator(r *rig, row olympus.Row, name string, keys ...map[tenant.Role]string) (cells int) {
	for _, of := range keys {
		for role, key := range of {
			cells++
			id, look := owned["sandboxID"](r)
			a := r.call(key, row.Method, strings.ReplaceAll(row.Pattern, "{sandboxID}", id), bodies[name])
			switch {
			case !role.Covers(row.Role):
				a.want(403, string(row.Role))
				r.call("developer", "GET", look, "").want(200)
			case a.status == 401 || a.status == 403 || a.status >= 500:
				r.t.Errorf("%s: got %d %s", key, a.status, a.body)
			case strings.HasPrefix(row.Pattern, "/sandboxes/"):
				a.want(200, id)
			}
		}
	}
	return cells
}

// Each route, for each role, on what is one's own and what is another tenant's: whoever has not the role is refused, and nobody learns that
// what belongs to another tenant exists.
func TestRolesOnEveryRoute(t *testing.T) {
	cells := 0
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) {
		c.Rate = -1
		c.Templates = private{c.Templates.(olympustest.Templates)}
	})
	own := map[tenant.Role]string{tenant.Admin: "admin", tenant.Operator: "operator", tenant.Developer: "developer", tenant.Reader: "reader"}
	foreign := map[tenant.Role]string{tenant.Admin: "other-admin", tenant.Operator: "other-operator", tenant.Developer: "other", tenant.Reader: "other-reader"}
	for _, row := range olympus.Routes() {
		if !byKey(row) {
			continue // open to anyone, or by another kind of token, which has tests of its own
		}
		name := row.Method + " " + row.Pattern
		t.Run(name, func(t *testing.T) {
			r := &rig{r.Stack, t}
			if ofTheFleet(row) {
				cells += anyOperator(r, row, name, own, foreign)
				return
			}
			p := param(row.Pattern)
			if make := shared[p]; make != nil && !strings.HasPrefix(row.Pattern, "/audit") { // whose keys are of another kind
				cells += ofNoTenant(r, row, name, make, own, foreign)
				return
			}
			thing := owned[p]
			for role, key := range own {
				cells++
				path, look := row.Pattern, ""
				if thing != nil {
					var id string
					id, look = thing(r)
					path = strings.ReplaceAll(path, "{"+p+"}", id)
				}
				a := r.call(key, row.Method, path, bodies[name])
				if !role.Covers(row.Role) {
					a.want(403, string(row.Role))
					if look != "" {
						r.call("developer", "GET", look, "").want(200)
					}
					continue
				}
				if a.status == 401 || a.status == 403 || a.status >= 500 || a.status == 404 && thing != nil && !strings.Contains(row.Pattern, "termination") {
					t.Errorf("%s with its own: got %d %s", role, a.status, a.body)
				}
			}
			if thing == nil {
				for role, key := range foreign { // it is about nothing that anybody owns
					cells++
					if a := r.call(key, row.Method, row.Pattern, bodies[name]); role.Covers(row.Role) == (a.status == 403) || a.status == 401 || a.status >= 500 {
						t.Errorf("%s of another tenant: got %d %s", role, a.status, a.body)
					}
				}
				return
			}
			id, look := thing(r)
			absent := absentLike(id)
			for role, key := range foreign {
				cells++
				a := r.call(key, row.Method, strings.ReplaceAll(row.Pattern, "{"+p+"}", id), bodies[name])
				b := r.call(key, row.Method, strings.ReplaceAll(row.Pattern, "{"+p+"}", absent), bodies[name])
				want := 404
				if !role.Covers(row.Role) {
					want = 403
				}
				// Secrets may be removed by whoever, if they are not there: what counts is that both answers are the same.
				if a.status != want && a.status != b.status || a.status < 300 && a.body != "" && strings.Contains(a.body, id) {
					t.Errorf("%s of another tenant: got %d, want %d: %s", role, a.status, want, a.body)
				}
				if x, y := strings.ReplaceAll(a.body, id, "ID"), strings.ReplaceAll(b.body, absent, "ID"); x != y || a.status != b.status {
					t.Errorf("%s of another tenant learns that it exists:\n%d %s\n%d %s", role, a.status, x, b.status, y)
				}
				r.call("developer", "GET", look, "").want(200)
			}
		})
	}
	t.Logf("route x role x ownership: %d cells", cells)
	if cells < 600 {
		t.Errorf("only %d cells", cells)
	}
}

// absentLike is an id of the same form as another one, and nobody's.
func absentLike(id string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'y' {
			return c + 1
		}
		return c
	}, id)
}

// What a create names is looked for among what is one's own: another tenant's is answered as what is not there, and what comes of one's own
// is as it was asked for.
func TestReferencesAreOfOneTenant(t *testing.T) {
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) {
		c.Templates = private{c.Templates.(olympustest.Templates)}
	})
	snap, _ := snapshotOf(r)
	decode[api.VolumeAndToken](r.call("developer", "POST", "/volumes", `{"name":"data"}`).want(201))
	for what, body := range map[string]string{
		snap:   `{"templateID":"THING"}`,
		"mine": `{"templateID":"THING"}`,
		"data": `{"templateID":"base","volumeMounts":[{"name":"THING","path":"/data"}]}`,
	} {
		for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
			absent := absentLike(what)
			r.call("developer", "POST", path, strings.ReplaceAll(body, "THING", what)).want(201)
			for _, key := range []string{"other", "other-operator", "other-admin"} {
				a := r.call(key, "POST", path, strings.ReplaceAll(body, "THING", what))
				b := r.call(key, "POST", path, strings.ReplaceAll(body, "THING", absent))
				if a.status < 400 || a.status != b.status || strings.ReplaceAll(a.body, what, "ID") != strings.ReplaceAll(b.body, absent, "ID") {
					t.Errorf("%s names %s: got %d %s, and of what is not there %d %s", key, what, a.status, a.body, b.status, b.body)
				}
			}
		}
	}
}

// Lists show what is one's own and nothing of others.
func TestListsAreOfOneTenant(t *testing.T) {
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) {
		c.Templates = private{c.Templates.(olympustest.Templates)}
	})
	var ids []string
	sandbox, _ := owned["sandboxID"](r)
	for p, make := range owned {
		id, _ := make(r)
		if p == "alias" {
			continue // a word that other texts have, too
		}
		ids = append(ids, id)
	}
	for _, row := range olympus.Routes() {
		if row.Method != "GET" || param(row.Pattern) != "" || !byKey(row) || strings.HasPrefix(row.Pattern, "/audit") {
			continue
		}
		for _, key := range []string{"other-reader", "other", "other-operator", "other-admin"} {
			a := r.call(key, "GET", row.Pattern+"?sandbox_ids="+sandbox, "")
			for _, id := range append(ids, sandbox) {
				if strings.Contains(a.body, id) {
					t.Errorf("%s shows %s to %s", row.Pattern, id, key)
				}
			}
		}
	}
}

// A key without the permission to exec is told no agent token, by any route.
func TestExecIsAPermission(t *testing.T) {
	r := newRig(t, nil)
	with := r.create(`{"templateID":"base"}`)
	if with.EnvdAccessToken == "" {
		t.Fatal("no token to look for")
	}
	for _, row := range olympus.Routes() {
		if row.Method == "DELETE" || !byKey(row) || !tenant.Developer.Covers(row.Role) {
			continue
		}
		name := row.Method + " " + row.Pattern
		a := r.call("noexec", row.Method, strings.ReplaceAll(row.Pattern, "{sandboxID}", with.SandboxID), bodies[name])
		if strings.Contains(a.body, with.EnvdAccessToken) {
			t.Errorf("%s tells the agent's token", name)
		}
		var made api.Sandbox
		if json.Unmarshal([]byte(a.body), &made) == nil && made.EnvdAccessToken != "" {
			t.Errorf("%s makes a token", name)
		}
	}
}
