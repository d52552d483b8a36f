package boot_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

// What goes through the agent, and what it may hold of it. Were any of the ways to gather instead of to stream, the
// first would not fit into the second.
const (
	payload    = 128 << 20
	maxHold    = 96 << 20
	inputBytes = 100 << 20
)

// agentProcess runs an agent as a process of its own, so that its memory can be told from the test's.
func agentProcess(t *testing.T) (*guestclient.Client, int) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().(*net.TCPAddr)
	free.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{asAgent + "=" + addr.String(), "PATH=/usr/bin:/bin", "HOME=/"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	client := guestclient.New(guestclient.Config{Addr: netip.MustParseAddr("127.0.0.1"), Port: addr.Port})
	t.Cleanup(func() {
		client.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); client.Health(t.Context()) != nil; {
		if time.Now().After(deadline) {
			t.Fatal("the agent does not come up")
		}
		time.Sleep(5 * time.Millisecond)
	}
	return client, cmd.Process.Pid
}

// most is the largest memory the process had.
func most(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmHWM:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestMemoryIsConstant(t *testing.T) {
	client, pid := agentProcess(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	me := me(t)
	step := func(what string, err error) {
		t.Helper()
		hold := most(t, pid)
		t.Logf("%s: at most %d MiB", what, hold>>20)
		if err != nil || hold > maxHold {
			t.Errorf("%s: %v, %d MiB", what, err, hold>>20)
		}
	}
	step("idle", nil)
	file := filepath.Join(t.TempDir(), "file")
	step("upload", client.Write(ctx, me, file, io.LimitReader(zeros{}, payload)))
	body, err := client.Read(ctx, me, file)
	if err == nil {
		var n int64
		if n, err = io.Copy(io.Discard, body); n != payload {
			err = fmt.Errorf("%d bytes, %w", n, err)
		}
		body.Close()
	}
	step("download", err)
	run := func(stdin io.Reader, argv ...string) error {
		exit, err := client.Run(ctx, guestclient.Command{Argv: argv, User: me}, stdin, io.Discard, io.Discard)
		if err == nil && exit.Code != 0 {
			err = fmt.Errorf("%+v", exit)
		}
		return err
	}
	step("output", run(nil, "head", "-c", strconv.Itoa(payload), "/dev/zero"))
	step("input", run(io.LimitReader(zeros{}, inputBytes), "/bin/sh", "-c", "test $(wc -c) = "+strconv.Itoa(inputBytes)))
	// Ten clients that do not read. Their processes fill what there is to fill within milliseconds.
	var stalled []*guestclient.Process
	for range 10 {
		p, err := client.Start(ctx, guestclient.Command{Argv: []string{"yes"}, User: me})
		if err != nil {
			t.Fatal(err)
		}
		stalled = append(stalled, p)
	}
	for _, p := range stalled {
		waitAsleep(t, p.PID)
	}
	step("stalled clients", nil)
	for _, p := range stalled {
		p.Close()
	}
}

// waitAsleep returns when the process has not used a processor for a while.
func waitAsleep(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		before := schedstat(t, pid)
		time.Sleep(20 * time.Millisecond)
		if schedstat(t, pid) == before {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a process whose output nobody takes goes on")
		}
	}
}

func schedstat(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// me is the user the test runs as.
func me(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the agent runs commands as users")
	}
	return "root"
}
