// Package audit is Aeacus: the record of who did what, to which sandbox, by which verdict. A record is on disk before the act it speaks
// of begins; each carries the hash of the one before it, and what was once signed cannot be changed, taken out or cut off unnoticed.
//
// A replica writes one chain, in segment files that it alone appends to. Signed checkpoints cover the chains of all replicas; they and the
// signed head of each chain are copied to the store that replicas share, so that a folder that was put back to an earlier state is noticed.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"
)

// Verdict is what was decided about an act.
type Verdict string

// The verdicts.
const (
	Allow      Verdict = "allow"
	Deny       Verdict = "deny"
	Quarantine Verdict = "quarantine"
)

// Stage tells the two records of an act apart: the one before it begins, and the one that says how it ended.
type Stage string

// The stages. A record without an outcome means that the process ended in between, or that the act is under way.
const (
	Attempt Stage = "attempt"
	Outcome Stage = "outcome"
)

// Record is one entry of a chain.
type Record struct {
	Seq     uint64            `json:"seq"`   // 1, 2, 3 ... in its chain
	Chain   string            `json:"chain"` // which replica wrote it
	Time    time.Time         `json:"time"`
	Action  string            `json:"action"` // such as sandbox.create
	Stage   Stage             `json:"stage"`
	Actor   Actor             `json:"actor"`
	Tenant  string            `json:"tenant,omitempty"` // whose object it is
	Object  Object            `json:"object"`
	Verdict Verdict           `json:"verdict,omitempty"` // of an attempt
	Reasons []Reason          `json:"reasons,omitempty"`
	Policy  string            `json:"policyVersion,omitempty"` // of the policies that were in force
	Request string            `json:"request,omitempty"`       // id of the request; attempt and outcome share it
	Error   string            `json:"error,omitempty"`         // kind of the failure of an outcome; empty when it succeeded
	Detail  map[string]string `json:"detail,omitempty"`        // never what a client sent in a body or as a credential
	Prev    string            `json:"prev"`                    // hash of the record before; of the first, the empty hash
	Hash    string            `json:"hash"`                    // of all bytes before this field
}

// Actor is who acts.
type Actor struct {
	Kind    string `json:"kind"`              // key, person, agent-token, volume-token, nobody or system
	ID      string `json:"id,omitempty"`      // of the key, never the secret; of a person, oidc: and what the issuer calls the subject
	Name    string `json:"name,omitempty"`    // of the key or person
	Role    string `json:"role,omitempty"`    // likewise
	Tenant  string `json:"tenant,omitempty"`  // likewise
	Address string `json:"address,omitempty"` // where the request came from
}

// The kinds of actors.
const (
	ByKey    = "key"
	ByPerson = "person"      // who logged in elsewhere
	ByToken  = "agent-token" // whoever holds the token of a sandbox's agent
	ByVolume = "volume-token"
	ByNobody = "nobody" // no valid credential
	BySystem = "system" // Tartarus itself
)

// Object is what is acted on.
type Object struct {
	Kind string `json:"kind"` // sandbox, key, tenant, policy, audit, api
	ID   string `json:"id,omitempty"`
}

// Reason is why a verdict is what it is.
type Reason struct {
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
	Judge   string `json:"judge,omitempty"`
	Rule    string `json:"rule,omitempty"`
	Policy  string `json:"policyVersion,omitempty"`
}

// zeroHash is what the first record of a chain names as the one before it.
var zeroHash = hex.EncodeToString(make([]byte, sha256.Size))

// The hash is the last field of a line, so that what it covers can be cut off without any idea of how JSON is written.
const (
	hashField = `,"hash":"`
	hashTail  = len(hashField) + 2*sha256.Size + len(`"}`)
)

// Bounds of what one record holds. They keep a line far below maxLine whatever a client sends.
const (
	maxText    = 512
	maxReasons = 32
	maxDetails = 16
	maxLine    = 128 << 10
)

// seal bounds r, gives it its hash and returns its line, with the newline.
func (r *Record) seal() ([]byte, error) {
	r.bound()
	r.Hash = ""
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	body = body[:len(body)-len(hashField)-len(`"}`)] // without ,"hash":""}
	sum := sha256.Sum256(body)
	r.Hash = hex.EncodeToString(sum[:])
	return append(body, hashField+r.Hash+"\"}\n"...), nil
}

// bound cuts what could grow without end.
func (r *Record) bound() {
	for _, s := range []*string{&r.Action, &r.Actor.ID, &r.Actor.Name, &r.Actor.Role, &r.Actor.Tenant, &r.Actor.Address, &r.Tenant,
		&r.Object.Kind, &r.Object.ID, &r.Policy, &r.Request, &r.Error} {
		*s = clip(*s)
	}
	if len(r.Reasons) > maxReasons {
		r.Reasons = append(r.Reasons[:maxReasons:maxReasons], Reason{Code: "more", Message: fmt.Sprintf("%d more reasons", len(r.Reasons)-maxReasons)})
	}
	for i := range r.Reasons {
		q := &r.Reasons[i]
		for _, s := range []*string{&q.Code, &q.Message, &q.Judge, &q.Rule, &q.Policy} {
			*s = clip(*s)
		}
	}
	if len(r.Detail) == 0 {
		return
	}
	detail := make(map[string]string, len(r.Detail))
	for k, v := range r.Detail {
		if len(detail) < maxDetails {
			detail[clip(k)] = clip(v)
		}
	}
	r.Detail = detail
}

// clip shortens a text, between runes, and makes it valid: JSON would replace what is not, and be longer than what was checked.
func clip(s string) string {
	if len(s) > maxText {
		cut := maxText
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	if !utf8.ValidString(s) {
		s = string([]rune(s))
	}
	return s
}

// openLine reads a line without its newline. The hash is checked against the bytes.
func openLine(line []byte) (r Record, err error) {
	body, hash, ok := split(line)
	if !ok {
		return r, errNotARecord
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("%w: %w", errNotARecord, err)
	}
	sum := sha256.Sum256(body)
	if hex.EncodeToString(sum[:]) != hash || r.Hash != hash {
		return r, errHash
	}
	return r, nil
}

func split(line []byte) (body []byte, hash string, ok bool) {
	cut := len(line) - hashTail
	if cut <= 0 || !bytes.HasPrefix(line[cut:], []byte(hashField)) || !bytes.HasSuffix(line, []byte(`"}`)) {
		return nil, "", false
	}
	return line[:cut], string(line[cut+len(hashField) : len(line)-2]), true
}
