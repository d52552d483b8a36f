package inspect

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestGuest(t *testing.T) {
	root := t.TempDir()
	put := func(name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // past the umask, and for setuid
			t.Fatal(err)
		}
	}
	put("etc/old", "from the image", 0o644)
	since := time.Now()
	time.Sleep(20 * time.Millisecond) // a file system's clock ticks no finer than the kernel's
	put("proc/7/status", "Name:\tsh\nState:\tS (sleeping)\nPPid:\t1\nUid:\t1000\t1000\t1000\t1000\n", 0o644)
	put("proc/7/cmdline", "sh\x00-c\x00sleep 1\x00", 0o644)
	put("proc/self-like/status", "no process", 0o644)
	put("proc/net/tcp", "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"+
		"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1\n"+
		"   garbage\n", 0o644)
	put("usr/bin/new", "x", os.ModeSetuid|0o755)
	put("tmp/data", "abc", 0o600)
	if err := os.Symlink("/etc/shadow", filepath.Join(root, "tmp/link")); err != nil {
		t.Fatal(err)
	}
	got := Guest(t.Context(), root, since)
	if got.Truncated {
		t.Error("truncated")
	}
	if len(got.Processes) != 1 || got.Processes[0].PID != 7 || got.Processes[0].Parent != 1 || got.Processes[0].UID != 1000 ||
		got.Processes[0].State != "S" || len(got.Processes[0].Argv) != 3 || got.Processes[0].Argv[2] != "sleep 1" {
		t.Errorf("processes %+v", got.Processes)
	}
	if len(got.Sockets) != 1 || got.Sockets[0].Local != "127.0.0.1:8080" || got.Sockets[0].State != "listening" || got.Sockets[0].UID != 1000 {
		t.Errorf("sockets %+v", got.Sockets)
	}
	files := map[string]int{}
	for i, f := range got.Files {
		files[f.Path] = i
	}
	if len(files) != 3 {
		t.Fatalf("files %+v", got.Files)
	}
	if f := got.Files[files["/usr/bin/new"]]; !f.Setuid || !f.Executable {
		t.Errorf("a setuid program is %+v", f)
	}
	if f := got.Files[files["/tmp/data"]]; f.SHA256 != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" || f.Executable {
		t.Errorf("a file is %+v", f)
	}
	if f := got.Files[files["/tmp/link"]]; f.Target != "/etc/shadow" || f.SHA256 != "" {
		t.Errorf("a link is %+v", f)
	}
}

func TestGuestOutOfTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := Guest(ctx, t.TempDir(), time.Time{}); !got.Truncated {
		t.Errorf("%+v", got)
	}
}

func TestSocketsOfIPv6(t *testing.T) {
	s, ok := socket("tcp6", "0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 1")
	if !ok || s.Local != "[::1]:80" {
		t.Errorf("%v %+v", ok, s)
	}
}
