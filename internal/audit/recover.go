package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// The actions that the log records about itself.
const (
	ActionBegun     = "audit.begun"     // a chain began
	ActionRecovered = "audit.recovered" // a record that nobody was told of was cut off after a crash
	ActionGap       = "audit.gap"       // records are missing that the shared store knows of
)

// recover finds the end of the chain, and returns what is to be recorded about it.
func (l *Log) recover() ([]Record, error) {
	if err := l.newest(); err != nil {
		return nil, err
	}
	if err := l.take(); err != nil {
		return nil, err
	}
	end, err := l.find()
	if err != nil {
		return nil, err
	}
	known := Head{}
	if l.cfg.Known != nil {
		if known, err = l.cfg.Known(l.cfg.Chain); err != nil {
			return nil, err
		}
	}
	if known.Seq > end.head.Seq || known.Seq > 0 && end.hashAt(known.Seq) != "" && end.hashAt(known.Seq) != known.Hash {
		return l.anew(known, end)
	}
	self := Record{Stage: Attempt, Actor: Actor{Kind: BySystem}, Object: Object{Kind: "audit", ID: l.cfg.Chain}, Verdict: Allow}
	l.head.Store(&end.head)
	if end.head.Seq == 0 && end.rest == 0 {
		self.Action = ActionBegun
		return []Record{self}, l.begin(1)
	}
	if l.file, err = os.OpenFile(end.last.path, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	l.path, l.at, l.began = end.last.path, end.at, l.cfg.Now()
	if err := l.keepRest(end); err != nil {
		return nil, err
	}
	if err := l.cut(); err != nil {
		return nil, err
	}
	if end.ended { // and may be archived
		if err := l.next(); err != nil {
			return nil, err
		}
	}
	if end.rest == 0 {
		return nil, nil
	}
	self.Action = ActionRecovered
	self.Detail = map[string]string{"bytes": strconv.Itoa(end.rest), "after": strconv.FormatUint(end.head.Seq, 10)}
	l.cfg.Log.Warn("audit log recovered: a record that was not yet acknowledged is cut off", "chain", l.cfg.Chain, "after", end.head.Seq, "bytes", end.rest)
	return []Record{self}, nil
}

// take locks the chain's folder against another writer.
func (l *Log) take() error {
	dir := filepath.Join(l.cfg.Dir, l.cfg.Chain)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := syncDir(l.cfg.Dir); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(tartarus.Errorf(tartarus.Conflict, "chain %s is written by another process", l.cfg.Chain), f.Close())
	}
	if l.lock != nil {
		_ = l.lock.Close()
	}
	l.lock = f
	return nil
}

// tail is the end of a chain as it is on disk.
type tail struct {
	head   Head
	last   *segment
	at     int64 // where the last good record ends
	rest   int   // bytes behind it
	hashes map[uint64]string
	ended  bool // a segment after it was begun already
}

func (t tail) hashAt(seq uint64) string { return t.hashes[seq] }

// find reads the last segment up to the first thing that is no record in its place. Only the last can have been hurt by a crash.
func (l *Log) find() (t tail, err error) {
	t.head = Head{Chain: l.cfg.Chain, Hash: zeroHash}
	all, err := segments(filepath.Join(l.cfg.Dir, l.cfg.Chain))
	if err != nil {
		return t, err
	}
	for len(all) > 0 {
		t.last = &all[len(all)-1]
		if err := l.readTail(&t); err != nil {
			return t, err
		}
		if t.head.Seq > 0 || len(all) == 1 {
			return t, nil
		}
		// Nothing good in it: it was begun and not written to. The chain ends in the one before.
		if t.rest > 0 {
			err = os.Rename(t.last.path, t.last.path+".damaged")
		} else {
			err = os.Remove(t.last.path)
		}
		if err != nil {
			return t, err
		}
		all, t.ended = all[:len(all)-1], true
	}
	return t, nil
}

// readTail reads a segment as the last one.
func (l *Log) readTail(t *tail) error {
	lines, rest, err := content(t.last.path)
	if err != nil {
		return err
	}
	total := len(rest)
	for _, line := range lines {
		total += len(line) + 1
	}
	t.at, t.hashes = 0, make(map[uint64]string, len(lines))
	for i, line := range lines {
		r, err := openLine(line)
		if err != nil || r.Chain != l.cfg.Chain || (i == 0 && r.Seq != t.last.first) || (i > 0 && (r.Seq != t.head.Seq+1 || r.Prev != t.head.Hash)) {
			break
		}
		t.head = Head{Chain: r.Chain, Seq: r.Seq, Hash: r.Hash, Time: r.Time}
		t.hashes[r.Seq] = r.Hash
		t.at += int64(len(line)) + 1
	}
	t.rest += total - int(t.at)
	return nil
}

// keepRest copies what is about to be cut off, so that it can be looked at if it was no crash that left it.
func (l *Log) keepRest(end tail) error {
	if end.rest == 0 {
		return nil
	}
	raw, err := os.ReadFile(end.last.path)
	if err != nil || int64(len(raw)) <= end.at {
		return err
	}
	raw = bytes.TrimRight(raw[end.at:], "\x00")
	return os.WriteFile(fmt.Sprintf("%s.cut-after-%d", end.last.path, end.head.Seq), raw, 0o600)
}

// newest finds the generation of the chain that is written now.
func (l *Log) newest() error {
	entries, err := os.ReadDir(l.cfg.Dir)
	if err != nil {
		return err
	}
	latest := 1
	for _, e := range entries {
		if base, n, ok := cutGeneration(e.Name()); ok && base == l.cfg.Chain && n > latest {
			latest = n
		}
	}
	if latest > 1 {
		l.cfg.Chain = generation(l.cfg.Chain, latest)
	}
	return nil
}

// anew begins another chain, because this one lacks what the shared store has seen of it. The damaged one stays as evidence.
func (l *Log) anew(known Head, end tail) ([]Record, error) {
	old := l.cfg.Chain
	base, n, ok := cutGeneration(old)
	if !ok {
		base, n = old, 1
	}
	l.cfg.Chain = generation(base, n+1)
	if err := l.take(); err != nil {
		return nil, err
	}
	l.cfg.Log.Error("audit records are missing: a new chain is begun", "chain", old, "has", end.head.Seq, "known", known.Seq, "new", l.cfg.Chain)
	l.head.Store(&Head{Chain: l.cfg.Chain, Hash: zeroHash})
	if err := l.begin(1); err != nil {
		return nil, err
	}
	return []Record{{
		Action: ActionGap, Stage: Attempt, Actor: Actor{Kind: BySystem}, Object: Object{Kind: "audit", ID: old}, Verdict: Allow,
		Reasons: []Reason{{Code: "records_missing", Message: fmt.Sprintf("chain %s ends at record %d, but record %d was signed", old, end.head.Seq, known.Seq)}},
	}}, nil
}

// A chain that was begun anew has a number behind its name: node, node~2, node~3.
func generation(base string, n int) string { return base + "~" + strconv.Itoa(n) }

func cutGeneration(chain string) (base string, n int, ok bool) {
	base, digits, ok := strings.Cut(chain, "~")
	n, err := strconv.Atoi(digits)
	return base, n, ok && err == nil && n >= 2
}
