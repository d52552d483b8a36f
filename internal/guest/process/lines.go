package process

import (
	"bytes"
	"strings"
	"time"
	"unicode/utf8"

	processpb "github.com/tartarus-sandbox/tartarus/api/gen/process"
	"github.com/tartarus-sandbox/tartarus/internal/guest/journal"
	"github.com/tartarus-sandbox/tartarus/internal/guest/spawn"
)

// What the journal keeps of a process's output. The journal is there to see what happened, not to store
// output: a program that prints without end costs the agent next to nothing beyond these rates.
const (
	maxLine        = 2 << 10 // bytes of one line
	linesPerSecond = 200     // of one stream
)

// lines cuts output into lines for the journal. Terminals are left out: they echo what is typed.
type lines struct {
	journal *journal.Journal
	pid     int
	stream  spawn.Stream
	part    []byte // a line whose end has not come
	cutting bool   // the rest of an over-long line is being skipped
	second  int64
	count   int // lines kept in this second
	skipped int // lines not kept since the last one that was
}

func (m *Manager) lines(pid int, s spawn.Stream) *lines {
	return &lines{journal: m.journal, pid: pid, stream: s}
}

func (l *lines) write(data []byte) {
	if l.stream == spawn.PTY || l.journal == nil {
		return
	}
	if now := time.Now().Unix(); now != l.second {
		l.second, l.count = now, 0
	}
	if l.count >= linesPerSecond {
		l.skip(data)
		return
	}
	for len(data) > 0 {
		line, rest, whole := bytes.Cut(data, []byte{'\n'})
		if room := maxLine - len(l.part); !l.cutting {
			l.part = append(l.part, line[:min(len(line), room)]...)
			l.cutting = len(line) > room
		}
		if whole {
			l.flush()
			if l.count >= linesPerSecond {
				l.skip(rest)
				return
			}
		}
		data = rest
	}
}

// skip counts the lines of data without keeping them.
func (l *lines) skip(data []byte) {
	l.skipped += bytes.Count(data, []byte{'\n'})
	if i := bytes.LastIndexByte(data, '\n'); i >= 0 {
		l.part, l.cutting = l.part[:0], false
		data = data[i+1:]
	}
	// What is left is the start of a line; a later piece may end it within the rate.
	if len(data) > 0 {
		l.cutting = true
	}
}

// flush keeps what there is as a line.
func (l *lines) flush() {
	if len(l.part) == 0 {
		l.cutting = false
		return
	}
	fields := map[string]any{"pid": l.pid, "stream": l.stream.String()}
	if l.skipped > 0 {
		fields["linesSkipped"] = l.skipped
		l.skipped = 0
	}
	text := string(l.part)
	if !utf8.ValidString(text) {
		text = strings.ToValidUTF8(text, "\uFFFD")
	}
	l.journal.Add("info", text, fields)
	l.part, l.cutting = l.part[:0], false
	l.count++
}

// cut joins a command line for the journal, at most maxLine bytes of it.
func cut(c *processpb.ProcessConfig) string {
	text := strings.Join(append([]string{c.GetCmd()}, c.GetArgs()...), " ")
	if len(text) > maxLine {
		text = text[:maxLine]
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}
