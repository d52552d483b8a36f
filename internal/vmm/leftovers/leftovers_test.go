package leftovers

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
)

// serving starts a process that serves the machine, as far as its name tells.
func serving(t *testing.T, mark, id string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	cmd.Args[0] = mark + id
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func TestWhatNobodyOwnsGoes(t *testing.T) {
	groups, err := cgroup.Detect()
	if err != nil {
		t.Skipf("needs control groups: %v", err)
	}
	dir := t.TempDir()
	mark := "leftover-of-" + filepath.Base(dir) + "-"
	d := Driver{Dir: dir, Groups: groups, Held: new(vmm.Held), Serves: func(args []string) string {
		id, ok := strings.CutPrefix(args[0], mark)
		if !ok {
			return ""
		}
		return id
	}}
	mine, held, lost, bare, odd := tartarus.NewID(), tartarus.NewID(), tartarus.NewID(), tartarus.NewID(), "lost+found"
	if err := d.Held.Claim(held); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{mine, held, lost, odd} {
		if err := os.MkdirAll(filepath.Join(dir, name, "inside"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	kept := serving(t, mark, mine)
	stray := serving(t, mark, lost)
	alone := serving(t, mark, bare)
	owned := func(id string) bool { return id == mine }

	want := []vmm.Leftover{
		{Kind: "folder", Name: filepath.Join(dir, lost)},
		{Kind: "process", Name: strconv.Itoa(stray.Process.Pid) + " (" + lost + ")"},
		{Kind: "process", Name: strconv.Itoa(alone.Process.Pid) + " (" + bare + ")"},
	}
	for _, remove := range []bool{false, true} {
		// A process has its new name once it has begun.
		var found []vmm.Leftover
		for end := time.Now().Add(10 * time.Second); len(found) < len(want) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if found, err = d.List(t.Context(), owned, false); err != nil {
				t.Fatal(err)
			}
		}
		if remove {
			if found, err = d.List(t.Context(), owned, true); err != nil {
				t.Fatal(err)
			}
		}
		for _, list := range [][]vmm.Leftover{found, want} {
			slices.SortFunc(list, func(a, b vmm.Leftover) int { return strings.Compare(a.Kind+a.Name, b.Kind+b.Name) })
		}
		if !slices.Equal(found, want) {
			t.Fatalf("found %v, want %v", found, want)
		}
	}
	for _, cmd := range []*exec.Cmd{stray, alone} {
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Error("a process was not ended")
		}
	}
	if found, err := d.List(context.WithoutCancel(t.Context()), owned, false); err != nil || len(found) > 0 {
		t.Errorf("still there: %v, %v", found, err)
	}
	for _, name := range []string{mine, held, odd} {
		if _, err := os.Stat(filepath.Join(dir, name, "inside")); err != nil {
			t.Errorf("%s was touched: %v", name, err)
		}
	}
	if err := kept.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the process of a machine that is owned is gone: %v", err)
	}
}
