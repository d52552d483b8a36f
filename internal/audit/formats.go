package audit

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// The formats of an export.
const (
	JSONLines = "jsonl" // the lines as they are in the chain: VerifyLines verifies them
	CEF       = "cef"   // ArcSight Common Event Format, revision 25
	OCSF      = "ocsf"  // Open Cybersecurity Schema Framework 1.3: API activity and authentication
)

// Encoder returns what writes a record in a format, with a newline. version is that of this program.
func Encoder(format, version string) (func(r Record, line []byte) ([]byte, error), error) {
	switch format {
	case JSONLines, "":
		return func(_ Record, line []byte) ([]byte, error) { return append(append([]byte(nil), line...), '\n'), nil }, nil
	case CEF:
		return func(r Record, _ []byte) ([]byte, error) { return []byte(cef(r, version) + "\n"), nil }, nil
	case OCSF:
		return func(r Record, _ []byte) ([]byte, error) {
			b, err := json.Marshal(ocsf(r, version))
			return append(b, '\n'), err
		}, nil
	}
	return nil, tartarus.Errorf(tartarus.Invalid, "format %.20q is none of jsonl, cef, ocsf", format)
}

// failed reports whether a record tells of something that was refused or went wrong.
func (r Record) failed() bool { return r.Error != "" || r.Verdict == Deny }

// severity is from 0 to 10, as CEF counts.
func (r Record) severity() int {
	switch {
	case r.Action == ActionGap:
		return 10
	case r.Verdict == Quarantine:
		return 8
	case r.Action == "login.failure", r.Verdict == Deny:
		return 6
	case r.Error != "":
		return 4
	}
	return 2
}

var (
	cefHeader = strings.NewReplacer(`\`, `\\`, `|`, `\|`, "\n", " ", "\r", " ")
	cefValue  = strings.NewReplacer(`\`, `\\`, `=`, `\=`, "\n", `\n`, "\r", `\r`)
)

func cef(r Record, version string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "CEF:0|Tartarus|Tartarus|%s|%s|%s %s|%d|", cefHeader.Replace(version), cefHeader.Replace(r.Action), cefHeader.Replace(r.Action), r.Stage, r.severity())
	first := true
	field := func(name, value string) {
		if value == "" {
			return
		}
		if !first {
			b.WriteByte(' ')
		}
		first = false
		b.WriteString(name + "=" + cefValue.Replace(value))
	}
	field("rt", fmt.Sprint(r.Time.UnixMilli()))
	field("externalId", fmt.Sprintf("%s:%d", r.Chain, r.Seq))
	field("suid", r.Actor.ID)
	field("suser", r.Actor.Name)
	field("spriv", r.Actor.Role)
	field("src", r.Actor.Address)
	field("act", string(r.Verdict))
	outcome := "success"
	if r.failed() {
		outcome = "failure"
	}
	field("outcome", outcome)
	field("reason", r.why())
	for i, c := range [][2]string{{"tenant", r.Tenant}, {"objectKind", r.Object.Kind}, {"objectId", r.Object.ID}, {"requestId", r.Request}, {"policyVersion", r.Policy}, {"hash", r.Hash}} {
		if c[1] != "" {
			field(fmt.Sprintf("cs%dLabel", i+1), c[0])
			field(fmt.Sprintf("cs%d", i+1), c[1])
		}
	}
	return b.String()
}

// why is all reasons as one text.
func (r Record) why() string {
	var parts []string
	for _, q := range r.Reasons {
		parts = append(parts, q.Message)
	}
	if r.Error != "" {
		parts = append(parts, r.Error)
	}
	return strings.Join(parts, "; ")
}

// The numbers of OCSF 1.3.
const (
	ocsfAPIActivity    = 6003
	ocsfAuthentication = 3002
	ocsfVersion        = "1.3.0"
)

func ocsf(r Record, version string) map[string]any {
	class, category, activity := ocsfAPIActivity, 6, ocsfActivity(r.Action)
	if strings.HasPrefix(r.Action, "login.") {
		class, category, activity = ocsfAuthentication, 3, 1 // logon
	}
	status, statusID := "Success", 1
	if r.failed() {
		status, statusID = "Failure", 2
	}
	endpoint := map[string]any{"name": "tartarus"}
	if r.Actor.Address != "" {
		endpoint = map[string]any{"ip": r.Actor.Address}
	}
	user := map[string]any{"uid": r.Actor.ID, "name": r.Actor.Name, "type": r.Actor.Kind, "type_id": 99, "groups": []any{map[string]any{"name": r.Actor.Role}}, "org": map[string]any{"name": r.Actor.Tenant}}
	out := map[string]any{
		"class_uid": class, "category_uid": category, "activity_id": activity, "type_uid": class*100 + activity,
		"time": r.Time.UnixMilli(), "severity_id": ocsfSeverity(r.severity()), "status": status, "status_id": statusID,
		"metadata": map[string]any{
			"version": ocsfVersion, "uid": fmt.Sprintf("%s:%d", r.Chain, r.Seq), "sequence": r.Seq, "correlation_uid": r.Request,
			"product": map[string]any{"name": "Tartarus", "vendor_name": "Tartarus", "version": version},
		},
		"actor": map[string]any{"user": user}, "src_endpoint": endpoint,
		"api":       map[string]any{"operation": r.Action, "request": map[string]any{"uid": r.Request}},
		"resources": []any{map[string]any{"type": r.Object.Kind, "uid": r.Object.ID, "owner": map[string]any{"org": map[string]any{"name": r.Tenant}}}},
		"unmapped":  map[string]any{"stage": r.Stage, "verdict": r.Verdict, "policyVersion": r.Policy, "detail": r.Detail, "prev": r.Prev, "hash": r.Hash},
	}
	if why := r.why(); why != "" {
		out["status_detail"] = why
	}
	if class == ocsfAuthentication {
		out["user"] = user
	}
	return out
}

func ocsfActivity(action string) int {
	switch action[strings.LastIndexByte(action, '.')+1:] {
	case "create", "fork", "exec", "apply":
		return 1
	case "read", "logs", "list":
		return 2
	case "kill", "delete", "revoke", "remove":
		return 4
	}
	return 3 // update
}

func ocsfSeverity(n int) int {
	switch {
	case n >= 10:
		return 5 // critical
	case n >= 8:
		return 4
	case n >= 6:
		return 3
	case n >= 4:
		return 2
	}
	return 1
}
