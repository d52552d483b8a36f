package hades

import (
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// DefaultLimit and MaxLimit are how many sandboxes a page has.
const (
	DefaultLimit = 100
	MaxLimit     = 1000
)

// CheckSandbox reports what keeps a registry from taking sb.
func CheckSandbox(sb tartarus.Sandbox) error {
	switch {
	case sb.ID == "" || sb.Tenant == "" || sb.Tenant == AnyTenant:
		return tartarus.Errorf(tartarus.Invalid, "sandbox %q needs an id and a tenant", sb.ID)
	case !slices.Contains(tartarus.Phases, sb.Phase):
		return tartarus.Errorf(tartarus.Invalid, "sandbox %s has no known phase: %q", sb.ID, sb.Phase)
	case sb.Revision < 0:
		return tartarus.Errorf(tartarus.Invalid, "sandbox %s has revision %d", sb.ID, sb.Revision)
	}
	return nil
}

// ListedAt is the time by which sb stands in listings.
func ListedAt(sb tartarus.Sandbox) time.Time {
	if sb.StartedAt.IsZero() {
		return sb.CreatedAt
	}
	return sb.StartedAt
}

// Checked returns q with its defaults filled in, or what is wrong with it.
func (q Query) Checked() (Query, error) {
	if q.Tenant == "" {
		return q, tartarus.Errorf(tartarus.Invalid, "list sandboxes: tenant is missing")
	}
	if q.Limit == 0 {
		q.Limit = DefaultLimit
	}
	if q.Limit < 1 || q.Limit > MaxLimit {
		return q, tartarus.Errorf(tartarus.Invalid, "list sandboxes: limit must be 1 to %d, not %d", MaxLimit, q.Limit)
	}
	for _, p := range q.Phases {
		if !slices.Contains(tartarus.Phases, p) {
			return q, tartarus.Errorf(tartarus.Invalid, "list sandboxes: no phase %q", p)
		}
	}
	return q, nil
}

// Selects reports whether q wants sb, wherever its page starts.
func (q Query) Selects(sb tartarus.Sandbox) bool {
	for k, v := range q.Metadata {
		if have, ok := sb.Metadata[k]; !ok || have != v {
			return false
		}
	}
	return (q.Tenant == AnyTenant || q.Tenant == sb.Tenant) &&
		(len(q.Phases) == 0 || slices.Contains(q.Phases, sb.Phase)) &&
		(q.Node == "" || q.Node == sb.Node) &&
		(q.Template == "" || q.Template == sb.TemplateID || q.Template == sb.Template) &&
		(q.StartedAfter.IsZero() || ListedAt(sb).After(q.StartedAfter)) &&
		(q.EndedBefore.IsZero() || !sb.EndedAt.IsZero() && sb.EndedAt.Before(q.EndedBefore) && ListedAt(sb).Before(q.EndedBefore))
}
