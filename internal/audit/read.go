package audit

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Query chooses records. Zero fields do not restrict.
type Query struct {
	Since   time.Time
	Until   time.Time
	Tenant  string // of the object or of the actor
	Actor   string // id of a key
	Action  string // whole, or up to a dot: sandbox matches sandbox.create
	Object  string // id
	Verdict Verdict
	Request string
	Failed  bool // only denials and failures
}

func (q Query) matches(r Record) bool {
	switch {
	case !q.Since.IsZero() && r.Time.Before(q.Since), !q.Until.IsZero() && !r.Time.Before(q.Until):
	case q.Tenant != "" && r.Tenant != q.Tenant && r.Actor.Tenant != q.Tenant:
	case q.Actor != "" && r.Actor.ID != q.Actor:
	case q.Action != "" && r.Action != q.Action && !strings.HasPrefix(r.Action, q.Action+"."):
	case q.Object != "" && r.Object.ID != q.Object:
	case q.Verdict != "" && r.Verdict != q.Verdict:
	case q.Request != "" && r.Request != q.Request:
	case q.Failed && r.Error == "" && r.Verdict != Deny:
	default:
		return true
	}
	return false
}

// Position is how far each chain was read: its name and the last record that was seen.
type Position map[string]uint64

// String is a position as a token for clients.
func (p Position) String() string {
	parts := make([]string, 0, len(p))
	for chain, seq := range p {
		parts = append(parts, chain+":"+strconv.FormatUint(seq, 10))
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// ParsePosition reads a token back.
func ParsePosition(s string) (Position, error) {
	p := Position{}
	for part := range strings.SplitSeq(s, ",") {
		chain, digits, ok := strings.Cut(part, ":")
		seq, err := strconv.ParseUint(digits, 10, 64)
		if !ok || err != nil || chain == "" || len(p) > 1000 {
			return nil, tartarus.Errorf(tartarus.Invalid, "nextToken is none that this server gave out")
		}
		p[chain] = seq
	}
	return p, nil
}

func chains(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read audit folder: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// records reads a segment's whole records that match. What is damaged is passed over: verification tells of it, and a reader must not be
// blinded by one bad line. A segment that retention has removed meanwhile has none.
func records(path string, q Query, fn func(r Record, line []byte) error) (last Record, err error) {
	lines, _, err := content(path)
	if errors.Is(err, fs.ErrNotExist) {
		return last, nil
	}
	if err != nil {
		return last, err
	}
	for _, line := range lines {
		r, err := openLine(line)
		if err != nil {
			continue
		}
		last = r
		if q.matches(r) {
			if err := fn(r, line); err != nil {
				return last, err
			}
		}
	}
	return last, nil
}

// Latest returns the newest matching records of all chains, oldest first, and the position behind them.
func Latest(dir string, q Query, limit int) ([]Record, Position, error) {
	names, err := chains(dir)
	if err != nil {
		return nil, nil, err
	}
	out, at := []Record{}, Position{}
	for _, chain := range names {
		files, err := segments(filepath.Join(dir, chain))
		if err != nil {
			return nil, nil, err
		}
		var found []Record
		for i := len(files) - 1; i >= 0 && len(found) < limit; i-- {
			var part []Record
			last, err := records(files[i].path, q, func(r Record, _ []byte) error { part = append(part, r); return nil })
			if err != nil {
				return nil, nil, err
			}
			at[chain] = max(at[chain], last.Seq)
			found = append(part, found...)
			if !q.Since.IsZero() && last.Seq > 0 && last.Time.Before(q.Since) {
				break
			}
		}
		out = append(out, found[max(0, len(found)-limit):]...)
	}
	sortRecords(out)
	return out[max(0, len(out)-limit):], at, nil
}

// After returns up to limit matching records behind a position, oldest first in each chain, and the position behind those. Chains that the position does not
// name are read from their start.
func After(dir string, q Query, from Position, limit int) ([]Record, Position, error) {
	names, err := chains(dir)
	if err != nil {
		return nil, nil, err
	}
	out, at := []Record{}, Position{}
	for _, chain := range names {
		at[chain] = from[chain]
		err := walkChain(filepath.Join(dir, chain), q, from[chain], func(r Record, _ []byte) error {
			if len(out) >= limit {
				return errEnough
			}
			out = append(out, r)
			at[chain] = r.Seq
			return nil
		}, func(seen uint64) { at[chain] = max(at[chain], seen) })
		if err != nil && !errors.Is(err, errEnough) {
			return nil, nil, err
		}
	}
	sortRecords(out)
	return out, at, nil
}

var errEnough = errors.New("enough")

// Walk calls fn with all matching records and their lines, chain by chain.
func Walk(dir string, q Query, fn func(r Record, line []byte) error) error {
	names, err := chains(dir)
	if err != nil {
		return err
	}
	for _, chain := range names {
		if err := walkChain(filepath.Join(dir, chain), q, 0, fn, func(uint64) {}); err != nil {
			return err
		}
	}
	return nil
}

// walkChain reads a chain behind a record. done is told how far a segment went that was read to its end.
func walkChain(dir string, q Query, after uint64, fn func(Record, []byte) error, done func(uint64)) error {
	files, err := segments(dir)
	if err != nil {
		return err
	}
	for i, f := range files {
		if i+1 < len(files) && files[i+1].first <= after+1 {
			continue
		}
		last, err := records(f.path, q, func(r Record, line []byte) error {
			if r.Seq <= after {
				return nil
			}
			return fn(r, line)
		})
		if err != nil {
			return err
		}
		done(last.Seq)
	}
	return nil
}

func sortRecords(rs []Record) {
	slices.SortStableFunc(rs, func(a, b Record) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Chain, b.Chain), cmp.Compare(a.Seq, b.Seq))
	})
}
