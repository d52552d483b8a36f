package sqlite

import (
	"fmt"

	"github.com/tartarus-sandbox/tartarus"
)

// applicationID marks the file as ours ("TART"), so that no other database is taken for an empty store.
const applicationID = 0x54415254

// migrations lead from schema n to n+1. They are never edited once released, only added to.
//
// Times are nanoseconds since 1970, 0 for none. Listings walk (phase, sort, id) behind one leading column: whatever
// selects most, a page is then a merge of a few index ranges and never a sort.
var migrations = []string{`
CREATE TABLE sandboxes (
	n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
	tenant TEXT NOT NULL, phase TEXT NOT NULL, sort INTEGER NOT NULL, node TEXT NOT NULL, ended INTEGER NOT NULL,
	template_id TEXT NOT NULL, template TEXT NOT NULL, labels TEXT NOT NULL, revision INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX sandboxes_all ON sandboxes (phase, sort, id, ended);
CREATE INDEX sandboxes_tenant ON sandboxes (tenant, phase, sort, id, ended);
CREATE INDEX sandboxes_node ON sandboxes (node, phase, sort, id, ended);
CREATE TABLE labels (
	tenant TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, phase TEXT NOT NULL, sort INTEGER NOT NULL, id TEXT NOT NULL,
	PRIMARY KEY (tenant, key, value, phase, sort, id)) WITHOUT ROWID;
CREATE TABLE nodes (name TEXT PRIMARY KEY, lease_ends INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;

CREATE TABLE jobs (
	n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, key TEXT NOT NULL,
	digest TEXT NOT NULL, node TEXT NOT NULL, kind TEXT NOT NULL, max_attempts INTEGER NOT NULL, deadline INTEGER NOT NULL,
	enqueued_at INTEGER NOT NULL, state TEXT NOT NULL, attempt INTEGER NOT NULL, token INTEGER NOT NULL,
	ready_at INTEGER NOT NULL, lease_ends INTEGER NOT NULL, ended_at INTEGER NOT NULL, reason TEXT NOT NULL,
	result BLOB, payload BLOB);
CREATE UNIQUE INDEX jobs_key ON jobs (tenant, key) WHERE key <> '';
CREATE INDEX jobs_open ON jobs (n) WHERE ended_at = 0;
CREATE INDEX jobs_ended ON jobs (ended_at) WHERE ended_at > 0;
CREATE INDEX jobs_undone ON jobs (state, ended_at) WHERE state IN ('dead', 'cancelled');
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE policies (
	n INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, version INTEGER NOT NULL, author TEXT NOT NULL,
	created_at INTEGER NOT NULL, removed INTEGER NOT NULL, body BLOB,
	UNIQUE (name, version));
CREATE TABLE keys (
	id TEXT PRIMARY KEY, hash TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, created_at INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE journal (n INTEGER PRIMARY KEY, id TEXT NOT NULL, record BLOB);
`, `
CREATE TABLE named (
	kind TEXT NOT NULL, tenant TEXT NOT NULL, name TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, body BLOB NOT NULL,
	PRIMARY KEY (kind, tenant, name), UNIQUE (kind, tenant, id)) WITHOUT ROWID;
`, `
CREATE TABLE vault (name TEXT PRIMARY KEY, ends INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;
`, `
CREATE TABLE shelf (shelf TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (shelf, name)) WITHOUT ROWID;
`, `
INSERT INTO counters (name, value) VALUES ('redo', 0), ('redo_id', random());
`}

// redoSchema is the schema from which on there is a redo file beside the database.
const redoSchema = 5

// upToDate brings the database to what was acknowledged, which an older program may have written, and then its schema to this program's.
func upToDate(path string, c *conn) (r *redo, err error) {
	version, err := schema(path, c)
	if err == nil && version >= redoSchema {
		r, err = openRedo(path, c)
	}
	if err != nil {
		return nil, err
	}
	if err = migrate(path, c, version); err == nil && r == nil {
		return openRedo(path, c)
	}
	if err != nil && r != nil {
		r.f.Close()
	}
	return r, err
}

// schema tells the version of the database's schema, if this program knows it.
func schema(path string, c *conn) (int, error) {
	version, err := c.number("PRAGMA user_version")
	if err != nil {
		return 0, fmt.Errorf("open store %s: %w", path, err)
	}
	app, err := c.number("PRAGMA application_id")
	if err != nil {
		return 0, fmt.Errorf("open store %s: %w", path, err)
	}
	tables, err := c.number("SELECT count(*) FROM sqlite_schema")
	if err != nil {
		return 0, fmt.Errorf("open store %s: %w", path, err)
	}
	if app != applicationID && (version != 0 || app != 0 || tables != 0) {
		return 0, tartarus.Errorf(tartarus.Corrupt, "open store %s: it is the database of another program", path)
	}
	if int(version) > len(migrations) {
		return 0, tartarus.Errorf(tartarus.Unsupported, "open store %s: it has schema %d and this program knows up to %d: it was written by a newer version",
			path, version, len(migrations))
	}
	return int(version), nil
}

// migrate brings the schema up to date, one transaction per step.
func migrate(path string, c *conn, version int) error {
	for v := version; v < len(migrations); v++ {
		script := fmt.Sprintf("BEGIN IMMEDIATE; %s; PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT",
			migrations[v], applicationID, v+1)
		if err := c.script(script); err != nil {
			return fmt.Errorf("open store %s: migrate to schema %d: %w", path, v+1, err)
		}
	}
	return nil
}
