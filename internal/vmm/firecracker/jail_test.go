package firecracker_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/firecracker"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/payload"
)

// TestJail reads what the kernel says of two monitors: nothing of it comes from the driver.
func TestJail(t *testing.T) {
	r := newRig(t, nil)
	a, b := r.boot("a"), r.boot("b")
	pidA, pidB := monitorOf(t, a), monitorOf(t, b)
	status := readFile(t, "/proc/"+pidA+"/status")

	uid := field(status, "Uid")
	if ids := strings.Fields(uid); len(ids) != 4 || ids[0] == "0" || len(slices.Compact(ids)) != 1 {
		t.Errorf("users of the monitor: %s", uid)
	}
	if other := field(readFile(t, "/proc/"+pidB+"/status"), "Uid"); other == uid {
		t.Errorf("two monitors are the user %s", uid)
	}
	r.equal(field(status, "Gid"), uid)
	for _, set := range []string{"CapPrm", "CapEff", "CapInh", "CapAmb"} {
		r.equal(field(status, set), "0000000000000000")
	}
	r.equal(field(status, "NoNewPrivs"), "1")
	r.equal(field(status, "Seccomp"), "2") // a filter; each thread has its own
	tasks, err := filepath.Glob("/proc/" + pidA + "/task/*/status")
	if err != nil || len(tasks) < 3 {
		t.Errorf("threads %v, %v", tasks, err)
	}
	for _, task := range tasks {
		if s := readFile(t, task); field(s, "Seccomp") != "2" {
			t.Errorf("thread %s has no system call filter", field(s, "Name"))
		}
	}
	if ids := strings.Fields(field(status, "NSpid")); len(ids) != 2 || ids[1] != "1" {
		t.Errorf("the monitor is not the first process of its namespace: %v", ids)
	}
	for _, ns := range []string{"pid", "mnt", "net"} {
		mine, its := link(t, "/proc/self/ns/"+ns), link(t, "/proc/"+pidA+"/ns/"+ns)
		if mine == its {
			t.Errorf("the monitor is in the host's %s namespace", ns)
		}
	}
	limits := readFile(t, "/proc/"+pidA+"/limits")
	for what, most := range map[string]int{"Max open files": 256, "Max file size": 128 << 20} {
		if got := limit(limits, what); got <= 0 || got > most {
			t.Errorf("%s is %d, want at most %d", what, got, most)
		}
	}
	checkRoot(t, pidA)
	checkGroup(t, r, a, pidA)
}

// checkRoot looks at what the monitor sees as /.
func checkRoot(t *testing.T, pid string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/" + pid + "/root")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "api-") {
			names = append(names, e.Name())
		}
	}
	want := []string{"dev", "disk", "firecracker", "firecracker.pid", "kernel", "log", "metrics", "rootfs", "run", "snap"}
	if !slices.Equal(names, want) {
		t.Errorf("the monitor sees %v, want %v", names, want)
	}
	for _, name := range []string{"kernel", "rootfs", "snap"} {
		var st unix.Stat_t
		if err := unix.Lstat("/proc/"+pid+"/root/"+name, &st); err != nil || st.Uid != 0 || st.Mode&0o022 != 0 {
			t.Errorf("%s belongs to %d with mode %o, %v", name, st.Uid, st.Mode, err)
		}
	}
}

// checkGroup looks at the monitor's control group.
func checkGroup(t *testing.T, r *rig, m vmm.Machine, pid string) {
	t.Helper()
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	id := m.Record().ID
	g := h.Group(id)
	for _, d := range g.Dirs() {
		if !slices.Contains(strings.Fields(readFile(t, filepath.Join(d, "cgroup.procs"))), pid) {
			t.Errorf("the monitor is not in %s", d)
		}
	}
	for _, d := range g.Dirs() {
		for name, most := range map[string]int64{
			"memory.max": (payload.MinMemoryMB + 64) << 20, "memory.limit_in_bytes": (payload.MinMemoryMB + 64) << 20,
			"pids.max": 65, "cpu.cfs_quota_us": 100_000,
		} {
			b, err := os.ReadFile(filepath.Join(d, name))
			if err != nil {
				continue // of the other version
			}
			if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err != nil || n <= 0 || n > most {
				t.Errorf("%s is %s", name, b)
			}
		}
	}
}

func link(t *testing.T, path string) string {
	t.Helper()
	s, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// limit is the soft limit in a line of /proc/PID/limits; -1 when it is not a number.
func limit(limits, what string) int {
	for line := range strings.Lines(limits) {
		if rest, ok := strings.CutPrefix(line, what); ok {
			if n, err := strconv.Atoi(strings.Fields(rest)[0]); err == nil {
				return n
			}
		}
	}
	return -1
}

// TestMonitorThatHangs stops a monitor with a signal: it is killed, and why is told.
func TestMonitorThatHangs(t *testing.T) {
	r := newRig(t, func(c *firecracker.Config) {
		c.Watch = firecracker.Watch{Every: 50 * time.Millisecond, Patience: 500 * time.Millisecond, Strikes: 2}
	})
	m := r.boot("hung")
	pid, err := strconv.Atoi(monitorOf(t, m))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	x, err := m.Wait(r.ctx)
	if err != nil || x.Reason != tartarus.ReasonCrashed || !strings.Contains(x.Message, "did not answer") {
		t.Errorf("the machine ended with %+v, %v", x, err)
	}
	if err := m.Pause(r.ctx); !tartarus.Is(err, tartarus.GuestGone) {
		t.Errorf("pause after its end: %v", err)
	}
}

// TestGuestThatWritesWithoutEnd keeps only the end of what a guest writes, in memory.
func TestGuestThatWritesWithoutEnd(t *testing.T) {
	r := newRig(t, nil)
	m := r.boot("loud")
	c, err := console(m)
	if err != nil {
		t.Fatal(err)
	}
	began := c.End()
	for c.End()-began < 24<<10 {
		if _, err := c.Write([]byte(strings.Repeat("c\n", 50))); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Next(r.ctx, c.End()); err != nil {
			t.Fatal(err)
		}
	}
	if b, _, err := c.Next(r.ctx, 0); err != nil || len(b) > 16<<10 {
		t.Errorf("%d bytes are kept, %v", len(b), err)
	}
}

// TestTenClonesAtOnce restores ten machines of one snapshot at the same time, each with memory of its own.
func TestTenClonesAtOnce(t *testing.T) {
	r := newRig(t, nil)
	src := r.boot("src")
	r.do(src, payload.Fill)
	r.do(src, payload.Keep('k', "of the source"))
	snap := r.snapshot(src)
	clones := make([]vmm.Machine, 10)
	var wg sync.WaitGroup
	for i := range clones {
		wg.Go(func() {
			m, err := r.driver.Restore(r.ctx, r.config(fmt.Sprintf("clone%d", i)), snap)
			if err != nil {
				t.Error(err)
				return
			}
			clones[i] = m
		})
	}
	wg.Wait()
	for _, m := range clones {
		if m != nil {
			r.keep(m)
		}
	}
	if t.Failed() {
		return
	}
	for i, m := range clones {
		r.equal(r.ask(m, payload.Give('k')), "of the source")
		r.do(m, payload.Keep('k', strconv.Itoa(i)))
		r.do(m, payload.Verify)
	}
	for i, m := range clones {
		r.equal(r.ask(m, payload.Give('k')), strconv.Itoa(i))
		r.counts(m)
	}
	r.equal(r.ask(src, payload.Give('k')), "of the source")
}
