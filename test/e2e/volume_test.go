package e2e

import (
	"bytes"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/api"
)

// TestVolumes shares a volume between two sandboxes and the API, and keeps a program writing to it through a pause, a resume and a server that is
// killed: what it wrote is all there, once, in order.
func TestVolumes(t *testing.T) {
	s := newServer(t)
	if _, err := s.CreateVolume(t.Context(), "data"); err != nil {
		t.Fatal(err)
	}
	v, err := s.Volume(t.Context(), "data")
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Put(t.Context(), "/in/from-outside", strings.NewReader("from outside")); err != nil {
		t.Fatal(err)
	}
	mount := func(n *api.NewSandbox) { n.VolumeMounts = []api.VolumeMount{{Name: "data", Path: "/mnt/data"}} }
	one, two := s.create(mount), s.create(mount)
	if got := s.sh(one.SandboxID, "cat /mnt/data/in/from-outside; echo from one > /mnt/data/in/one"); got != "from outside" {
		t.Fatalf("it reads %q", got)
	}
	if got := s.sh(two.SandboxID, "cat /mnt/data/in/one; mv /mnt/data/in /mnt/data/out"); got != "from one" {
		t.Fatalf("the other reads %q", got)
	}
	if got := s.sh(one.SandboxID, "ls /mnt/data"); got != "out" {
		t.Fatalf("after the move there is %q", got)
	}
	id := one.SandboxID
	s.sh(id, "(i=0; while true; do i=$((i+1)); echo $i >> /mnt/data/log; sleep 0.02; done) >/dev/null 2>&1 &")
	lines := func() int { return len(volumeLines(t, s)) }
	grows := func(why string) {
		from := lines()
		eventually(t, 30*time.Second, func() error { return differs(why, strconv.Itoa(from), strconv.Itoa(lines())) })
	}
	grows("it writes")
	if err := s.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Connect(t.Context(), id, time.Minute); err != nil {
		t.Fatalf("%v\n%s", err, s.log)
	}
	grows("it writes on after a resume")
	s.kill()
	s.start()
	grows("it writes on after the server was killed")
	if err := s.Kill(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	for i, line := range volumeLines(t, s) {
		if line != strconv.Itoa(i+1) {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}
	if err := s.RemoveVolume(t.Context(), "data"); err != nil {
		t.Fatal(err)
	}
}

// volumeLines reads what the program wrote.
func volumeLines(t *testing.T, s *server) []string {
	t.Helper()
	v, err := s.Volume(t.Context(), "data")
	if err != nil {
		t.Fatal(err)
	}
	in, err := v.Get(t.Context(), "/log")
	if err != nil {
		return nil
	}
	defer in.Close()
	b, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasSuffix(b, []byte("\n")) {
		b = b[:bytes.LastIndexByte(b, '\n')+1] // it was writing a line
	}
	return strings.Fields(string(b))
}
