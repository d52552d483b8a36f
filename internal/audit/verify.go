package audit

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/tartarus-sandbox/tartarus/internal/shelf"
)

// What can be wrong with a record.
const (
	Changed   = "changed"
	Removed   = "removed"
	Inserted  = "inserted"
	Reordered = "reordered"
	Replayed  = "replayed"
	Truncated = "truncated" // the end is missing
	Rewritten = "rewritten" // whole in itself, but not what was signed
	Untrusted = "untrusted" // a signature does not count
	Forked    = "forked"    // the folder and the store were signed differently
)

// Finding is the first thing that is wrong with a chain, or with the checkpoints.
type Finding struct {
	Chain   string `json:"chain,omitempty"` // empty: the checkpoints
	Seq     uint64 `json:"seq"`             // first record, or checkpoint, that is not what it was
	What    string `json:"what"`
	Message string `json:"message"`
}

// ChainReport is what was seen of one chain.
type ChainReport struct {
	Chain    string `json:"chain"`
	From     uint64 `json:"from"`
	To       uint64 `json:"to"`
	Records  uint64 `json:"records"`
	Unsigned uint64 `json:"unsigned"` // records at the end that no signature covers yet
}

// Report is the result of a verification. It holds when there are no findings.
type Report struct {
	OK          bool          `json:"ok"`
	Records     uint64        `json:"records"`
	Chains      []ChainReport `json:"chains"`
	Elsewhere   []string      `json:"elsewhere"` // chains of other replicas, whose records are not in this folder
	Checkpoints uint64        `json:"checkpoints"`
	Root        string        `json:"root,omitempty"` // id of the key that signed the first checkpoint: compare it with what was noted
	Keys        []string      `json:"keys"`           // ids of the keys that count now
	Findings    []Finding     `json:"findings"`
}

// Verification says what is verified.
type Verification struct {
	Dir   string
	Store shelf.Store // nil verifies the folder by itself
	Chain string      // one that must be there; empty for whatever is
	Root  string      // id of the first signing key, where it is known from elsewhere
}

// Verify holds all chains of a folder against themselves, against the checkpoints and against the signed heads.
func Verify(ctx context.Context, v Verification) (Report, error) {
	r := Report{Chains: []ChainReport{}, Findings: []Finding{}, Keys: []string{}, Elsewhere: []string{}}
	// What is signed is read first: a chain that grows meanwhile is not taken for one that is too long.
	checkpoints, err := v.checkpoints(ctx, &r)
	if err != nil {
		return r, err
	}
	signedTo, err := heads(ctx, v.Dir, v.Store)
	if err != nil {
		return r, err
	}
	marks := collectMarks(checkpoints, signedTo, &r)
	entries, err := os.ReadDir(v.Dir)
	if err != nil {
		return r, fmt.Errorf("read audit folder: %w", err)
	}
	names := map[string]bool{}
	for _, e := range entries {
		if e.IsDir() {
			names[e.Name()] = true
		}
	}
	if v.Chain != "" {
		names[v.Chain] = true
	}
	for _, chain := range slices.Sorted(maps.Keys(marks)) {
		switch {
		case names[chain]:
		case len(names) == 0:
			names[chain] = true // nothing is here, so that all of it is missing
		default:
			r.Elsewhere = append(r.Elsewhere, chain)
		}
	}
	for _, chain := range slices.Sorted(maps.Keys(names)) {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		report, finding, err := verifyChain(filepath.Join(v.Dir, chain), chain, marks[chain])
		if err != nil {
			return r, err
		}
		r.Chains, r.Records = append(r.Chains, report), r.Records+report.Records
		if finding != nil {
			r.Findings = append(r.Findings, *finding)
		}
	}
	r.OK = len(r.Findings) == 0
	return r, nil
}

// Verify holds this replica's folder against the store, while nothing is signed or removed.
func (s *Sealer) Verify(ctx context.Context, root string) (Report, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Verify(ctx, Verification{Dir: s.dir, Store: s.cfg.Store, Chain: s.cfg.Log.Chain(), Root: root})
}

// checkpoints reads and checks the signed checkpoints. Those before the first bad one count.
func (v Verification) checkpoints(ctx context.Context, r *Report) ([]Checkpoint, error) {
	found, err := loadCheckpoints(v.Dir)
	if err != nil {
		r.Findings = append(r.Findings, Finding{Seq: uint64(len(found)) + 1, What: Changed, Message: err.Error()})
	}
	if v.Store != nil {
		if found, err = v.withStore(ctx, found, r); err != nil {
			return nil, err
		}
	}
	var prev *Checkpoint
	for i := range found {
		err := found[i].follows(prev)
		if i == 0 && err == nil {
			r.Root = found[0].Signer
			if found[0].N != 1 {
				err = fmt.Errorf("the first checkpoint is number %d", found[0].N)
			} else if v.Root != "" && v.Root != r.Root {
				err = fmt.Errorf("the first checkpoint is signed by key %s, not by %s", r.Root, v.Root)
			}
		}
		if err != nil {
			r.Findings = append(r.Findings, Finding{Seq: uint64(i) + 1, What: Untrusted, Message: err.Error()})
			return found[:i], nil
		}
		prev = &found[i]
		r.Checkpoints++
	}
	if prev != nil {
		for _, k := range prev.Trust {
			r.Keys = append(r.Keys, k.ID)
		}
	}
	return found, nil
}

// withStore joins the folder's checkpoints with the store's.
func (v Verification) withStore(ctx context.Context, found []Checkpoint, r *Report) ([]Checkpoint, error) {
	stored, err := storedCheckpoints(ctx, v.Store, 1)
	if err != nil {
		return nil, err
	}
	for i := range min(len(found), len(stored)) {
		if !bytes.Equal(found[i].line, stored[i].line) {
			r.Findings = append(r.Findings, Finding{Seq: uint64(i) + 1, What: Forked, Message: fmt.Sprintf("checkpoint %d of the folder is not the store's", i+1)})
			break
		}
	}
	if len(stored) > len(found) {
		return stored, nil
	}
	return found, nil
}

// marks are what is signed about a chain.
type marks struct {
	from  uint64
	prev  string
	at    map[uint64]string // hash by sequence number
	order []uint64          // sorted
}

func collectMarks(checkpoints []Checkpoint, signedTo map[string]signedHead, r *Report) map[string]*marks {
	out := map[string]*marks{}
	mark := func(s Span) {
		m := out[s.Chain]
		if m == nil {
			m = &marks{at: map[uint64]string{}}
			out[s.Chain] = m
		}
		if s.Seq > 0 {
			m.at[s.Seq] = s.Hash
		}
		if s.From > m.from {
			m.from, m.prev = s.From, s.Prev
		}
	}
	for _, c := range checkpoints {
		for _, s := range c.Chains {
			mark(s)
		}
	}
	var trust []PublicKey
	if len(checkpoints) > 0 {
		trust = checkpoints[len(checkpoints)-1].Trust
	}
	for _, chain := range slices.Sorted(maps.Keys(signedTo)) {
		h := signedTo[chain]
		// Before the first checkpoint there is nobody to say whose signature counts.
		if k, ok := trusted(trust, h.Signer.ID); len(checkpoints) > 0 && (!ok || k != h.Signer) {
			if out[chain] == nil || h.Seq > slices.Max(slices.Collect(maps.Keys(out[chain].at))) {
				r.Findings = append(r.Findings, Finding{Chain: chain, Seq: h.Seq, What: Untrusted, Message: fmt.Sprintf("the head of chain %s is signed by key %s, which no checkpoint trusts", chain, h.Signer.ID)})
			}
			continue
		}
		mark(h.Span)
	}
	for _, m := range out {
		m.order = slices.Sorted(maps.Keys(m.at))
	}
	return out
}

// walk is the state of a verification on its way along a chain.
type walk struct {
	chain string
	marks *marks
	seq   uint64 // of the last good record
	hash  string
	last  Record
	seen  map[string]uint64 // hashes of this segment and the one before
}

// verifyChain walks a chain to its end, or to the first record that is wrong.
func verifyChain(dir, chain string, m *marks) (ChainReport, *Finding, error) {
	if m == nil {
		m = &marks{}
	}
	report := ChainReport{Chain: chain}
	files, err := segments(dir)
	if err != nil {
		return report, nil, err
	}
	w := &walk{chain: chain, marks: m, hash: zeroHash, seen: map[string]uint64{}}
	for i, f := range files {
		lines, rest, err := content(f.path)
		if err != nil {
			return report, nil, err
		}
		if i == 0 && len(lines) > 0 {
			if f := w.begin(lines[0]); f != nil {
				return report, f, nil
			}
			report.From = w.seq + 1
		}
		older := w.seen
		w.seen = make(map[string]uint64, len(lines))
		for j := range lines {
			if f := w.step(lines, j, older); f != nil {
				report.To = w.seq
				return report, f, nil
			}
			report.Records++
		}
		if len(rest) > 0 && i < len(files)-1 {
			return report, w.finding(w.seq+1, Changed, "segment %s ends in the middle of a record", filepath.Base(f.path)), nil
		}
	}
	report.To = w.seq
	top := uint64(0)
	if len(m.order) > 0 {
		top = m.order[len(m.order)-1]
	}
	if top > w.seq {
		return report, w.finding(w.seq+1, Truncated, "the chain ends at record %d, but record %d was signed", w.seq, top), nil
	}
	report.Unsigned = w.seq - top
	return report, nil, nil
}

func (w *walk) finding(seq uint64, what, format string, args ...any) *Finding {
	return &Finding{Chain: w.chain, Seq: seq, What: what, Message: fmt.Sprintf("record %d of chain %s: ", seq, w.chain) + fmt.Sprintf(format, args...)}
}

// begin takes the first record that is there for the start of the chain, where it may be.
func (w *walk) begin(line []byte) *Finding {
	from, prev := uint64(1), zeroHash
	if w.marks.from > 1 {
		from, prev = w.marks.from, w.marks.prev
	}
	first, err := openLine(line)
	switch {
	case err != nil:
		w.seq, w.hash = from-1, prev // step names it
	case first.Seq > from:
		return w.finding(from, Removed, "the chain begins at record %d", first.Seq)
	case first.Seq < from:
		// Retention has not come round yet; nothing is known of the record before.
		w.seq, w.hash = first.Seq-1, first.Prev
		if first.Seq == 1 {
			w.hash = zeroHash
		}
	default:
		w.seq, w.hash = from-1, prev
	}
	return nil
}

// step checks the j-th line of a segment.
func (w *walk) step(lines [][]byte, j int, older map[string]uint64) *Finding {
	next := w.seq + 1
	r, err := openLine(lines[j])
	switch {
	case err != nil:
		if j+1 < len(lines) && w.fits(lines[j+1]) {
			return w.finding(next, Inserted, "something stands before it that is no record: %v", err)
		}
		return w.finding(next, Changed, "%v", err)
	case r.Chain != w.chain:
		return w.finding(next, Inserted, "in its place stands a record of chain %s", r.Chain)
	case r.Seq == next && r.Prev == w.hash:
		if f := w.check(r); f != nil {
			return f
		}
		w.seq, w.hash, w.last = r.Seq, r.Hash, r
		w.seen[r.Hash] = r.Seq
		return nil
	}
	return w.misplaced(lines, j, r, older)
}

// misplaced says what happened to a whole record that is not the one that should follow.
func (w *walk) misplaced(lines [][]byte, j int, r Record, older map[string]uint64) *Finding {
	next := w.seq + 1
	_, before := older[r.Hash]
	if _, here := w.seen[r.Hash]; here || before {
		return w.finding(next, Replayed, "in its place stands record %d once more", r.Seq)
	}
	successor, parent := false, false
	for _, line := range lines[j+1:] {
		if w.fits(line) {
			successor = true
		}
		if o, err := openLine(line); err == nil && o.Hash == r.Prev {
			parent = true
		}
	}
	switch {
	case successor && (parent || r.Seq > next):
		return w.finding(next, Reordered, "record %d stands before it", r.Seq)
	case successor:
		return w.finding(next, Inserted, "a record %d stands before it that was not there", r.Seq)
	case r.Seq == w.seq && r.Prev == w.last.Prev:
		return w.finding(w.seq, Inserted, "two records stand in its place")
	case r.Seq > next:
		return w.finding(next, Removed, "after record %d comes record %d", w.seq, r.Seq)
	case r.Seq == next:
		return w.finding(w.seq, Changed, "its hash is not the one that record %d names", next)
	}
	return w.finding(next, Inserted, "in its place stands a record %d that was not there", r.Seq)
}

// fits reports whether line is the record that should follow.
func (w *walk) fits(line []byte) bool {
	r, err := openLine(line)
	return err == nil && r.Chain == w.chain && r.Seq == w.seq+1 && r.Prev == w.hash
}

// check holds a record against what was signed.
func (w *walk) check(r Record) *Finding {
	want, ok := w.marks.at[r.Seq]
	if !ok || want == r.Hash {
		return nil
	}
	first := uint64(1)
	if i, _ := slices.BinarySearch(w.marks.order, r.Seq); i > 0 {
		first = w.marks.order[i-1] + 1
	}
	return w.finding(first, Rewritten, "or one after it, up to record %d, is not what was signed", r.Seq)
}

// VerifyLines verifies an export in JSON lines of one chain without gaps, by itself: what came before and after is not known.
func VerifyLines(raw []byte) (records int, err error) {
	var w *walk
	for n := 1; len(raw) > 0; n++ {
		line, rest, _ := bytes.Cut(raw, []byte("\n"))
		raw = rest
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		r, err := openLine(line)
		if err != nil {
			return records, fmt.Errorf("line %d: %w", n, err)
		}
		if w != nil && (r.Seq != w.seq+1 || r.Prev != w.hash) {
			return records, fmt.Errorf("line %d: record %d does not follow record %d", n, r.Seq, w.seq)
		}
		w = &walk{seq: r.Seq, hash: r.Hash}
		records++
	}
	return records, nil
}

// String is the finding as one sentence.
func (f Finding) String() string { return f.What + ": " + f.Message }
