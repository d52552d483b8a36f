package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/tartarus-sandbox/tartarus"
)

// conn is one connection with its prepared statements, used by one goroutine at a time. It speaks to the driver
// directly: database/sql costs about as much again as a small statement itself.
type conn struct {
	c     driver.Conn
	stmts map[string]statement
	args  []driver.Value
	last  int64 // the row that exec inserted last
}

// statement is what the driver's statements can do without a context, which would cost a goroutine per call.
type statement interface {
	Exec(args []driver.Value) (driver.Result, error)
	Query(args []driver.Value) (driver.Rows, error)
	Close() error
}

// maxStatements bounds the statements a connection keeps: listings make theirs from the fields asked for.
const maxStatements = 256

func openConn(path string, cacheMB int, readOnly bool) (*conn, error) {
	name := url.URL{Path: path}
	dc, err := (&sqlite.Driver{}).Open("file:" + name.EscapedPath())
	if err != nil {
		return nil, storeError(err)
	}
	c := &conn{c: dc, stmts: map[string]statement{}}
	pragmas := fmt.Sprintf(`PRAGMA busy_timeout = 5000; PRAGMA temp_store = memory; PRAGMA cache_size = -%d;`, cacheMB*1024)
	if readOnly {
		pragmas += `PRAGMA query_only = 1;`
	} else {
		// A checkpoint each 4000 pages (16 MB) rather than 1000: a page changed often is then copied back less often.
		pragmas += `PRAGMA journal_mode = wal; PRAGMA synchronous = full; PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 67108864;`
	}
	if err := c.script(pragmas); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *conn) close() error {
	c.forget()
	return c.c.Close()
}

func (c *conn) forget() {
	for q, s := range c.stmts {
		s.Close()
		delete(c.stmts, q)
	}
}

func (c *conn) prepare(q string) (statement, error) {
	if s, ok := c.stmts[q]; ok {
		return s, nil
	}
	if len(c.stmts) >= maxStatements {
		c.forget()
	}
	ds, err := c.c.Prepare(q)
	if err != nil {
		return nil, storeError(err)
	}
	s := ds.(statement)
	c.stmts[q] = s
	return s, nil
}

// bind turns arguments into what the driver takes: text, blobs and 64-bit integers.
func (c *conn) bind(args []any) []driver.Value {
	c.args = c.args[:0]
	for _, a := range args {
		switch v := a.(type) {
		case int:
			c.args = append(c.args, int64(v))
		case bool:
			n := int64(0)
			if v {
				n = 1
			}
			c.args = append(c.args, n)
		case time.Time:
			c.args = append(c.args, nanos(v))
		default:
			c.args = append(c.args, v)
		}
	}
	return c.args
}

// exec runs a statement and returns how many rows it changed.
func (c *conn) exec(q string, args ...any) (int64, error) {
	s, err := c.prepare(q)
	if err != nil {
		return 0, err
	}
	res, err := s.Exec(c.bind(args))
	if err != nil {
		return 0, storeError(err)
	}
	if c.last, err = res.LastInsertId(); err != nil {
		return 0, storeError(err)
	}
	n, err := res.RowsAffected()
	return n, storeError(err)
}

// script runs statements that are used once.
func (c *conn) script(q string) error {
	s, err := c.c.Prepare(q)
	if err != nil {
		return storeError(err)
	}
	defer s.Close()
	_, err = s.(statement).Exec(nil)
	return storeError(err)
}

// query calls each with every row, which is valid during the call, until there are no more or each returns false.
func (c *conn) query(each func(row []driver.Value) (bool, error), q string, args ...any) error {
	s, err := c.prepare(q)
	if err != nil {
		return err
	}
	rows, err := s.Query(c.bind(args))
	if err != nil {
		return storeError(err)
	}
	return walk(rows, each)
}

// queryContext is query that ctx can interrupt, for reads that may walk far.
func (c *conn) queryContext(ctx context.Context, each func(row []driver.Value) (bool, error), q string, args ...any) error {
	s, err := c.prepare(q)
	if err != nil {
		return err
	}
	named := make([]driver.NamedValue, 0, len(args))
	for i, v := range c.bind(args) {
		named = append(named, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
	rows, err := s.(driver.StmtQueryContext).QueryContext(ctx, named)
	if err != nil {
		return storeError(err)
	}
	return walk(rows, each)
}

func walk(rows driver.Rows, each func(row []driver.Value) (bool, error)) error {
	row := make([]driver.Value, len(rows.Columns()))
	for {
		err := rows.Next(row)
		more := false
		if err == nil {
			more, err = each(row)
		} else if err == io.EOF {
			err = nil
		} else {
			err = storeError(err)
		}
		if !more || err != nil {
			if e := rows.Close(); err == nil {
				err = storeError(e)
			}
			return err
		}
	}
}

// one reads a single row; found is false when there is none.
func (c *conn) one(q string, args ...any) (row []driver.Value, found bool, err error) {
	err = c.query(func(r []driver.Value) (bool, error) {
		row, found = r, true
		return false, nil
	}, q, args...)
	return row, found, err
}

func (c *conn) number(q string, args ...any) (int64, error) {
	row, found, err := c.one(q, args...)
	if err != nil || !found {
		return 0, err
	}
	return num(row[0]), nil
}

func num(v driver.Value) int64 {
	n, _ := v.(int64)
	return n
}

func str(v driver.Value) string {
	s, _ := v.(string)
	return s
}

func blob(v driver.Value) []byte {
	b, _ := v.([]byte)
	return b
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func moment(v driver.Value) time.Time {
	if n := num(v); n != 0 {
		return time.Unix(0, n).UTC()
	}
	return time.Time{}
}

// storeError gives the driver's errors a Kind: Corrupt for damaged files, Unavailable for a disk that is full or
// fails, which later may work.
func storeError(err error) error {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return err
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return tartarus.Errorf(tartarus.Corrupt, "store is damaged: %w", err)
	case sqlite3.SQLITE_FULL:
		return tartarus.Errorf(tartarus.Unavailable, "store's disk is full: %w", err)
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM:
		return tartarus.Errorf(tartarus.Unavailable, "store does not work: %w", err)
	}
	return err
}
