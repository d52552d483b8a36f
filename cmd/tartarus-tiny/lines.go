package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// lineReader gives the parser of an interactive shell its input, one line at a time, with a prompt and, on
// a terminal, editing and history.
type lineReader struct {
	s    *session
	more bool // the last line was not the end of a statement
	term *term.Terminal
	rest []byte
}

func newLineReader(s *session) *lineReader {
	l := &lineReader{s: s}
	if term.IsTerminal(0) {
		l.term = term.NewTerminal(struct {
			io.Reader
			io.Writer
		}{keyReader{os.Stdin}, os.Stderr}, "")
	}
	return l
}

// keyReader turns Ctrl-C into "forget this line". As with a terminal's own handling of the key, what came before it and was not read yet
// is gone: also a line with its Enter, which would otherwise run although its user has called it off.
type keyReader struct{ io.Reader }

func (k keyReader) Read(p []byte) (int, error) {
	// One byte is left free: the one of Ctrl-C becomes two.
	n, err := k.Reader.Read(p[:max(1, min(len(p)-1, 128))])
	last := bytes.LastIndexByte(p[:n], 3)
	if last < 0 || n == len(p) {
		return n, err
	}
	after := append([]byte("\x15\r"), p[last+1:n]...) // Ctrl-U, Enter
	return copy(p, after), err
}

func (l *lineReader) prompt() string {
	name, fallback := "PS1", "$ "
	if os.Geteuid() == 0 {
		fallback = "# "
	}
	if l.more {
		name, fallback = "PS2", "> "
	}
	prompt := fallback
	if v, ok := l.s.runner.Vars[name]; ok && v.IsSet() {
		prompt = v.String()
	} else if v, ok := os.LookupEnv(name); ok {
		prompt = v
	}
	host, _ := os.Hostname()
	dir := l.s.runner.Dir
	if home := os.Getenv("HOME"); home != "" && (dir == home || strings.HasPrefix(dir, home+"/")) {
		dir = "~" + dir[len(home):]
	}
	sign := strings.TrimSpace(fallback)
	return strings.NewReplacer(`\u`, userName(os.Geteuid()), `\h`, host, `\w`, dir, `\$`, sign, `\[`, "", `\]`, "", `\e`, "\x1b", `\n`, "\n").Replace(prompt)
}

func (l *lineReader) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		line, err := l.line()
		if err != nil {
			return 0, err
		}
		l.rest = []byte(line)
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

func (l *lineReader) line() (string, error) {
	if l.term == nil {
		fmt.Fprint(os.Stderr, l.prompt())
		var line []byte
		for buf := make([]byte, 1); len(line) == 0 || line[len(line)-1] != '\n'; {
			// One byte at a time: what follows belongs to the command that this line starts.
			if n, err := os.Stdin.Read(buf); n == 0 {
				if len(line) > 0 {
					break
				}
				return "", err
			}
			line = append(line, buf[0])
		}
		return string(line), nil
	}
	old, err := term.MakeRaw(0)
	if err != nil {
		return "", err
	}
	defer term.Restore(0, old)
	if w, h, err := term.GetSize(0); err == nil && w > 0 {
		l.term.SetSize(w, h)
	}
	l.term.SetPrompt(l.prompt())
	line, err := l.term.ReadLine()
	return line + "\n", err
}
