package sqlite

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// Registry implements hades.Registry.
type Registry struct{ db *DB }

// Registry returns the store's registry.
func (db *DB) Registry() *Registry { return &Registry{db} }

// PutSandbox implements hades.Registry.
func (r *Registry) PutSandbox(ctx context.Context, sb tartarus.Sandbox) (int64, error) {
	if err := hades.CheckSandbox(sb); err != nil {
		return 0, err
	}
	expect := sb.Revision
	sb.Revision++
	now, err := newFiled(sb)
	if err != nil {
		return 0, err
	}
	body, err := json.Marshal(sb)
	if err != nil {
		return 0, fmt.Errorf("encode sandbox %s: %w", sb.ID, err)
	}
	err = r.db.write(ctx, func(t *txn) error {
		if expect == 0 {
			return t.insertSandbox(now, sb.Revision, body)
		}
		return t.updateSandbox(now, sb.Revision, body)
	})
	if err != nil {
		return 0, fmt.Errorf("put sandbox %s: %w", sb.ID, err)
	}
	return sb.Revision, nil
}

// filed is what a sandbox is found by. All of it is comparable, so that an update sees at once whether an index must change.
type filed struct {
	id, tenant, phase, node, templateID, template string

	sort, ended int64
	labels      string // its metadata as JSON with sorted keys; empty for none
}

func newFiled(sb tartarus.Sandbox) (filed, error) {
	f := filed{
		id: sb.ID, tenant: sb.Tenant, phase: string(sb.Phase), node: sb.Node, templateID: sb.TemplateID, template: sb.Template,
		sort: nanos(hades.ListedAt(sb)), ended: nanos(sb.EndedAt),
	}
	if len(sb.Metadata) > 0 {
		b, err := json.Marshal(sb.Metadata)
		if err != nil {
			return f, fmt.Errorf("encode metadata of sandbox %s: %w", sb.ID, err)
		}
		f.labels = string(b)
	}
	return f, nil
}

const filedColumns = "id, tenant, phase, node, template_id, template, sort, ended, labels"

func (f filed) columns() []any {
	return []any{f.id, f.tenant, f.phase, f.node, f.templateID, f.template, f.sort, f.ended, f.labels}
}

func (t *txn) insertSandbox(f filed, revision int64, body []byte) error {
	fresh, err := t.addSandbox(f, revision, body)
	if err == nil && !fresh {
		err = tartarus.Errorf(tartarus.Conflict, "sandbox %s is there already", f.id)
	}
	return err
}

// addSandbox inserts a sandbox, unless it is there already.
func (t *txn) addSandbox(f filed, revision int64, body []byte) (fresh bool, err error) {
	n, err := t.exec("INSERT INTO sandboxes (revision, body, "+filedColumns+") VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
		append([]any{revision, body}, f.columns()...)...)
	if err != nil || n == 0 {
		return false, err
	}
	t.recent.keep(filedRow{t.conn.last, revision, f})
	return true, t.label(f)
}

// updateSandbox leaves the indices alone unless something changed that they hold: keeping them is most of the cost.
func (t *txn) updateSandbox(f filed, revision int64, body []byte) error {
	old, err := t.filedSandbox(f.id)
	if err != nil {
		return err
	}
	if old.revision != revision-1 {
		return tartarus.Errorf(tartarus.Conflict, "sandbox %s is at revision %d, not %d", f.id, old.revision, revision-1)
	}
	if f == old.filed {
		_, err = t.exec("UPDATE sandboxes SET revision = ?, body = ? WHERE n = ?", revision, body, old.n)
	} else {
		err = t.moveSandbox(old, f, revision, body)
	}
	if err != nil {
		return err
	}
	t.recent.keep(filedRow{old.n, revision, f})
	return nil
}

func (t *txn) moveSandbox(old filedRow, f filed, revision int64, body []byte) error {
	if err := t.unlabel(old.filed); err != nil {
		return err
	}
	// Not the id, which stays: SQLite would move the entry of every index that holds a column named here.
	args := append([]any{revision, body}, f.columns()[1:]...)
	if _, err := t.exec(`UPDATE sandboxes SET revision = ?, body = ?, tenant = ?, phase = ?, node = ?, template_id = ?, template = ?,
		sort = ?, ended = ?, labels = ? WHERE n = ?`, append(args, old.n)...); err != nil {
		return err
	}
	return t.label(f)
}

// filedRow is where a sandbox is filed, and its revision, which is 0 when it is not.
type filedRow struct {
	n, revision int64
	filed
}

// recent remembers where sandboxes were filed that changed lately: most change several times within seconds. It
// belongs to the committer, who is the only one to change them.
type recent struct{ rows map[string]filedRow }

func (r *recent) keep(row filedRow) {
	const most = 8192 // about 2 MB
	if len(r.rows) >= most || r.rows == nil {
		r.rows = make(map[string]filedRow, most)
	}
	r.rows[row.id] = row
}

// filedSandbox finds a sandbox's row.
func (t *txn) filedSandbox(id string) (filedRow, error) {
	if t.broken != nil {
		return filedRow{}, t.broken
	}
	if r, ok := t.recent.rows[id]; ok {
		return r, nil
	}
	row, found, err := t.conn.one("SELECT n, revision, "+filedColumns+" FROM sandboxes WHERE id = ?", id)
	if err != nil || !found {
		t.broken = err
		return filedRow{}, err
	}
	return filedRow{num(row[0]), num(row[1]), filed{
		id: str(row[2]), tenant: str(row[3]), phase: str(row[4]), node: str(row[5]), templateID: str(row[6]), template: str(row[7]),
		sort: num(row[8]), ended: num(row[9]), labels: str(row[10]),
	}}, nil
}

func (t *txn) label(f filed) error {
	return t.eachLabel(f, "INSERT OR IGNORE INTO labels (tenant, key, value, phase, sort, id) VALUES (?, ?, ?, ?, ?, ?)")
}

func (t *txn) unlabel(f filed) error {
	return t.eachLabel(f, "DELETE FROM labels WHERE tenant = ? AND key = ? AND value = ? AND phase = ? AND sort = ? AND id = ?")
}

func (t *txn) eachLabel(f filed, q string) error {
	if f.labels == "" {
		return nil
	}
	var labels map[string]string
	if err := json.Unmarshal([]byte(f.labels), &labels); err != nil {
		t.broken = tartarus.Errorf(tartarus.Corrupt, "decode metadata of sandbox %s: %w", f.id, err)
		return t.broken
	}
	for k, v := range labels {
		if _, err := t.exec(q, f.tenant, k, v, f.phase, f.sort, f.id); err != nil {
			return err
		}
	}
	return nil
}

// Sandbox implements hades.Registry.
func (r *Registry) Sandbox(ctx context.Context, tenant, id string) (tartarus.Sandbox, error) {
	var body []byte
	err := r.db.read(ctx, func(c *conn) error {
		row, found, err := c.one("SELECT body FROM sandboxes WHERE id = ?1 AND (tenant = ?2 OR ?2 = '*')", id, tenant)
		if err == nil && !found {
			err = tartarus.Errorf(tartarus.NotFound, "no sandbox %s", id)
		}
		if err == nil {
			body = blob(row[0])
		}
		return err
	})
	if err != nil {
		return tartarus.Sandbox{}, fmt.Errorf("read sandbox %s: %w", id, err)
	}
	return decodeSandbox(body)
}

func decodeSandbox(body []byte) (sb tartarus.Sandbox, err error) {
	if err := json.Unmarshal(body, &sb); err != nil {
		return tartarus.Sandbox{}, tartarus.Errorf(tartarus.Corrupt, "decode sandbox: %w", err)
	}
	return sb, nil
}

// RemoveSandbox implements hades.Registry.
func (r *Registry) RemoveSandbox(ctx context.Context, id string) error {
	err := r.db.write(ctx, func(t *txn) error {
		old, err := t.filedSandbox(id)
		if err != nil || old.revision == 0 {
			return err
		}
		if err = t.unlabel(old.filed); err != nil {
			return err
		}
		delete(t.recent.rows, id)
		_, err = t.exec("DELETE FROM sandboxes WHERE n = ?", old.n)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	return nil
}

// PutNode implements hades.Registry.
func (r *Registry) PutNode(ctx context.Context, n hades.Node, ttl time.Duration) error {
	if n.Name == "" || ttl <= 0 {
		return tartarus.Errorf(tartarus.Invalid, "node %q needs a name and a lease, not %s", n.Name, ttl)
	}
	n.LeaseEnds = time.Time{}
	body, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode node %s: %w", n.Name, err)
	}
	err = r.db.write(ctx, func(t *txn) error {
		_, err := t.exec(`INSERT INTO nodes (name, lease_ends, body) VALUES (?1, ?2, ?3)
			ON CONFLICT (name) DO UPDATE SET lease_ends = ?2, body = ?3`, n.Name, t.now.Add(ttl), body)
		return err
	})
	if err != nil {
		return fmt.Errorf("put node %s: %w", n.Name, err)
	}
	return nil
}

// Nodes implements hades.Registry.
func (r *Registry) Nodes(ctx context.Context) ([]hades.Node, error) {
	nodes := []hades.Node{}
	err := r.db.read(ctx, func(c *conn) error {
		return c.query(func(row []driver.Value) (bool, error) {
			var n hades.Node
			if err := json.Unmarshal(blob(row[1]), &n); err != nil {
				return false, tartarus.Errorf(tartarus.Corrupt, "decode node: %w", err)
			}
			n.LeaseEnds = moment(row[0])
			nodes = append(nodes, n)
			return true, nil
		}, "SELECT lease_ends, body FROM nodes ORDER BY name")
	})
	if err != nil {
		return nil, fmt.Errorf("read nodes: %w", err)
	}
	return nodes, nil
}

// RemoveNode implements hades.Registry.
func (r *Registry) RemoveNode(ctx context.Context, name string) error {
	err := r.db.write(ctx, func(t *txn) error {
		_, err := t.exec("DELETE FROM nodes WHERE name = ?", name)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove node %s: %w", name, err)
	}
	return nil
}
