package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// ListSandboxes implements hades.Registry. The page is a merge of index ranges, one per phase, behind the column that
// selects most: a metadata pair, the node, the tenant. What the index does not hold is tested row by row.
func (r *Registry) ListSandboxes(ctx context.Context, q hades.Query) (hades.Page, error) {
	q, err := q.Checked()
	if err != nil {
		return hades.Page{}, err
	}
	sql, args := listing(q)
	page := hades.Page{Sandboxes: []tartarus.Sandbox{}}
	var bodies [][]byte
	err = r.db.read(ctx, func(c *conn) error {
		return c.queryContext(ctx, func(row []driver.Value) (bool, error) {
			bodies = append(bodies, blob(row[0]))
			return true, nil
		}, sql, args...)
	})
	if err != nil {
		return hades.Page{}, fmt.Errorf("list sandboxes: %w", err)
	}
	more := len(bodies) > q.Limit
	for _, body := range bodies[:min(len(bodies), q.Limit)] {
		sb, err := decodeSandbox(body)
		if err != nil {
			return hades.Page{}, fmt.Errorf("list sandboxes: %w", err)
		}
		page.Sandboxes = append(page.Sandboxes, sb)
	}
	if more {
		last := page.Sandboxes[q.Limit-1]
		page.Next = hades.Cursor{StartedAt: hades.ListedAt(last), ID: last.ID}
	}
	return page, nil
}

// statementText gathers a statement and its arguments, which are numbered so that each is bound once.
type statementText struct {
	where []string
	args  []any
}

func (s *statementText) arg(v any) string {
	s.args = append(s.args, v)
	return fmt.Sprintf("?%d", len(s.args))
}

func (s *statementText) and(format string, args ...any) {
	refs := make([]any, len(args))
	for i, a := range args {
		refs[i] = s.arg(a)
	}
	s.where = append(s.where, fmt.Sprintf(format, refs...))
}

// listing writes the statement for a page and one row more, which tells whether another page follows.
func listing(q hades.Query) (string, []any) {
	s := &statementText{}
	from, order := s.source(q)
	if q.Template != "" {
		t := s.arg(q.Template)
		s.where = append(s.where, fmt.Sprintf("(s.template_id = %s OR s.template = %s)", t, t))
	}
	if !q.EndedBefore.IsZero() {
		s.and("s.ended > 0 AND s.ended < %s", q.EndedBefore)
		s.and(order+".sort < %s", q.EndedBefore) // nothing ends before it starts: this spares the index's newer part
	}
	if !q.StartedAfter.IsZero() {
		s.and(order+".sort > %s", q.StartedAfter)
	}
	direction := "DESC"
	if q.Ascending {
		direction = "ASC"
	}
	if q.After != (hades.Cursor{}) {
		than := "<"
		if q.Ascending {
			than = ">"
		}
		s.and("("+order+".sort, "+order+".id) "+than+" (%s, %s)", q.After.StartedAt, q.After.ID)
	}
	phases := slices.Clone(q.Phases)
	if len(phases) == 0 {
		phases = slices.Clone(tartarus.Phases)
	}
	slices.Sort(phases)
	rest := strings.Join(s.where, " AND ")
	if rest != "" {
		rest = " AND " + rest
	}
	var parts []string
	for _, p := range slices.Compact(phases) {
		parts = append(parts, fmt.Sprintf("SELECT s.body, %s.sort AS sort, %s.id AS id FROM %s WHERE %s.phase = '%s'%s", order, order, from, order, p, rest))
	}
	return fmt.Sprintf("%s ORDER BY sort %s, id %s LIMIT %s", strings.Join(parts, " UNION ALL "), direction, direction, s.arg(q.Limit+1)), s.args
}

// source chooses what a listing walks along and adds the conditions that this leaves to test. order is the
// table whose (phase, sort, id) gives the order.
func (s *statementText) source(q hades.Query) (from, order string) {
	tenant := q.Tenant != hades.AnyTenant
	labels := sortedPairs(q.Metadata)
	switch {
	case tenant && len(labels) > 0:
		from, order = "labels l CROSS JOIN sandboxes s ON s.id = l.id", "l"
		s.and("l.tenant = %s AND l.key = %s AND l.value = %s", q.Tenant, labels[0][0], labels[0][1])
		labels = labels[1:]
		if q.Node != "" {
			s.and("s.node = %s", q.Node)
		}
	case q.Node != "":
		from, order = "sandboxes s INDEXED BY sandboxes_node", "s"
		s.and("s.node = %s", q.Node)
		if tenant {
			s.and("s.tenant = %s", q.Tenant)
		}
	case tenant:
		from, order = "sandboxes s INDEXED BY sandboxes_tenant", "s"
		s.and("s.tenant = %s", q.Tenant)
	default:
		from, order = "sandboxes s INDEXED BY sandboxes_all", "s"
	}
	for _, l := range labels {
		s.and("EXISTS (SELECT 1 FROM labels m WHERE m.tenant = s.tenant AND m.key = %s AND m.value = %s AND m.phase = s.phase AND m.sort = s.sort AND m.id = s.id)", l[0], l[1])
	}
	return from, order
}

func sortedPairs(m map[string]string) [][2]string {
	pairs := make([][2]string, 0, len(m))
	for k, v := range m {
		pairs = append(pairs, [2]string{k, v})
	}
	slices.SortFunc(pairs, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return pairs
}
