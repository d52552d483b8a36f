package qemu_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/qemu"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/vmmtest"
)

// machine boots one, or skips where none can run.
func machine(t *testing.T, args ...string) (vmm.Machine, string) {
	t.Helper()
	return rated(t, 0, 0, args...)
}

// rated is machine under rates of the disk.
func rated(t *testing.T, bytes, ops int64, args ...string) (vmm.Machine, string) {
	t.Helper()
	dir := t.TempDir()
	c := config(dir)
	c.DiskBytes, c.DiskOps = bytes, ops
	d, err := qemu.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if s := d.Probe(t.Context()); !s.Usable {
		t.Skipf("driver qemu: %s", s.Reason)
	}
	id := "t" + tartarus.NewTemplateID()[:8]
	m, err := d.Boot(t.Context(), vmm.Config{
		ID: id, RootFS: vmmtest.Image(t), Args: append([]string{vmmtest.GuestPath}, args...), Hostname: "h",
		Resources: tartarus.Resources{VCPU: 1, MemoryMB: 128, DiskMB: 16, PIDs: 32},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return m, filepath.Join(dir, id)
}

// status reads fields of a process's status.
func status(t *testing.T, path string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		out[name] = strings.Join(strings.Fields(value), " ")
	}
	return out
}

// TestJail reads from /proc how a running QEMU is kept, and what it can reach.
func TestJail(t *testing.T) {
	stray, err := unix.Open(filepath.Join(t.TempDir(), "stray"), unix.O_CREAT|unix.O_RDWR, 0o600) // survives an exec
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stray)
	m, dir := machine(t, "init")
	var state struct {
		Process struct{ PID int }
		User    int
	}
	if err := json.Unmarshal(m.Record().State, &state); err != nil {
		t.Fatal(err)
	}
	proc := "/proc/" + strconv.Itoa(state.Process.PID)
	user := strconv.Itoa(state.User)
	tasks, err := filepath.Glob(proc + "/task/*/status")
	if err != nil || len(tasks) < 2 {
		t.Fatalf("threads: %v, %v", tasks, err)
	}
	for _, task := range tasks {
		now := status(t, task)
		for field, want := range map[string]string{
			"Uid": fmt.Sprintf("%[1]s %[1]s %[1]s %[1]s", user), "Gid": fmt.Sprintf("%[1]s %[1]s %[1]s %[1]s", user), "Groups": "",
			"NoNewPrivs": "1", "Seccomp": "2", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
			"CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "CapInh": "0000000000000000",
		} {
			if now[field] != want {
				t.Errorf("%s of %s is %q, want %q", field, task, now[field], want)
			}
		}
	}
	descriptors, err := filepath.Glob(proc + "/fd/*")
	if err != nil || len(descriptors) == 0 {
		t.Fatalf("descriptors: %v", err)
	}
	for _, link := range descriptors {
		if to, err := os.Readlink(link); err == nil && filepath.Base(to) == "stray" {
			t.Errorf("it has %s, which it was not given", to)
		}
	}
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts"} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		its, err2 := os.Readlink(proc + "/ns/" + ns)
		if err != nil || err2 != nil || own == its {
			t.Errorf("namespace %s: ours %s, QEMU's %s, %v %v", ns, own, its, err, err2)
		}
	}
	if b, err := os.ReadFile(proc + "/oom_score_adj"); err != nil || strings.TrimSpace(string(b)) != "500" {
		t.Errorf("score %s, %v", b, err)
	}
	if b, err := os.ReadFile(proc + "/net/dev"); err != nil || strings.Count(string(b), ":") != 1 {
		t.Errorf("its network has %s, %v", b, err)
	}
	limits := status(t, proc+"/limits")
	if len(limits) > 0 {
		b, _ := os.ReadFile(proc + "/limits")
		if !strings.Contains(strings.Join(strings.Fields(string(b)), " "), "Max core file size 0 0") {
			t.Errorf("limits: %s", b)
		}
	}
	root := proc + "/root"
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "usr", "lib", "lib64", "etc", "dev", "proc":
		default:
			t.Errorf("its root has /%s", e.Name())
		}
	}
	for _, hidden := range []string{dir, "/root", "/home", "/etc/passwd", "/etc/shadow", "/run", "/tmp", "/var", "/sys", "/dev/mem", "/dev/net/tun", "/dev/sda", "/dev/vda"} {
		if _, err := os.Lstat(root + hidden); err == nil {
			t.Errorf("it sees %s", hidden)
		}
	}
	for _, mount := range strings.Split(strings.TrimSpace(read(t, proc+"/mounts")), "\n") {
		f := strings.Fields(mount)
		options := strings.Split(f[3], ",")
		if f[1] != "/dev" && !has(options, "ro") || !has(options, "nosuid") {
			t.Errorf("mounted %s", mount)
		}
	}
}

func has(list []string, want string) bool {
	for _, s := range list {
		if s == want {
			return true
		}
	}
	return false
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestHostMemory takes away the memory that QEMU has on the host: what the kernel kills then ended for want of memory.
func TestHostMemory(t *testing.T) {
	m, dir := machine(t, "init")
	var limit string
	for _, pattern := range []string{"/sys/fs/cgroup/memory/tartarus/%s/memory.limit_in_bytes", "/sys/fs/cgroup/tartarus/%s/memory.max"} {
		if path := fmt.Sprintf(pattern, filepath.Base(dir)); exists(path) {
			limit = path
		}
	}
	if limit == "" {
		t.Fatal("no control group with a memory limit")
	}
	before := strings.TrimSpace(read(t, limit))
	if n, err := strconv.Atoi(before); err != nil || n < 128<<20 || n > 512<<20 {
		t.Errorf("the limit is %s", before)
	}
	// What is used already cannot be put under a limit below it on v1; the guest goes on touching memory until it reaches it.
	u, err := m.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = os.WriteFile(strings.Replace(limit, "limit_in_bytes", "memsw.limit_in_bytes", 1), []byte("-1"), 0)
	for at := u.MemoryBytes; at > 1<<20; at = at * 9 / 10 {
		if os.WriteFile(limit, []byte(strconv.FormatInt(at, 10)), 0) != nil {
			break
		}
	}
	x := ends(t, m)
	if x.Reason != tartarus.ReasonOOM {
		t.Errorf("ended: %+v", x)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func ends(t *testing.T, m vmm.Machine) vmm.Exit {
	t.Helper()
	const patience = 2 * time.Minute
	type end struct {
		x   vmm.Exit
		err error
	}
	done := make(chan end, 1)
	go func() {
		x, err := m.Wait(t.Context())
		done <- end{x, err}
	}()
	select {
	case e := <-done:
		if e.err != nil {
			t.Fatal(e.err)
		}
		return e.x
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	return vmm.Exit{}
}

// TestPanic has the guest's kernel panic.
func TestPanic(t *testing.T) {
	m, _ := machine(t, "panic")
	if x := ends(t, m); x.Reason != tartarus.ReasonCrashed || !strings.Contains(x.Message, "panicked: sysrq triggered crash") {
		t.Errorf("ended: %+v", x)
	}
}
