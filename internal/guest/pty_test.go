package guest_test

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	processpb "github.com/tartarus-sandbox/tartarus/api/gen/process"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

// console is a terminal session of a test.
type console struct {
	*guestclient.Process
	t    *testing.T
	a    *agent
	seen string
}

func (a *agent) terminal(t *testing.T, argv ...string) *console {
	t.Helper()
	p, err := a.client.Start(t.Context(), guestclient.Command{
		Argv: argv, User: "root", PTY: &guestclient.Size{Cols: 80, Rows: 24}, Env: map[string]string{"TERM": "dumb", "PS1": "$ ", "PS2": ""},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return &console{Process: p, t: t, a: a}
}

func (c *console) typeIn(text string) {
	c.t.Helper()
	_, err := c.a.procs.SendInput(c.t.Context(), connect.NewRequest(&processpb.SendInputRequest{
		Process: pidSelector(c.PID), Input: &processpb.ProcessInput{Input: &processpb.ProcessInput_Pty{Pty: []byte(text)}},
	}))
	if err != nil {
		c.t.Fatal(err)
	}
}

// until reads until text has appeared after what was seen before.
func (c *console) until(text string) {
	c.t.Helper()
	timer := time.AfterFunc(10*time.Second, c.Close)
	defer timer.Stop()
	for !strings.Contains(c.seen, text) {
		stream, data, _, err := c.Next()
		if err != nil {
			c.t.Fatalf("waiting for %q: %v, saw %q", text, err, c.seen)
		}
		if stream != guestclient.Terminal || len(data) > 16<<10 {
			c.t.Errorf("%d bytes on stream %d", len(data), stream)
		}
		c.seen += string(data)
	}
	_, c.seen, _ = strings.Cut(c.seen, text)
}

// foreground starts a program and returns when the shell's child is that program: it was given the terminal before. A key
// that sends a signal could until then still meet the shell, or a child between fork and exec, and have no effect.
func (c *console) foreground(cmd string) {
	c.t.Helper()
	c.typeIn(cmd + "\n")
	eventually(c.t, cmd+" runs in the foreground", func() bool {
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, path := range stats {
			stat, _ := os.ReadFile(path) // it may be gone
			_, rest, found := strings.Cut(string(stat), " ("+cmd+") ")
			if f := strings.Fields(rest); found && f[0] != "T" && f[1] == strconv.Itoa(c.PID) {
				return true
			}
		}
		return false
	})
}

func TestTerminal(t *testing.T) {
	a := start(t)
	c := a.terminal(t, "/bin/bash", "--norc", "--noprofile", "-i")
	c.until("$ ")
	c.typeIn("stty size; tty; echo mark-$((1+1))\n")
	c.until("24 80")
	c.until("/dev/pts/")
	c.until("mark-2")
	c.until("$ ") // before its prompt, readline sets the size to what it read a moment ago
	if err := c.Resize(t.Context(), guestclient.Size{Cols: 132, Rows: 50}); err != nil {
		t.Fatal(err)
	}
	c.typeIn("stty size\n")
	c.until("50 132")
	c.until("$ ")
	// Ctrl-C ends the foreground job, not the shell.
	c.foreground("cat")
	c.typeIn("\x03")
	c.until("$ ") // the shell drops what is typed before its prompt
	c.typeIn("echo alive-$((3+3))\n")
	c.until("alive-6")
	// Job control.
	c.typeIn("sleep 1001 &\n")
	c.until("[1]")
	c.typeIn("jobs\n")
	c.until("Running")
	c.typeIn("kill %1; wait; echo waited-$((4+4))\n")
	c.until("waited-8")
	c.until("$ ")
	c.foreground("cat")
	c.typeIn("\x1a")
	c.until("Stopped")
	c.until("$ ")
	// A shell that still counts the job as stopped refuses the first exit.
	c.typeIn("kill -9 %1; wait; exit 5; exit 5\n")
	timer := time.AfterFunc(10*time.Second, c.Close)
	defer timer.Stop()
	exit, err := c.Copy(io.Discard, io.Discard)
	if err != nil || exit.Code != 5 {
		t.Errorf("%+v %v", exit, err)
	}
}

func TestTerminalFeed(t *testing.T) {
	a := start(t)
	c := a.terminal(t, "cat")
	if err := c.Feed(t.Context(), strings.NewReader("typed\n\x04"), true); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	exit, err := c.Copy(&out, io.Discard)
	if err != nil || exit.Code != 0 || out.String() != "typed\r\ntyped\r\n" {
		t.Errorf("%q %+v %v", out.String(), exit, err)
	}
	if err := c.CloseStdin(t.Context()); err == nil {
		t.Error("an ended process has no stdin to close")
	}
}

func TestTerminalOutputIsComplete(t *testing.T) {
	a := start(t)
	for range 20 {
		c := a.terminal(t, "/bin/sh", "-c", "seq 1 3000; echo end")
		var out strings.Builder
		if exit, err := c.Copy(&out, io.Discard); err != nil || exit.Code != 0 {
			t.Fatalf("%+v %v", exit, err)
		}
		if !strings.HasSuffix(out.String(), "3000\r\nend\r\n") {
			t.Fatalf("the last output is lost: %d bytes", out.Len())
		}
	}
}

func TestTerminalOfAnotherUser(t *testing.T) {
	needRoot(t)
	a := start(t)
	p, err := a.client.Start(t.Context(), guestclient.Command{Argv: []string{"/bin/sh", "-c", "echo x > $(tty) && stat -c '%u %a' $(tty)"}, User: "user", PTY: &guestclient.Size{}})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	exit, err := p.Copy(&out, io.Discard)
	if err != nil || exit.Code != 0 || !strings.HasPrefix(out.String(), "x\r\n54321 ") {
		t.Errorf("%q %+v %v", out.String(), exit, err)
	}
}

func TestHangUpEndsTheSession(t *testing.T) {
	a := start(t)
	c := a.terminal(t, "/bin/bash", "--norc", "--noprofile", "-i")
	c.until("$ ")
	c.typeIn("sleep 1003 & echo pid-$!-\n")
	c.until("pid-$!-") // the echo of what was typed
	c.until("pid-")
	pid := ""
	for !strings.Contains(c.seen, "-") {
		_, data, _, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		c.seen += string(data)
	}
	pid, _, _ = strings.Cut(c.seen, "-")
	if err := c.Signal(t.Context(), 9); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the job of the killed shell dies", func() bool { return !alive(pid) })
}
