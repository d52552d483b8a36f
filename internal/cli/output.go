package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// printJSON prints one document, indented.
func (e *Env) printJSON(v any) error {
	enc := json.NewEncoder(e.Stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printLine prints one document in one line, for output that goes on.
func (e *Env) printLine(v any) error {
	enc := json.NewEncoder(e.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// Colours of a cell, as ANSI sequences.
const (
	plain  = ""
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	faint  = "\x1b[2m"
	reset  = "\x1b[0m"
)

// coloured reports whether w wants colours: a terminal, and nobody said no (https://no-color.org).
func (e *Env) coloured(w io.Writer) bool {
	if v, ok := e.lookup("NO_COLOR"); ok && v != "" {
		return false
	}
	if v, ok := e.lookup("TERM"); ok && v == "dumb" {
		return false
	}
	_, terminal := isTerminal(w)
	return terminal
}

// cell is text with a colour that does not count as width.
type cell struct{ text, colour string }

// table is aligned columns. Text from sandboxes may be in it: what could control a terminal is taken out.
type table struct {
	head []string
	rows [][]cell
}

// cells are texts without a colour.
func cells(texts ...string) []cell {
	out := make([]cell, len(texts))
	for i, s := range texts {
		out[i] = cell{text: s}
	}
	return out
}

func (t *table) row(texts ...string) { t.rows = append(t.rows, cells(texts...)) }

func (t *table) print(w io.Writer, coloured bool) error {
	widths := make([]int, len(t.head))
	all := append([][]cell{nil}, t.rows...)
	for _, h := range t.head {
		all[0] = append(all[0], cell{text: h})
	}
	for r, row := range all {
		for i := range row {
			all[r][i].text = printable(row[i].text)
			widths[i] = max(widths[i], utf8.RuneCountInString(all[r][i].text))
		}
	}
	var b strings.Builder
	for _, row := range all {
		for i, c := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2)
			if i == len(row)-1 {
				pad = ""
			}
			if coloured && c.colour != plain {
				c.text = c.colour + c.text + reset
			}
			b.WriteString(c.text + pad)
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// facts are names with what stands behind them, one a line.
type facts [][2]string

func (f facts) print(w io.Writer) error {
	width := 0
	for _, fact := range f {
		width = max(width, len(fact[0]))
	}
	var b strings.Builder
	for _, fact := range f {
		fmt.Fprintf(&b, "%-*s  %s\n", width, fact[0], printable(dash(fact[1])))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printable replaces control characters, which could move the cursor or rename the window of whoever looks at a list.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// pairs writes a map as sorted NAME=VALUE.
func pairs(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for _, k := range sortedKeys(m) {
		out = append(out, k+"="+m[k])
	}
	return out
}

// span writes a duration for people: two units at most.
func span(d time.Duration) string {
	d = d.Round(time.Second)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// size writes bytes for people, in powers of 1024.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1024 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	return fmt.Sprintf("%.1f%ciB", f, units[u])
}
