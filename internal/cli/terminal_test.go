package cli

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/term"
)

// onTerminal gives a fixture a real terminal and returns its other end.
func onTerminal(t *testing.T) (*fixture, *os.File, int) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Skipf("no pseudo-terminal: %v", err)
	}
	t.Cleanup(func() { _ = master.Close(); _ = slave.Close() })
	if err := pty.Setsize(master, &pty.Winsize{Rows: 40, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	x := newFixture(t)
	x.Stdin, x.Stdout = slave, slave
	return x, master, int(slave.Fd())
}

func TestTerminalIsRawOnlyWhileTheCommandRuns(t *testing.T) {
	x, master, fd := onTerminal(t)
	before, err := term.GetState(fd)
	if err != nil {
		t.Fatal(err)
	}
	x.guest.commands["sh"] = func(p *fakeProcess) {
		<-p.reading
		if raw, err := term.GetState(fd); err != nil || *raw == *before {
			t.Errorf("not raw while it runs: %v", err)
		}
		if s := *p.command.terminal; s != (windowSize{100, 40}) {
			t.Errorf("started with %v", s)
		}
		// Ctrl-C is a key like any other.
		if _, err := master.Write([]byte{3}); err != nil {
			t.Error(err)
		}
		if got := <-p.input; string(got) != "\x03" {
			t.Errorf("got %q", got)
		}
		if err := pty.Setsize(master, &pty.Winsize{Rows: 50, Cols: 120}); err != nil {
			t.Error(err)
		}
		// The kernel would tell the processes of this terminal; this process has another.
		if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil {
			t.Error(err)
		}
		if s := <-p.sizes; s != (windowSize{120, 50}) {
			t.Errorf("resized to %v", s)
		}
		_, _ = master.Write([]byte{4}) // lets the reader of the terminal go on to its end
		<-p.input
		p.exit(6)
	}
	if code := x.main(t.Context(), []string{"run", "-q", "-t", "--", "sh"}); code != 6 {
		t.Errorf("code %d: %s", code, &x.err)
	}
	after, err := term.GetState(fd)
	if err != nil || *after != *before {
		t.Errorf("the terminal is not as it was: %v", err)
	}
}

func TestTerminalIsRestoredWhenTheSandboxGoes(t *testing.T) {
	x, _, fd := onTerminal(t)
	before, err := term.GetState(fd)
	if err != nil {
		t.Fatal(err)
	}
	x.guest.commands["sh"] = func(p *fakeProcess) {
		<-p.reading
		x.server.end("crashed", "")
		p.gone()
	}
	if code := x.main(t.Context(), []string{"run", "-q", "-t", "--", "sh"}); code != 125 || !strings.Contains(x.err.String(), "crashed") {
		t.Errorf("code %d: %s", code, &x.err)
	}
	if after, err := term.GetState(fd); err != nil || *after != *before {
		t.Errorf("the terminal is not as it was: %v", err)
	}
}

// TestStdinOfATerminalIsNotPassedOn: what is typed ahead stays the shell's, unless -i or -t asks for it.
func TestStdinOfATerminalIsNotPassedOn(t *testing.T) {
	x, _, _ := onTerminal(t)
	x.guest.commands["job"] = func(p *fakeProcess) { p.exit(0) }
	if code := x.main(t.Context(), []string{"run", "-q", "--", "job"}); code != 0 || x.guest.runs[0].input {
		t.Errorf("code %d, %+v", code, x.guest.runs)
	}
}

func TestColoursOnATerminalOnly(t *testing.T) {
	x, _, _ := onTerminal(t)
	for vars, want := range map[[2]string]bool{{"", ""}: true, {"NO_COLOR", "1"}: false, {"TERM", "dumb"}: false, {"NO_COLOR", ""}: true} {
		x.lookup = lookup(map[string]string{vars[0]: vars[1]})
		if got := x.coloured(x.Stdout); got != want {
			t.Errorf("%v: %v", vars, got)
		}
	}
}
