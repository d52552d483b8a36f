package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
)

// Shelves of the shared store, and the copies in the folder.
const (
	headShelf       = "audit.heads"
	checkpointShelf = "audit.checkpoints"
	checkpointsFile = "checkpoints.jsonl"
	headFile        = "head.json" // in the folder of its chain
)

// Checkpoint says how far the chains of all replicas had come, and whose signatures count from here on. Each carries the hash of the one
// before it, and is signed by a key that the one before it trusts; the first, by a key of its own.
type Checkpoint struct {
	N         uint64      `json:"n"` // 1, 2, 3 ...
	Time      time.Time   `json:"time"`
	Chains    []Span      `json:"chains"` // by name
	Trust     []PublicKey `json:"trust"`
	Prev      string      `json:"prev"`
	Signer    string      `json:"signer"`
	Signature string      `json:"signature"`

	line []byte
}

// Span is what is kept of a chain.
type Span struct {
	Chain string `json:"chain"`
	From  uint64 `json:"from"`     // first record that is kept
	Prev  string `json:"fromPrev"` // hash of the one before it
	Seq   uint64 `json:"seq"`      // last record
	Hash  string `json:"hash"`
}

// signedHead is a chain's end, signed by its replica about once a second. It covers what no checkpoint does yet.
type signedHead struct {
	Span
	Time      time.Time `json:"time"`
	Signer    PublicKey `json:"signer"`
	Signature string    `json:"signature"`

	line []byte
}

func (c *Checkpoint) seal(s *signer) error {
	c.Signer, c.Signature = s.public.ID, ""
	body, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode checkpoint: %w", err)
	}
	c.line = s.sign(body)
	return nil
}

func (c *Checkpoint) hash() string {
	sum := sha256.Sum256(c.line)
	return hex.EncodeToString(sum[:])
}

func readCheckpoint(line []byte) (c Checkpoint, err error) {
	if err := json.Unmarshal(line, &c); err != nil {
		return c, tartarus.Errorf(tartarus.Corrupt, "decode checkpoint: %w", err)
	}
	c.line = bytes.Clone(line)
	return c, nil
}

func (c *Checkpoint) span(chain string) (Span, bool) {
	i := slices.IndexFunc(c.Chains, func(s Span) bool { return s.Chain == chain })
	if i < 0 {
		return Span{}, false
	}
	return c.Chains[i], true
}

func trusted(keys []PublicKey, id string) (PublicKey, bool) {
	i := slices.IndexFunc(keys, func(k PublicKey) bool { return k.ID == id })
	if i < 0 {
		return PublicKey{}, false
	}
	return keys[i], true
}

// follows checks that c may come after prev, nil for the first.
func (c *Checkpoint) follows(prev *Checkpoint) error {
	trust := c.Trust
	if prev != nil {
		trust = prev.Trust
		if c.N != prev.N+1 {
			return fmt.Errorf("checkpoint %d comes after %d", c.N, prev.N)
		}
		if c.Prev != prev.hash() {
			return fmt.Errorf("checkpoint %d does not name the hash of checkpoint %d", c.N, prev.N)
		}
	}
	key, ok := trusted(trust, c.Signer)
	if !ok {
		return fmt.Errorf("checkpoint %d is signed by key %s, which nobody has handed over to", c.N, c.Signer)
	}
	if !signed(c.line, key) {
		return fmt.Errorf("the signature of checkpoint %d is wrong", c.N)
	}
	return nil
}

// loadCheckpoints reads the folder's copy. A last line that a crash cut short is left out; the store has it.
func loadCheckpoints(dir string) ([]Checkpoint, error) {
	raw, err := os.ReadFile(filepath.Join(dir, checkpointsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}
	var out []Checkpoint
	for {
		line, rest, whole := bytes.Cut(raw, []byte("\n"))
		if !whole {
			return out, nil
		}
		c, err := readCheckpoint(line)
		if err != nil {
			return out, fmt.Errorf("checkpoint after %d: %w", len(out), err)
		}
		out, raw = append(out, c), rest
	}
}

// saveCheckpoints adds to the folder's copy, in the place of a last line that a crash cut short.
func saveCheckpoints(dir string, cs ...Checkpoint) error {
	if len(cs) == 0 {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(dir, checkpointsFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open checkpoints: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read checkpoints: %w", err)
	}
	at, err := wholeLines(f, info.Size())
	if err != nil {
		return fmt.Errorf("read checkpoints: %w", err)
	}
	var b []byte
	for _, c := range cs {
		b = append(append(b, c.line...), '\n')
	}
	if at < info.Size() {
		err = f.Truncate(at)
	}
	if err == nil {
		_, err = f.WriteAt(b, at)
	}
	if err != nil {
		return fmt.Errorf("write checkpoints: %w", err)
	}
	return f.Sync()
}

// wholeLines is the length of a file without a last line that has no end. It reads from the end: one byte, where every line has one.
func wholeLines(f io.ReaderAt, size int64) (int64, error) {
	buf := make([]byte, 1, 32<<10)
	for size > 0 {
		n := min(size, int64(len(buf)))
		if _, err := f.ReadAt(buf[:n], size-n); err != nil && err != io.EOF {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return size - n + int64(i) + 1, nil
		}
		size -= n
		buf = buf[:cap(buf)]
	}
	return 0, nil
}

func checkpointName(n uint64) string { return fmt.Sprintf("%020d", n) }

// storedCheckpoints reads those of the store from number n on.
func storedCheckpoints(ctx context.Context, store shelf.Store, n uint64) (out []Checkpoint, err error) {
	for ; ; n++ {
		rec, err := store.Get(ctx, checkpointShelf, checkpointName(n))
		if tartarus.Is(err, tartarus.NotFound) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		c, err := readCheckpoint(rec.Body)
		if err != nil {
			return out, err
		}
		out = append(out, c)
	}
}

func readHead(line []byte) (h signedHead, err error) {
	if err := json.Unmarshal(line, &h); err != nil {
		return h, tartarus.Errorf(tartarus.Corrupt, "decode head: %w", err)
	}
	h.line = bytes.Clone(line)
	return h, nil
}

// heads reads the signed heads of the folder and, unless it is nil, of the store: of each chain the one that is furthest. Whether their
// signatures count is for the caller to say.
func heads(ctx context.Context, dir string, store shelf.Store) (map[string]signedHead, error) {
	out := map[string]signedHead{}
	add := func(line []byte) {
		if h, err := readHead(line); err == nil && signed(h.line, h.Signer) && h.Seq > out[h.Chain].Seq {
			out[h.Chain] = h
		}
	}
	found, err := filepath.Glob(filepath.Join(dir, "*", headFile))
	if err != nil {
		return nil, err
	}
	for _, path := range found {
		raw, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read head: %w", err)
		}
		add(raw)
	}
	if store == nil {
		return out, nil
	}
	records, err := store.List(ctx, headShelf)
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	for _, r := range records {
		add(r.Body)
	}
	return out, nil
}

// KnownHead finds the newest signed head of a chain, in the folder and in the store, for Config.Known.
func KnownHead(ctx context.Context, dir string, store shelf.Store, chain string) (Head, error) {
	all, err := heads(ctx, dir, store)
	if err != nil {
		return Head{}, err
	}
	h := all[chain]
	return Head{Chain: chain, Seq: h.Seq, Hash: h.Hash, Time: h.Time}, nil
}
