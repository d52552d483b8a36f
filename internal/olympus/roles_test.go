package olympus_test

import (
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
}

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
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) { c.Rate = -1 })
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
				return
			}
			id, look := thing(r)
			absent := strings.Map(func(c rune) rune {
				if c >= 'a' && c <= 'y' {
					return c + 1
				}
				return c
			}, id)
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
	if cells < 150 {
		t.Errorf("only %d cells", cells)
	}
}

// Lists show what is one's own and nothing of others.
func TestListsAreOfOneTenant(t *testing.T) {
	r := newRig(t, nil)
	var ids []string
	sandbox, _ := owned["sandboxID"](r)
	for _, make := range owned {
		id, _ := make(r)
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
