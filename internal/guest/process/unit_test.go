package process

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	processpb "github.com/tartarus-sandbox/tartarus/api/gen/process"
	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
	"github.com/tartarus-sandbox/tartarus/internal/guest/journal"
	"github.com/tartarus-sandbox/tartarus/internal/guest/settings"
	"github.com/tartarus-sandbox/tartarus/internal/guest/spawn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func manager(t *testing.T) *Manager {
	return New(Config{Settings: settings.New(account.NewBook(t.TempDir())), Journal: journal.New(1 << 20), Log: slog.New(slog.DiscardHandler)})
}

func TestLines(t *testing.T) {
	for name, c := range map[string]struct{ pieces, want []string }{
		"whole":       {[]string{"a\nb\n"}, []string{"a", "b"}},
		"in pieces":   {[]string{"a", "b\nc", "", "d", "\n"}, []string{"ab", "cd"}},
		"no end":      {[]string{"a\nrest"}, []string{"a", "rest"}},
		"empty lines": {[]string{"\n\na\n\n"}, []string{"a"}},
		"over-long":   {[]string{strings.Repeat("x", 3000), "yyy\nz\n"}, []string{strings.Repeat("x", maxLine), "z"}},
		"exactly":     {[]string{strings.Repeat("x", maxLine) + "\nz\n"}, []string{strings.Repeat("x", maxLine), "z"}},
		"not UTF-8":   {[]string{"a\xffb\n"}, []string{"a\uFFFDb"}},
		"carriage":    {[]string{"a\r\n"}, []string{"a\r"}},
	} {
		m := manager(t)
		l := m.lines(1, spawn.Stdout)
		for _, p := range c.pieces {
			l.write([]byte(p))
		}
		l.flush()
		var got []string
		kept, _ := m.journal.Since(0, 0)
		for _, e := range kept {
			got = append(got, e.Message)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestLinesAreLimitedByRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manager(t)
		l := m.lines(1, spawn.Stdout)
		for range 10 {
			l.write([]byte(strings.Repeat("y\n", 1000)))
		}
		kept, _ := m.journal.Since(0, 0)
		if len(kept) != linesPerSecond {
			t.Errorf("%d lines in a second", len(kept))
		}
		time.Sleep(time.Second)
		l.write([]byte("half "))
		l.write([]byte("line\n"))
		kept, _ = m.journal.Since(linesPerSecond, 0)
		if len(kept) != 1 || kept[0].Message != "half line" || kept[0].Fields["linesSkipped"] != 10*1000-linesPerSecond {
			t.Errorf("%+v", kept)
		}
	})
}

func TestTerminalsAreNotLogged(t *testing.T) {
	m := manager(t)
	l := m.lines(1, spawn.PTY)
	l.write([]byte("typed password\n"))
	l.flush()
	if kept, _ := m.journal.Since(0, 0); len(kept) != 0 {
		t.Errorf("%+v", kept)
	}
}

func TestEndIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manager(t)
		ended := func(pid int) *Process {
			p := &Process{PID: pid, seq: uint64(pid)}
			m.live[p] = struct{}{}
			m.remember(p)
			return p
		}
		find := func(pid int) error {
			_, err := m.Find(&processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Pid{Pid: uint32(pid)}})
			return err
		}
		ended(1)
		time.Sleep(20 * time.Second)
		ended(2)
		time.Sleep(9 * time.Second)
		if find(1) != nil || find(2) != nil {
			t.Error("forgotten too early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !tartarus.Is(find(1), tartarus.NotFound) || find(2) != nil {
			t.Error("after 31 s the first is gone, the second is not")
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if !tartarus.Is(find(2), tartarus.NotFound) || m.past != nil || m.sweep != nil {
			t.Error("nothing is left to remember or to wait for")
		}
		for pid := range 2 * maxPast {
			ended(pid)
		}
		if len(m.past) != maxPast || find(0) == nil || find(2*maxPast-1) != nil {
			t.Errorf("%d remembered", len(m.past))
		}
		m.close()
	})
}

func TestNewestOfOneTag(t *testing.T) {
	m := manager(t)
	tag := "t"
	old, young, past := &Process{PID: 1, seq: 1, Tag: &tag}, &Process{PID: 2, seq: 2, Tag: &tag}, &Process{PID: 3, seq: 3, Tag: &tag}
	m.past = []*Process{past}
	byTag := &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Tag{Tag: "t"}}
	if p, err := m.Find(byTag); p != past {
		t.Errorf("%v %v", p, err)
	}
	m.live[old], m.live[young] = struct{}{}, struct{}{}
	if p, err := m.Find(byTag); p != young {
		t.Errorf("the living come first: %v %v", p, err)
	}
}

func TestParseStat(t *testing.T) {
	for line, want := range map[string]task{
		"7 (sh) S 3 7 7 0 -1 4194560 1 2":            {pid: 7, parent: 3, session: 7, state: 'S'},
		"7 (a ) S 1 (b)) R 4 5 6 0 -1 0 1":           {pid: 7, parent: 4, session: 6, state: 'R'},
		"7 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0":    {pid: 7, state: 'S', kernel: true},
		"7 (gvisor) S 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0": {pid: 7, parent: 1, session: 1, state: 'S'},
	} {
		if got, ok := parseStat(7, []byte(line)); !ok || got != want {
			t.Errorf("%s: %+v %v", line, got, ok)
		}
	}
	for _, line := range []string{"", "7", "7 (x", "7 (x) S", "7 (x) S a b c d e f g", "7 (x) SS 1 1 1 1 1 1 1"} {
		if got, ok := parseStat(7, []byte(line)); ok {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

func TestEnd(t *testing.T) {
	for ws, want := range map[syscall.WaitStatus]End{
		0:         {Exited: true, Status: "exit status 0"},
		7 << 8:    {ExitCode: 7, Exited: true, Status: "exit status 7", Error: "exit status 7"},
		9:         {ExitCode: -1, Status: "signal: killed", Error: "signal: killed"},
		0x80 | 11: {ExitCode: -1, Status: "signal: segmentation fault (core dumped)", Error: "signal: segmentation fault (core dumped)"},
	} {
		if got := endOf(ws); got != want {
			t.Errorf("%#x: %+v", uint32(ws), got)
		}
	}
}

func TestCutCommand(t *testing.T) {
	if got := cut(&processpb.ProcessConfig{Cmd: "sh", Args: []string{"-c", strings.Repeat("é", 2000)}}); len(got) > maxLine+2 || !strings.HasPrefix(got, "sh -c é") {
		t.Errorf("%d bytes", len(got))
	}
	if got := fmt.Sprint(spawn.Stdout, spawn.Stderr, spawn.PTY); got != "stdout stderr pty" {
		t.Error(got)
	}
}
