package audit_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/tartarus-sandbox/tartarus/internal/audit"
)

// reseal gives a changed line a hash that fits it, as somebody does who knows how records are written. Each following line is chained to it
// when all is set.
func reseal(t *testing.T, lines [][]byte, from int, all bool) {
	t.Helper()
	for i := from; i < len(lines); i++ {
		var r audit.Record
		if err := json.Unmarshal(lines[i], &r); err != nil {
			t.Fatal(err)
		}
		if i > from {
			if !all {
				return
			}
			var before audit.Record
			if err := json.Unmarshal(lines[i-1], &before); err != nil {
				t.Fatal(err)
			}
			r.Prev = before.Hash
		}
		r.Hash = ""
		body, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		body = bytes.TrimSuffix(body, []byte(`,"hash":""}`))
		sum := sha256.Sum256(body)
		lines[i] = append(body, `,"hash":"`+hex.EncodeToString(sum[:])+`"}`...)
	}
}

// Each way to alter a chain is noticed, and the first record that it concerns is named. Record n is line n-1.
func TestTampering(t *testing.T) {
	cut := func(lines [][]byte, from, to int) [][]byte { return append(lines[:from:from], lines[to:]...) }
	put := func(lines [][]byte, at int, line []byte) [][]byte {
		return append(append(lines[:at:at], line), lines[at:]...)
	}
	tests := []struct {
		name  string
		alter func(t *testing.T, lines [][]byte) [][]byte
		what  string
		seq   uint64
	}{
		{"flip a byte", func(_ *testing.T, l [][]byte) [][]byte { l[9][60] ^= 1; return l }, audit.Changed, 10},
		{"flip a byte of the hash", func(_ *testing.T, l [][]byte) [][]byte { n := len(l[9]) - 5; l[9][n] ^= 1; return l }, audit.Changed, 10},
		{"flip a byte of the last record", func(_ *testing.T, l [][]byte) [][]byte { l[len(l)-1][60] ^= 1; return l }, audit.Changed, 31},
		{"change a record and its hash", func(t *testing.T, l [][]byte) [][]byte {
			l[9] = bytes.Replace(l[9], []byte(`"allow"`), []byte(`"deny"`), 1)
			reseal(t, l, 9, false)
			return l
		}, audit.Changed, 10},
		{"change a record and all hashes after it", func(t *testing.T, l [][]byte) [][]byte {
			l[9] = bytes.Replace(l[9], []byte(`"allow"`), []byte(`"deny"`), 1)
			reseal(t, l, 9, true)
			return l
		}, audit.Rewritten, 1},
		{"remove a record", func(_ *testing.T, l [][]byte) [][]byte { return cut(l, 9, 10) }, audit.Removed, 10},
		{"remove several", func(_ *testing.T, l [][]byte) [][]byte { return cut(l, 9, 15) }, audit.Removed, 10},
		{"remove the first", func(_ *testing.T, l [][]byte) [][]byte { return cut(l, 0, 1) }, audit.Removed, 1},
		{"remove one and number the rest anew", func(t *testing.T, l [][]byte) [][]byte {
			l = cut(l, 9, 10)
			for i := 9; i < len(l); i++ {
				var r map[string]any
				if err := json.Unmarshal(l[i], &r); err != nil {
					t.Fatal(err)
				}
				l[i] = bytes.Replace(l[i], []byte(`{"seq":`+jsonOf(r["seq"])), []byte(`{"seq":`+jsonOf(float64(i+1))), 1)
				var before audit.Record
				_ = json.Unmarshal(l[i-1], &before)
				l[i] = bytes.Replace(l[i], []byte(r["prev"].(string)), []byte(before.Hash), 1)
				reseal(t, l, i, false)
			}
			return l
		}, audit.Rewritten, 1},
		{"insert a forged record", func(t *testing.T, l [][]byte) [][]byte {
			l = put(l, 9, bytes.Replace(l[9], []byte(`"allow"`), []byte(`"deny"`), 1))
			reseal(t, l, 9, false)
			return l
		}, audit.Inserted, 10},
		{"insert what is no record", func(_ *testing.T, l [][]byte) [][]byte { return put(l, 9, []byte(`{"seq":10}`)) }, audit.Inserted, 10},
		{"swap two neighbours", func(_ *testing.T, l [][]byte) [][]byte { l[9], l[10] = l[10], l[9]; return l }, audit.Reordered, 10},
		{"swap two far apart", func(_ *testing.T, l [][]byte) [][]byte { l[9], l[20] = l[20], l[9]; return l }, audit.Reordered, 10},
		{"replay a record", func(_ *testing.T, l [][]byte) [][]byte { return put(l, 15, l[9]) }, audit.Replayed, 16},
		{"replay a record at the end", func(_ *testing.T, l [][]byte) [][]byte { return append(l, l[9]) }, audit.Replayed, 32},
		{"cut off the end", func(_ *testing.T, l [][]byte) [][]byte { return l[:20] }, audit.Truncated, 21},
		{"cut off the last record", func(_ *testing.T, l [][]byte) [][]byte { return l[:30] }, audit.Truncated, 31},
		{"cut off everything", func(_ *testing.T, l [][]byte) [][]byte { return nil }, audit.Truncated, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := openReplica(t, t.TempDir(), "one", newShelf(t), nil)
			r.add(t, 15)
			r.seal(t)
			r.add(t, 15)
			r.seal(t)
			r.wantSound(t, 31)
			if err := r.log.Close(); err != nil {
				t.Fatal(err)
			}
			path := segmentFiles(t, r.dir, "one")[0]
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			lines := tt.alter(t, bytes.Split(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n")))
			raw = append(bytes.Join(lines, []byte("\n")), '\n')
			if len(lines) == 0 {
				raw = nil
			}
			if err := os.WriteFile(path, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			// With the store and, because the signed head is in the folder too, without it.
			for _, v := range []audit.Verification{{Dir: r.dir, Store: r.store}, {Dir: r.dir}} {
				rep, err := audit.Verify(t.Context(), v)
				if err != nil {
					t.Fatal(err)
				}
				if rep.OK || len(rep.Findings) != 1 {
					t.Fatalf("findings are %v", rep.Findings)
				}
				if f := rep.Findings[0]; f.What != tt.what || f.Seq != tt.seq || f.Chain != "one" {
					t.Fatalf("got %s, want record %d %s", f, tt.seq, tt.what)
				}
			}
			t.Logf("%-42s noticed: %s at record %d", tt.name, tt.what, tt.seq)
		})
	}
}

func jsonOf(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// Whoever alters the checkpoints is noticed too.
func TestTamperingWithCheckpoints(t *testing.T) {
	tests := map[string]func(lines [][]byte) [][]byte{
		"flip":   func(l [][]byte) [][]byte { l[1][20] ^= 1; return l },
		"remove": func(l [][]byte) [][]byte { return append(l[:1:1], l[2:]...) },
		"swap":   func(l [][]byte) [][]byte { l[1], l[2] = l[2], l[1]; return l },
		"replay": func(l [][]byte) [][]byte { return append(l, l[1]) },
	}
	for name, alter := range tests {
		t.Run(name, func(t *testing.T) {
			r := openReplica(t, t.TempDir(), "one", newShelf(t), nil)
			for range 4 {
				r.add(t, 3)
				r.seal(t)
			}
			path := filepath.Join(r.dir, "checkpoints.jsonl")
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			lines := alter(bytes.Split(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n")))
			if err := os.WriteFile(path, append(bytes.Join(lines, []byte("\n")), '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, v := range []audit.Verification{{Dir: r.dir, Store: r.store}, {Dir: r.dir}} {
				rep, err := audit.Verify(t.Context(), v)
				if err != nil || rep.OK {
					t.Fatalf("not noticed: %+v %v", rep, err)
				}
			}
		})
	}
}
