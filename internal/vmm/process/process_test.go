package process

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func child(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func TestFind(t *testing.T) {
	cmd := child(t)
	id, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Identity){
		"other start":   func(i *Identity) { i.Start++ },
		"other program": func(i *Identity) { i.Inode++ },
		"other device":  func(i *Identity) { i.Device++ },
		"other boot":    func(i *Identity) { i.Boot = "x" },
		"other process": func(i *Identity) { i.PID = os.Getpid() },
		"no process":    func(i *Identity) { i.PID = 1 << 22 },
		"init":          func(i *Identity) { i.PID = 1 },
		"nothing":       func(i *Identity) { *i = Identity{} },
	} {
		other := id
		change(&other)
		if _, err := Find(other); !errors.Is(err, ErrGone) {
			t.Errorf("%s: %v", what, err)
		}
	}
	h, err := Find(id)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if h.Ended() {
		t.Error("has ended")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := h.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait: %v", err)
	}
	if err := h.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := h.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !h.Ended() {
		t.Error("has not ended") // a zombie now
	}
	if _, err := Find(id); !errors.Is(err, ErrGone) {
		t.Errorf("a zombie was found: %v", err)
	}
	_ = cmd.Wait()
	if err := h.Signal(unix.SIGKILL); !errors.Is(err, ErrGone) {
		t.Errorf("signal to nobody: %v", err)
	}
	if err := h.Wait(context.Background()); err != nil {
		t.Errorf("wait for the dead: %v", err)
	}
	if _, err := Open(cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Errorf("opened the dead: %v", err)
	}
}

func TestIdentifyOddNames(t *testing.T) {
	// A program's name may hold blanks and parentheses, which stand in the middle of the stat file.
	dir := t.TempDir()
	path := dir + "/a) R 1 (b"
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip(err)
	}
	if err := os.Symlink(sleep, path); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "60")
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	id, err := Identify(cmd.Process.Pid)
	if err != nil || id.Start == 0 {
		t.Fatalf("%+v, %v", id, err)
	}
	self, err := Identify(os.Getpid())
	if err != nil || id.Start < self.Start {
		t.Errorf("child started at %d, parent at %d, %v", id.Start, self.Start, err)
	}
}
