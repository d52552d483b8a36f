package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	const hybrid = `27 26 0:23 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
28 27 0:24 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
29 27 0:25 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory
30 27 0:26 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
31 27 0:27 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
32 27 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw`
	const unified = `30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
60 23 0:26 /inner /mnt/again rw - cgroup2 cgroup2 rw`
	for name, c := range map[string]struct {
		lines   string
		version int
		bases   []string
	}{
		"hybrid":  {hybrid, 1, []string{"/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"}},
		"unified": {unified, 2, []string{"/sys/fs/cgroup"}},
		"rubbish": {"a b c\n\n1 2 3 4 5 -\n", 1, nil},
	} {
		h := parse(bufio.NewScanner(strings.NewReader(c.lines)))
		if h.Version() != c.version || !slices.Equal(h.bases(), c.bases) {
			t.Errorf("%s: version %d, bases %v", name, h.Version(), h.bases())
		}
	}
}

// fakeHost is a tree in which this test plays the kernel: a new folder gets the files that a new group has.
func fakeHost(t *testing.T, unified bool) (*Host, string) {
	t.Helper()
	root := t.TempDir()
	files := []string{"cgroup.procs", "pids.max", "pids.current", "memory.stat"}
	h := parse(bufio.NewScanner(strings.NewReader("")))
	if unified {
		h.unified = root
		files = append(files, "cgroup.subtree_control", "cgroup.kill", "cpu.max", "cpu.stat", "memory.max", "memory.current",
			"memory.swap.max", "memory.oom.group", "memory.events")
		put(t, filepath.Join(root, "cgroup.subtree_control"), "memory")
		put(t, filepath.Join(root, "cgroup.controllers"), "cpuset cpu memory pids")
	} else {
		files = append(files, "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpuacct.usage", "memory.limit_in_bytes",
			"memory.usage_in_bytes", "memory.swappiness", "memory.oom_control")
		for _, c := range []string{"cpu", "memory", "pids"} {
			h.v1[c] = filepath.Join(root, c)
			if err := os.Mkdir(h.v1[c], 0o755); err != nil {
				t.Fatal(err)
			}
		}
		h.v1["cpuacct"] = h.v1["cpu"] // mounted together
	}
	h.mkdir = func(path string) error {
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		for _, f := range files {
			put(t, filepath.Join(path, f), "")
		}
		return nil
	}
	h.rmdir = func(path string) error {
		if _, err := os.Stat(path); err != nil {
			return err
		}
		if get(path, "cgroup.procs") != "" {
			return errors.New("device or resource busy")
		}
		return os.RemoveAll(path)
	}
	return h, root
}

func put(t *testing.T, path, value string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

func get(path ...string) string {
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

var limits = Limits{CPUs: 2, MemoryBytes: 256 << 20, PIDs: 100}

func TestUnified(t *testing.T) {
	h, root := fakeHost(t, true)
	if missing := h.Missing(); len(missing) != 0 {
		t.Errorf("missing %v", missing)
	}
	g, err := h.Make("one", limits)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, Parent, "one")
	for path, want := range map[string]string{
		filepath.Join(root, "cgroup.subtree_control"):         "+cpu +pids", // memory was on
		filepath.Join(root, Parent, "cgroup.subtree_control"): "+cpu +memory +pids",
		filepath.Join(dir, "cpu.max"):                         "200000 100000",
		filepath.Join(dir, "memory.max"):                      "268435456",
		filepath.Join(dir, "memory.swap.max"):                 "0",
		filepath.Join(dir, "memory.oom.group"):                "1",
		filepath.Join(dir, "pids.max"):                        "100",
	} {
		if got := get(path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	d, err := g.Dir()
	if err != nil || d.Name() != dir {
		t.Errorf("folder to clone into is %v, %v", d, err)
	}
	d.Close()
	if a, err := g.WatchOOM(); a != nil || err != nil {
		t.Errorf("an alarm where the kernel kills the whole group: %v, %v", a, err)
	}
	put(t, filepath.Join(dir, "memory.events"), "low 0\noom 3\noom_kill 2\n")
	put(t, filepath.Join(dir, "memory.current"), "5000\n")
	put(t, filepath.Join(dir, "memory.stat"), "anon 1\ninactive_file 1000\n")
	put(t, filepath.Join(dir, "cpu.stat"), "usage_usec 1500\nuser_usec 1\n")
	put(t, filepath.Join(dir, "pids.current"), "7\n")
	if n := g.OOMKills(); n != 2 {
		t.Errorf("%d kills", n)
	}
	u, err := g.Usage()
	if want := (Usage{CPU: 1500 * time.Microsecond, MemoryBytes: 4000, PIDs: 7}); err != nil || u != want {
		t.Errorf("usage %+v, %v", u, err)
	}
	g.Kill()
	if got := get(dir, "cgroup.kill"); got != "1" {
		t.Errorf("cgroup.kill is %q", got)
	}
	checkRemove(t, h, g)
}

func TestHybrid(t *testing.T) {
	h, root := fakeHost(t, false)
	g, err := h.Make("one", limits)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"cpu/tartarus/one/cpu.cfs_quota_us":         "200000",
		"cpu/tartarus/one/cpu.cfs_period_us":        "100000",
		"memory/tartarus/one/memory.limit_in_bytes": "268435456",
		"memory/tartarus/one/memory.swappiness":     "0",
		"pids/tartarus/one/pids.max":                "100",
	} {
		if got := get(root, path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	if len(g.Dirs()) != 3 {
		t.Errorf("folders %v", g.Dirs())
	}
	if err := g.SetCPUs(1); err != nil || get(root, "cpu/tartarus/one/cpu.cfs_quota_us") != "100000" {
		t.Errorf("quota not changed: %v", err)
	}
	put(t, filepath.Join(root, "cpu/tartarus/one/cpuacct.usage"), "1500000\n")
	put(t, filepath.Join(root, "memory/tartarus/one/memory.usage_in_bytes"), "900\n")
	put(t, filepath.Join(root, "memory/tartarus/one/memory.stat"), "total_inactive_file 1000\n")
	put(t, filepath.Join(root, "memory/tartarus/one/memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
	u, err := g.Usage()
	if want := (Usage{CPU: 1500 * time.Microsecond}); err != nil || u != want {
		t.Errorf("usage %+v, %v", u, err)
	}
	if n := g.OOMKills(); n != 1 {
		t.Errorf("%d kills", n)
	}
	if err := g.Add(42); err != nil || get(root, "pids/tartarus/one/cgroup.procs") != "42" {
		t.Errorf("process not added: %v", err)
	}
	for _, d := range g.Dirs() {
		put(t, filepath.Join(d, "cgroup.procs"), "")
	}
	checkRemove(t, h, g)
}

func checkRemove(t *testing.T, h *Host, g *Group) {
	t.Helper()
	if other := h.Group("two"); !g.Exists() || other.Exists() {
		t.Error("the one group is not there, or another one is")
	}
	for range 2 { // the second time there is nothing
		if err := g.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if g.Exists() {
		t.Error("it is still there")
	}
	if _, err := g.Usage(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("usage of nothing: %v", err)
	}
}

func TestMakeFailsWhole(t *testing.T) {
	h, root := fakeHost(t, false)
	if _, err := h.Make("one", limits); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Make("one", limits); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made twice: %v", err)
	}
	if !h.Group("one").Exists() {
		t.Error("the failure took the first away")
	}
	// The last hierarchy refuses: the others must be taken back.
	if err := os.RemoveAll(filepath.Join(root, "pids")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Make("two", limits); err == nil {
		t.Fatal("made without a hierarchy")
	}
	if h.Group("two").Exists() {
		t.Error("half a group is left")
	}
}

func TestRemoveGivesUp(t *testing.T) {
	h, root := fakeHost(t, true)
	g, err := h.Make("one", limits)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(root, Parent, "one", "cgroup.procs"), "999999999") // will not go away
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := g.Remove(ctx); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("removed: %v", err)
	}
}

// TestHost makes a group on this host and puts a process into it.
func TestHost(t *testing.T) {
	h, err := Detect()
	if err != nil {
		t.Skip(err)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if missing := h.Missing(); len(missing) > 0 {
		t.Skipf("this host has no controllers %v", missing)
	}
	name := "cgrouptest" + filepath.Base(t.TempDir())
	g, err := h.Make(name, Limits{CPUs: 1, MemoryBytes: 32 << 20, PIDs: 10})
	if err != nil {
		t.Skipf("this host does not let us: %v", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := g.Remove(ctx); err != nil || g.Exists() {
			t.Errorf("not removed: %v", err)
		}
	}()
	alarm, err := g.WatchOOM()
	if err != nil {
		t.Fatal(err)
	}
	// The shell waits to be put into the group, then wants more than there is.
	cmd := exec.Command("sh", "-c", "read go; x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if got := g.PIDs(); !slices.Contains(got, cmd.Process.Pid) {
		t.Errorf("processes %v, want %d", got, cmd.Process.Pid)
	}
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	if alarm != nil && !alarm.Wait() {
		t.Error("no alarm")
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process ended well")
	}
	if n := g.OOMKills(); n != 1 {
		t.Errorf("%d kills", n)
	}
	if alarm != nil {
		alarm.Close()
	}
}

// TestStartPutsAProcessInTheGroup starts many at once: each is in its group from its first instruction, and no thread of this
// program stays there, which Remove would take for a process to kill.
func TestStartPutsAProcessInTheGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	h, err := Detect()
	if err != nil {
		t.Skip(err)
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			name := fmt.Sprintf("teststart%d%d", os.Getpid(), i)
			g, err := h.Make(name, Limits{PIDs: 5})
			if err != nil {
				t.Error(err)
				return
			}
			defer func() {
				if err := g.Remove(t.Context()); err != nil {
					t.Error(err)
				}
			}()
			var out strings.Builder
			cmd := exec.Command("cat", "/proc/self/cgroup")
			cmd.Stdout = &out
			if err := g.Start(cmd); err != nil {
				t.Error(err)
				return
			}
			if slices.Contains(g.PIDs(), os.Getpid()) {
				t.Error("this program is in the group")
			}
			if err := cmd.Wait(); err != nil || strings.Count(out.String(), "/"+Parent+"/"+name) != len(g.dirs) {
				t.Errorf("%v, the process is in\n%s", err, out.String())
			}
		})
	}
	wg.Wait()
}
