package olympus

import (
	"context"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"golang.org/x/time/rate"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/audit"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
)

// action is how a route is recorded.
type action struct {
	name   string
	object string // kind of what it acts on
	param  string // of the path, that names it
	judged bool   // the handler records the verdict of the judges, before it acts by it
	read   bool   // it changes nothing: recorded, but not waited for
}

// actions are the names under which routes are recorded. A route that changes something and is not named here is recorded under its method
// and path; one that only looks is not recorded unless it is here.
var actions = map[string]action{
	"POST /sandboxes":                        {name: "sandbox.create", object: "sandbox", judged: true},
	"POST /v2/sandboxes":                     {name: "sandbox.create", object: "sandbox", judged: true},
	"GET /sandboxes/{sandboxID}":             {name: "sandbox.read", object: "sandbox", param: "sandboxID", read: true},
	"GET /sandboxes/{sandboxID}/logs":        {name: "sandbox.logs", object: "sandbox", param: "sandboxID", read: true},
	"GET /v2/sandboxes/{sandboxID}/logs":     {name: "sandbox.logs", object: "sandbox", param: "sandboxID", read: true},
	"DELETE /sandboxes/{sandboxID}":          {name: "sandbox.kill", object: "sandbox", param: "sandboxID"},
	"POST /sandboxes/{sandboxID}/connect":    {name: "sandbox.connect", object: "sandbox", param: "sandboxID", judged: true},
	"POST /v2/sandboxes/{sandboxID}/connect": {name: "sandbox.connect", object: "sandbox", param: "sandboxID", judged: true},
	"POST /sandboxes/{sandboxID}/pause":      {name: "sandbox.pause", object: "sandbox", param: "sandboxID"},
	"POST /sandboxes/{sandboxID}/resume":     {name: "sandbox.resume", object: "sandbox", param: "sandboxID", judged: true},
	"POST /sandboxes/{sandboxID}/fork":       {name: "sandbox.fork", object: "sandbox", param: "sandboxID"},
	"POST /sandboxes/{sandboxID}/snapshots":  {name: "sandbox.snapshot", object: "sandbox", param: "sandboxID"},
	"POST /sandboxes/{sandboxID}/timeout":    {name: "sandbox.timeout", object: "sandbox", param: "sandboxID"},
	"POST /sandboxes/{sandboxID}/refreshes":  {name: "sandbox.timeout", object: "sandbox", param: "sandboxID"},
	"PUT /sandboxes/{sandboxID}/network":     {name: "sandbox.network", object: "sandbox", param: "sandboxID", judged: true},

	"POST /sandboxes/{sandboxID}/quarantine":   {name: "quarantine.add", object: "sandbox", param: "sandboxID"},
	"GET /quarantine/{sandboxID}":              {name: "quarantine.evidence", object: "sandbox", param: "sandboxID", read: true},
	"POST /quarantine/{sandboxID}/inspections": {name: "quarantine.inspect", object: "sandbox", param: "sandboxID", read: true},
	"POST /quarantine/{sandboxID}/release":     {name: "quarantine.release", object: "sandbox", param: "sandboxID"},
	"DELETE /quarantine/{sandboxID}":           {name: "quarantine.destroy", object: "sandbox", param: "sandboxID"},

	"POST /secrets":              {name: "secret.create", object: "secret"},
	"POST /secrets/{secretID}":   {name: "secret.update", object: "secret", param: "secretID"},
	"DELETE /secrets/{secretID}": {name: "secret.delete", object: "secret", param: "secretID"},

	"POST /fleet/tokens":                    {name: "fleet.token", object: "fleet"},
	"DELETE /nodes/{node}":                  {name: "node.remove", object: "node", param: "node"},
	"POST /nodes/{node}/cordon":             {name: "node.cordon", object: "node", param: "node"},
	"POST /nodes/{node}/uncordon":           {name: "node.uncordon", object: "node", param: "node"},
	"POST /nodes/{node}/drain":              {name: "node.drain", object: "node", param: "node"},
	"PATCH /nodes/{node}/labels":            {name: "node.label", object: "node", param: "node"},
	"POST /queue/purge":                     {name: "queue.purge", object: "queue"},
	"POST /queue/{job}/requeue":             {name: "queue.requeue", object: "job", param: "job"},
	"POST /queue/{job}/cancel":              {name: "queue.cancel", object: "job", param: "job"},
	"POST /volumes":                         {name: "volume.create", object: "volume"},
	"DELETE /volumes/{volumeID}":            {name: "volume.delete", object: "volume", param: "volumeID"},
	"GET /volumecontent/{volumeID}/file":    {name: "volume.read", object: "volume", param: "volumeID", read: true},
	"PUT /volumecontent/{volumeID}/file":    {name: "volume.write", object: "volume", param: "volumeID"},
	"POST /volumecontent/{volumeID}/dir":    {name: "volume.write", object: "volume", param: "volumeID"},
	"PATCH /volumecontent/{volumeID}/path":  {name: "volume.write", object: "volume", param: "volumeID"},
	"DELETE /volumecontent/{volumeID}/path": {name: "volume.write", object: "volume", param: "volumeID"},

	"PUT /policies/{policy}":            {name: "policy.apply", object: "policy", param: "policy"},
	"DELETE /policies/{policy}":         {name: "policy.remove", object: "policy", param: "policy"},
	"POST /policies/{policy}/rollbacks": {name: "policy.rollback", object: "policy", param: "policy"},

	"POST /tenants":                {name: "tenant.create", object: "tenant"},
	"PATCH /tenants/{tenant}":      {name: "tenant.change", object: "tenant", param: "tenant"},
	"DELETE /tenants/{tenant}":     {name: "tenant.delete", object: "tenant", param: "tenant"},
	"POST /keys":                   {name: "key.create", object: "key"},
	"POST /keys/{keyID}/rotations": {name: "key.rotate", object: "key", param: "keyID"},
	"DELETE /keys/{keyID}":         {name: "key.revoke", object: "key", param: "keyID"},

	"GET /audit":                 {name: "audit.read", object: "audit", read: true},
	"GET /audit/export":          {name: "audit.export", object: "audit"},
	"POST /audit/keys":           {name: "audit.rotate", object: "audit"},
	"PUT /audit/keys/{keyID}":    {name: "audit.trust", object: "audit", param: "keyID"},
	"DELETE /audit/keys/{keyID}": {name: "audit.distrust", object: "audit", param: "keyID"},
}

// recorder writes what clients do into the audit log. Without a log it does nothing.
type recorder struct {
	log    *audit.Log
	logins *rate.Limiter // of failures that are recorded one by one
}

// loginFailures is how many failed logins are recorded a second; a flood of guesses must not fill the disk.
const loginFailures = 20

func newRecorder(log *audit.Log) *recorder {
	return &recorder{log: log, logins: rate.NewLimiter(loginFailures, 5*loginFailures)}
}

// act is what a request does, from its first record to its last. A nil act is not recorded.
type act struct {
	action
	record audit.Record
	log    *audit.Log
	begun  bool
}

// actOf says how a request is recorded, nil when it is not.
func (rec *recorder) actOf(rt route, r *http.Request, who caller) *act {
	if rec.log == nil || rt.role == anyone {
		return nil
	}
	a, named := actions[rt.method+" "+rt.pattern]
	if !named {
		if rt.method == http.MethodGet || rt.method == http.MethodHead {
			return nil
		}
		a = action{name: "api." + strings.ToLower(rt.method), object: "api"}
	}
	out := &act{action: a, log: rec.log, record: audit.Record{
		Action: a.name, Actor: actor(r, who), Object: audit.Object{Kind: a.object}, Request: who.request, Tenant: who.key.Tenant,
	}}
	if rt.role == byVolume {
		out.record.Actor.Kind = audit.ByVolume
	}
	switch {
	case a.param != "":
		// What a client wrote there and is no id may be anything, a credential too.
		if id := chi.URLParam(r, a.param); tartarus.ValidID(strings.NewReplacer("-", "", ".", "").Replace(id)) && !keyShaped(id) {
			out.record.Object.ID = id
		}
	case !named:
		out.record.Object.ID = rt.pattern
	}
	return out
}

// actor is who made a request.
func actor(r *http.Request, who caller) audit.Actor {
	a := audit.Actor{Kind: audit.ByNobody, Address: address(r)}
	if k := who.key; k.ID != "" {
		a.Kind, a.ID, a.Name, a.Role, a.Tenant = audit.ByKey, k.ID, k.Name, string(k.Role), k.Tenant
		if k.Person {
			a.Kind = audit.ByPerson
		}
	}
	return a
}

// address is where a request came from: the other end of its connection. What a header says of it anybody may write.
func address(r *http.Request) string {
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		return host
	}
	return r.RemoteAddr
}

// about names what the act is about, once it is known.
func (a *act) about(id, tenant string) {
	if a != nil {
		a.record.Object.ID, a.record.Tenant = id, tenant
	}
}

// begin records that the act is allowed. When it cannot be recorded, the act must not happen.
func (a *act) begin(ctx context.Context) error {
	if a == nil || a.begun {
		return nil
	}
	a.begun = true
	r := a.record
	r.Stage = audit.Attempt
	if r.Verdict == "" {
		r.Verdict = audit.Allow
	}
	if a.read {
		a.log.Note(r)
		return nil
	}
	return a.log.Append(ctx, r)
}

// decided records what the judges said, before anything is done by it.
func (a *act) decided(ctx context.Context, out judges.Outcome, detail map[string]string) error {
	if a == nil {
		return nil
	}
	a.record.Verdict, a.record.Reasons = verdictOf(out)
	for _, v := range out.Verdicts {
		if v.Policy != "" {
			a.record.Policy = v.Policy
		}
	}
	a.record.Detail = detail
	return a.begin(ctx)
}

// verdictOf is the whole chain's verdict, with all reasons.
func verdictOf(out judges.Outcome) (audit.Verdict, []audit.Reason) {
	verdict := audit.Allow
	if out.Quarantine() {
		verdict = audit.Quarantine
	}
	var reasons []audit.Reason
	for _, v := range out.Verdicts {
		if !v.Allow {
			verdict = audit.Deny
		}
		for _, q := range v.Reasons {
			reasons = append(reasons, audit.Reason{Code: q.Code, Message: q.Message, Judge: v.Judge, Rule: q.Rule, Policy: q.Policy})
		}
		if len(v.Reasons) == 0 && v.Reason != "" {
			reasons = append(reasons, audit.Reason{Code: string(v.Kind), Message: v.Reason, Judge: v.Judge})
		}
	}
	return verdict, reasons
}

// wakeRefused records that traffic did not wake a sandbox. What is let in is on record as what it does there.
func (rec *recorder) wakeRefused(ctx context.Context, sb tartarus.Sandbox, out judges.Outcome) {
	if rec.log == nil || !rec.logins.AllowN(time.Now(), 1) {
		return
	}
	a := &act{log: rec.log, record: audit.Record{
		Action: "sandbox.resume", Actor: audit.Actor{Kind: audit.BySystem, Name: "traffic"}, Tenant: sb.Tenant, Object: audit.Object{Kind: "sandbox", ID: sb.ID},
	}}
	_ = a.decided(ctx, out, nil) // it is refused either way
}

// refused records that the caller may not do this.
func (a *act) refused(ctx context.Context, err error) {
	if a == nil {
		return
	}
	a.begun = true
	a.record.Verdict = audit.Deny
	a.record.Reasons = []audit.Reason{{Code: string(tartarus.KindOf(err)), Message: err.Error(), Judge: "roles"}}
	r := a.record
	r.Stage = audit.Attempt
	_ = a.log.Append(ctx, r) // it is refused either way
}

// finish records how the act ended. Nobody waits for it.
func (a *act) finish(err error) {
	if a == nil || a.record.Verdict == audit.Deny && a.begun || a.read && err == nil {
		return
	}
	r := a.record
	r.Stage, r.Verdict, r.Reasons, r.Detail = audit.Outcome, "", nil, nil
	if err != nil {
		r.Error = string(tartarus.KindOf(err))
	}
	a.log.Note(r)
}

// loginFailed records a request without a valid key.
func (rec *recorder) loginFailed(r *http.Request, who caller, err error) {
	if rec.log == nil || !rec.logins.AllowN(time.Now(), 1) {
		return
	}
	rec.log.Note(audit.Record{
		Action: "login.failure", Stage: audit.Attempt, Verdict: audit.Deny, Actor: actor(r, who), Object: audit.Object{Kind: "api"}, Request: who.request,
		Reasons: []audit.Reason{{Code: string(tartarus.KindOf(err)), Message: err.Error()}},
	})
}

// noticed records what became of a sandbox without anybody having asked for it.
func (rec *recorder) noticed(action string, sb tartarus.Sandbox, detail map[string]string) {
	if rec.log == nil {
		return
	}
	rec.log.Note(audit.Record{
		Action: action, Stage: audit.Attempt, Verdict: audit.Allow, Actor: audit.Actor{Kind: audit.BySystem, ID: "hades"}, Tenant: sb.Tenant,
		Object: audit.Object{Kind: "sandbox", ID: sb.ID}, Detail: detail,
	})
}
