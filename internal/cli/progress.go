package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/tartarus-sandbox/tartarus/internal/image"
)

// progress shows how a build goes on stderr: one line that changes on a terminal, else a line for each stage and, in a
// long one, a line now and then.
type progress struct {
	out     io.Writer
	width   int // of the terminal; 0 is none
	started time.Time
	stage   string
	shown   time.Time
}

// Pauses between two lines: quick enough to look alive on a terminal, rare enough for a log.
const (
	redrawEvery = 100 * time.Millisecond
	lineEvery   = 5 * time.Second
)

func (e *Env) newProgress(now time.Time) *progress {
	p := &progress{out: e.Stderr, started: now}
	if fd, ok := isTerminal(e.Stderr); ok {
		if p.width, _, _ = term.GetSize(fd); p.width <= 0 {
			p.width = 80
		}
	}
	return p
}

func (p *progress) report(got image.Progress, now time.Time) {
	pause := lineEvery
	if p.width > 0 {
		pause = redrawEvery
	}
	if got.Stage == p.stage && now.Sub(p.shown) < pause {
		return
	}
	p.stage, p.shown = got.Stage, now
	line := fmt.Sprintf("%5.1fs  %-14s %s%s", now.Sub(p.started).Seconds(), got.Stage, percent(got), printable(got.Message))
	if p.width == 0 {
		fmt.Fprintln(p.out, strings.TrimRight(line, " "))
		return
	}
	if r := []rune(line); len(r) >= p.width {
		line = string(r[:p.width-1])
	}
	fmt.Fprint(p.out, "\r\x1b[K"+line)
}

func percent(got image.Progress) string {
	if got.Total <= 0 {
		return ""
	}
	return fmt.Sprintf("%3d%%  ", min(100, got.Done*100/got.Total))
}

// finish leaves the cursor on a line of its own.
func (p *progress) finish() {
	if p.width > 0 && p.stage != "" {
		fmt.Fprintln(p.out)
	}
}
