package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

var (
	errNotARecord = errors.New("it is no record")
	errHash       = errors.New("its hash is not that of its bytes")
)

// A chain is a folder; its segments are files named by the sequence number of their first record.
const segmentSuffix = ".jsonl"

type segment struct {
	path  string
	first uint64
}

func segmentName(first uint64) string { return fmt.Sprintf("%020d%s", first, segmentSuffix) }

// segments lists a chain's files in order. A folder that is not there has none.
func segments(dir string) ([]segment, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	var out []segment
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		if !ok || len(digits) != 20 {
			continue
		}
		if first, err := strconv.ParseUint(digits, 10, 64); err == nil {
			out = append(out, segment{filepath.Join(dir, e.Name()), first})
		}
	}
	slices.SortFunc(out, func(a, b segment) int { return int(int64(a.first) - int64(b.first)) })
	return out, nil
}

// content is a segment's lines, each without its newline, and what follows the last whole one. Files are made longer than what is in
// them, filled with zeros, which are left out. A segment is small enough to be read at once.
func content(path string) (lines [][]byte, rest []byte, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read segment: %w", err)
	}
	raw = bytes.TrimRight(raw, "\x00")
	for {
		line, after, ok := bytes.Cut(raw, []byte("\n"))
		if !ok {
			return lines, raw, nil
		}
		lines, raw = append(lines, line), after
	}
}
