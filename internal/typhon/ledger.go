package typhon

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Values keeps small values by name.
type Values interface {
	// Set stores a value under a name whatever it had, for ttl, or for good when ttl is 0.
	Set(ctx context.Context, name string, value []byte, ttl time.Duration) error
	// List returns all values whose names begin with prefix, by name.
	List(ctx context.Context, prefix string) (map[string][]byte, error)
}

// Rule is how many strikes put a sandbox into quarantine. Zero numbers never do.
type Rule struct {
	Window   time.Duration // how long a strike counts
	Sandbox  int           // strikes of one sandbox
	Template int           // of all sandboxes of one template of one tenant
	Tenant   int           // of all sandboxes of one tenant
}

// DefaultRule looks at a minute's misbehaviour, and stops three minutes' of it.
func DefaultRule() Rule { return Rule{Window: 15 * time.Minute, Sandbox: 3, Template: 10, Tenant: 20} }

// Counts are strikes that still count.
type Counts struct {
	Sandbox  int `json:"sandbox"`
	Template int `json:"template"`
	Tenant   int `json:"tenant"`
}

// Ledger counts strikes for the whole fleet. All methods may be called concurrently, by several replicas.
type Ledger struct {
	values Values
	rule   Rule
}

// NewLedger counts in values.
func NewLedger(v Values, r Rule) *Ledger { return &Ledger{values: v, rule: r} }

const prefix = "strike/"

// name is where a strike is kept: a kind of one sandbox counts once in a minute, however often it is told.
func name(s Strike) string {
	return fmt.Sprintf("%s%s/%s/%s/%s/%d", prefix, s.Tenant, s.TemplateID, s.Sandbox, s.Kind, s.At.Unix()/60)
}

// Strike enters what a sandbox did, and says why it has to go into quarantine; empty when it need not. The same strike told twice counts once.
func (l *Ledger) Strike(ctx context.Context, s Strike) (quarantine string, err error) {
	for _, part := range []string{s.Tenant, s.TemplateID, s.Sandbox, string(s.Kind)} {
		if part == "" || strings.Contains(part, "/") {
			return "", tartarus.Errorf(tartarus.Invalid, "a strike with %.60q for a name", part)
		}
	}
	body, err := json.Marshal(s)
	if err != nil {
		return "", fmt.Errorf("encode strike: %w", err)
	}
	if err := l.values.Set(ctx, name(s), body, l.rule.Window); err != nil {
		return "", err
	}
	n, err := l.Count(ctx, s.Tenant, s.TemplateID, s.Sandbox)
	if err != nil {
		return "", err
	}
	for _, c := range []struct {
		n, limit int
		what     string
	}{{n.Sandbox, l.rule.Sandbox, "sandbox"}, {n.Template, l.rule.Template, "template"}, {n.Tenant, l.rule.Tenant, "tenant"}} {
		if c.limit > 0 && c.n >= c.limit {
			return fmt.Sprintf("%s: %s; strike %d of this %s within %s", s.Kind, s.Detail, c.n, c.what, l.rule.Window), nil
		}
	}
	return "", nil
}

// Count counts the strikes of a tenant, of one of its templates, and of a sandbox; empty names count nothing.
func (l *Ledger) Count(ctx context.Context, tenant, template, sandbox string) (Counts, error) {
	all, err := l.values.List(ctx, prefix+tenant+"/")
	if err != nil {
		return Counts{}, err
	}
	n := Counts{Tenant: len(all)}
	for key := range all {
		parts := strings.Split(strings.TrimPrefix(key, prefix), "/") // tenant, template, sandbox, kind, minute
		if len(parts) != 5 {
			return n, tartarus.Errorf(tartarus.Corrupt, "read strike %.80q: it has no five parts", key)
		}
		if parts[1] == template {
			n.Template++
		}
		if parts[2] == sandbox {
			n.Sandbox++
		}
	}
	return n, nil
}
