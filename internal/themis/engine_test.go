package themis

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a store that can be away. The engine reads it; how stores write is their own suites' affair.
type memory struct {
	mu   sync.Mutex
	docs map[string]Document
	rev  int64
	away bool
}

func (m *memory) put(name string, version int64, body []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.docs == nil {
		m.docs = map[string]Document{}
	}
	m.rev++
	m.docs[name] = Document{Name: name, Version: version, Body: body}
}

func (m *memory) List(context.Context) (out []Document, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away {
		return nil, tartarus.Errorf(tartarus.Unavailable, "away")
	}
	for _, d := range m.docs {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b Document) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (m *memory) Revision(context.Context) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away {
		return 0, tartarus.Errorf(tartarus.Unavailable, "away")
	}
	return m.rev, nil
}

var errReads = errors.New("the engine only reads")

func (*memory) Put(context.Context, string, []byte, string, int64) (Document, error) {
	return Document{}, errReads
}
func (*memory) Get(context.Context, string, int64) (Document, error) { return Document{}, errReads }
func (*memory) History(context.Context, string) ([]Document, error)  { return nil, errReads }
func (*memory) Remove(context.Context, string, string, int64) error  { return errReads }

func engine(t *testing.T, s Store, file string) *Engine {
	t.Helper()
	e, err := NewEngine(EngineConfig{Store: s, File: file})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func scoped(name, scope, when, effect string) []byte {
	return []byte(fmt.Sprintf("apiVersion: tartarus.io/v1\nname: %s\nscope: %s\nrules:\n  - {name: r, when: %q, effect: %s, message: by %s}\n", name, scope, when, effect, name))
}

func ask(t *testing.T, e *Engine, in Input) Ruling {
	t.Helper()
	in.Request.Action = "create"
	r, err := e.Rule(t.Context(), &in)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sources(r Ruling) string {
	var out []string
	for _, q := range r.Reasons {
		out = append(out, q.Policy)
	}
	return strings.Join(out, " ")
}

// All scopes are in force together, the strictest verdict stands, and what denies is told first.
func TestScopesAreMerged(t *testing.T) {
	m := &memory{}
	m.put("g", 1, scoped("g", "global", "request.vcpu > 4", "quarantine"))
	m.put("t", 2, scoped("t", "tenant\ntenant: acme", "request.vcpu > 2", "deny"))
	m.put("m", 3, scoped("m", "template\ntemplate: base", "request.vcpu > 1", "quarantine"))
	e := engine(t, m, "")
	if _, err := e.Rule(t.Context(), &Input{}); !tartarus.Is(err, tartarus.Unavailable) {
		t.Fatalf("before anything was read: %v", err)
	}
	if err := e.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		vcpu             int64
		tenant, template string
		verdict, by      string
		asked            int
	}{
		{1, "acme", "base", "allow", "", 3},
		{2, "acme", "base", "quarantine", "m@3", 3},
		{3, "acme", "base", "deny", "t@2 m@3", 3},
		{5, "acme", "base", "deny", "t@2 g@1 m@3", 3},
		{5, "other", "tiny", "quarantine", "g@1", 1},
		{3, "acme", "tiny", "deny", "t@2", 2},
		{3, "other", "base", "quarantine", "m@3", 2},
	} {
		r := ask(t, e, Input{Request: RequestInput{VCPU: tc.vcpu}, Tenant: TenantInput{Name: tc.tenant}, Template: TemplateInput{ID: "id", Names: []string{tc.template, tc.template}}})
		if r.Verdict() != tc.verdict || sources(r) != tc.by || r.Policies != tc.asked || r.Revision != "3" {
			t.Errorf("%+v: got %s by %q of %d at %s", tc, r.Verdict(), sources(r), r.Policies, r.Revision)
		}
	}
}

func TestLastGoodVersionStays(t *testing.T) {
	m, file := &memory{}, filepath.Join(t.TempDir(), "state", "policies.json")
	m.put("p", 1, scoped("p", "global", "request.vcpu > 4", "deny"))
	e := engine(t, m, file)
	if err := e.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	five := Input{Request: RequestInput{VCPU: 5}}
	// The store goes away: what is in force stays, here and over a restart.
	m.away = true
	if err := e.Load(t.Context()); !tartarus.Is(err, tartarus.Unavailable) {
		t.Fatal(err)
	}
	for _, x := range []*Engine{e, engine(t, m, file)} {
		if r := ask(t, x, five); r.Verdict() != "deny" || sources(r) != "p@1" {
			t.Fatalf("while the store is away: %+v", r)
		}
	}
	m.away = false
	// A newer build wrote what this one cannot read: its last good version stays.
	m.put("p", 2, []byte("apiVersion: tartarus.io/v9\n"))
	if err := e.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := ask(t, e, five); sources(r) != "p@1" || r.Revision != "2" {
		t.Fatalf("after a version that cannot be read: %+v", r)
	}
	// Where there was none, everything is denied.
	fresh := engine(t, m, "")
	if err := fresh.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := ask(t, fresh, Input{}); r.Verdict() != "deny" || r.Reasons[0].Code != "policy_unreadable" {
		t.Fatalf("a policy that was never readable: %+v", r)
	}
	m.put("p", 3, scoped("p", "global", "request.vcpu > 8", "deny"))
	if err := e.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := ask(t, e, five); r.Verdict() != "allow" {
		t.Fatalf("after a good version: %+v", r)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewEngine(EngineConfig{Store: m, File: file}); !tartarus.Is(err, tartarus.Corrupt) {
		t.Fatalf("a damaged file: %v", err)
	}
}

// What a tenant did is looked up only when somebody asks, once, and not to know it is a denial.
func TestHistoryIsLookedUpWhenAsked(t *testing.T) {
	m := &memory{}
	m.put("a", 1, scoped("a", "tenant\ntenant: acme", "history.strikes > 2", "quarantine"))
	m.put("b", 1, scoped("b", "tenant\ntenant: acme", "history.creates == 0", "deny"))
	m.put("c", 1, scoped("c", "global", "request.vcpu > 4", "deny"))
	e := engine(t, m, "")
	if err := e.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	asked := 0
	find := func() (HistoryInput, error) { asked++; return HistoryInput{Strikes: 3, Creates: 1}, nil }
	if r := ask(t, e, Input{FindHistory: find, Tenant: TenantInput{Name: "other"}}); asked != 0 || r.Verdict() != "allow" {
		t.Fatalf("asked %d times: %+v", asked, r)
	}
	if r := ask(t, e, Input{FindHistory: find, Tenant: TenantInput{Name: "acme"}}); asked != 1 || r.Verdict() != "quarantine" {
		t.Fatalf("asked %d times: %+v", asked, r)
	}
	fails := func() (HistoryInput, error) { return HistoryInput{}, errors.New("away") }
	if r := ask(t, e, Input{FindHistory: fails, Tenant: TenantInput{Name: "acme"}}); r.Verdict() != "deny" || r.Reasons[0].Code != "history_unknown" {
		t.Fatalf("when it is not known: %+v", r)
	}
}
