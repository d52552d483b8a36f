package guest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

// followers counts the calls that follow a process, by their place in the program.
func followers() int {
	buf := make([]byte, 1<<20)
	return bytes.Count(buf[:runtime.Stack(buf, true)], []byte("guest/process.follow("))
}

// rawStart sends a Start request over a connection of its own, as SDKs do, and returns once the start event is there.
func (a *agent) rawStart(t *testing.T, message string, chunked bool, header string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", a.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	body := envelope(message)
	length := fmt.Sprintf("Content-Length: %d", len(body))
	if chunked {
		length = "Transfer-Encoding: chunked"
		body = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	}
	fmt.Fprintf(conn, "POST /process.Process/Start HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+json\r\nAuthorization: Basic cm9vdDo=\r\n%s%s\r\n\r\n%s", header, length, body)
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	seen := make([]byte, 0, 4096)
	for !bytes.Contains(seen, []byte(`{"start":`)) {
		n, err := conn.Read(seen[len(seen):cap(seen)])
		if err != nil {
			t.Fatalf("%v after %q", err, seen)
		}
		seen = seen[:len(seen)+n]
	}
	return conn
}

// The agent notices that a client went away even while there is nothing to write to it.
func TestDisconnectIsNoticed(t *testing.T) {
	a := start(t)
	for _, chunked := range []bool{false, true} {
		conn := a.rawStart(t, `{"process":{"cmd":"sleep","args":["1000"]},"stdin":false}`, chunked, "")
		eventually(t, "the call follows the process", func() bool { return followers() == 1 })
		conn.Close()
		eventually(t, "the call ends", func() bool { return followers() == 0 })
	}
	if list, err := a.client.Processes(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("the processes go on: %v %v", list, err)
	}
}

// When its time is up, a call ends although its client does not read.
func TestStalledClientIsCutWhenItsTimeIsUp(t *testing.T) {
	a := start(t)
	a.rawStart(t, `{"process":{"cmd":"yes"},"stdin":false}`, false, "Connect-Timeout-Ms: 300\r\n")
	eventually(t, "the call ends", func() bool { return followers() == 0 })
	eventually(t, "the process is gone", func() bool {
		list, err := a.client.Processes(t.Context())
		return err == nil && len(list) == 0
	})
}

// A connection whose call was ended by its time serves the next call.
func TestConnectionIsUsedAgainAfterTimeout(t *testing.T) {
	t.Parallel() // it waits for time to pass
	a := start(t)
	conn := a.rawStart(t, `{"process":{"cmd":"sleep","args":["1000"]},"stdin":false}`, false, "Connect-Timeout-Ms: 100\r\n")
	buf := make([]byte, 4096)
	for seen := ""; !strings.HasSuffix(seen, "0\r\n\r\n"); {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, seen)
		}
		seen += string(buf[:n])
	}
	time.Sleep(1200 * time.Millisecond) // longer than a last write may take
	fmt.Fprint(conn, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
	if n, err := conn.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 204") {
		t.Errorf("%q %v", buf[:n], err)
	}
}

func TestCopyEndsWhenTheWriterFails(t *testing.T) {
	a := start(t)
	_, err := a.client.Run(t.Context(), guestclient.Command{Argv: []string{"yes"}, User: "root"}, nil,
		writerFunc(func([]byte) (int, error) { return 0, os.ErrClosed }), io.Discard)
	if err != os.ErrClosed {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.client.Start(ctx, guestclient.Command{Argv: []string{"ls"}, User: "root"}); err == nil {
		t.Error("a call with an ended context starts")
	}
}
