package audit

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Checkpoints are added behind those that are there, and over one that a crash cut short, however long it is.
func TestSaveCheckpoints(t *testing.T) {
	line := func(n string) string { return `{"n":` + n + `,"chains":null,"trust":null}` }
	for what, tail := range map[string]string{
		"nothing":             "",
		"one that is whole":   line("7") + "\n",
		"half of one":         line("7")[:9],
		"most of a long one":  strings.Repeat("x", 100<<10),
		"behind a whole one":  line("7") + "\n" + line("8")[:9],
		"a long one and half": line("7") + strings.Repeat(" ", 64<<10) + "\n" + strings.Repeat("y", 33<<10),
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, checkpointsFile)
		if tail != "" {
			if err := os.WriteFile(path, []byte(tail), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want := tail[:strings.LastIndexByte(tail, '\n')+1] + line("1") + "\n" + line("2") + "\n" + line("3") + "\n"
		for _, add := range [][]Checkpoint{{{line: []byte(line("1"))}}, {}, {{line: []byte(line("2"))}, {line: []byte(line("3"))}}} {
			if err := saveCheckpoints(dir, add...); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("behind %s: %.200q, %v", what, got, err)
		}
		if found, err := loadCheckpoints(dir); err != nil || len(found) < 3 || found[len(found)-1].N != 3 {
			t.Errorf("behind %s: read %d, %v", what, len(found), err)
		}
	}
}

// reads counts what is read of a file.
type reads struct {
	*bytes.Reader
	bytes int
}

func (r *reads) ReadAt(b []byte, at int64) (int, error) {
	n, err := r.Reader.ReadAt(b, at)
	r.bytes += n
	return n, err
}

// Adding a checkpoint does not read those that are there.
func TestEndOfCheckpointsIsFoundAtTheEnd(t *testing.T) {
	f := &reads{Reader: bytes.NewReader(bytes.Repeat([]byte("0123456789abcde\n"), 1<<20))}
	if at, err := wholeLines(f, f.Size()); err != nil || at != f.Size() || f.bytes != 1 {
		t.Errorf("end at %d of %d, %v, after %d bytes", at, f.Size(), err, f.bytes)
	}
}
