package gvisor_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/gvisor"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/vmmtest"
)

// boot starts a machine that the test's end stops, and tells its sandbox process.
func boot(t *testing.T) (vmm.Machine, int) {
	t.Helper()
	d, err := gvisor.New(gvisor.Config{Dir: t.TempDir(), Program: program(t)})
	if err != nil {
		t.Fatal(err)
	}
	if s := d.Probe(t.Context()); !s.Usable {
		t.Skip(s.Reason)
	}
	m, err := d.Boot(t.Context(), vmm.Config{
		ID: "iso" + strconv.Itoa(os.Getpid()), RootFS: vmmtest.Image(t), Args: []string{vmmtest.GuestPath, "init"},
		Resources: tartarus.Resources{VCPU: 1, MemoryMB: 256, DiskMB: 64, PIDs: 64},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Stop(t.Context()); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	var state struct {
		Process struct {
			PID int `json:"pid"`
		} `json:"process"`
	}
	if err := json.Unmarshal(m.Record().State, &state); err != nil || state.Process.PID == 0 {
		t.Fatalf("record %s, %v", m.Record().State, err)
	}
	return m, state.Process.PID
}

// status reads the fields of a process's status file.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		fields[k] = strings.Join(strings.Fields(v), " ")
	}
	return fields
}

// TestSandboxProcess looks at a sandbox process from the host.
func TestSandboxProcess(t *testing.T) {
	ours, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	m, pid := boot(t)
	defer m.Stop(t.Context())
	s := status(t, pid)
	for key, want := range map[string]string{
		"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "Groups": "",
		"NoNewPrivs": "1", "Seccomp": "2", "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
	} {
		if s[key] != want {
			t.Errorf("%s is %q, want %q", key, s[key], want)
		}
	}
	// The one power left, over its own children and in its own user namespace, is to trace them.
	for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
		if s[set] != fmt.Sprintf("%016x", 1<<unix.CAP_SYS_PTRACE) {
			t.Errorf("%s is %s", set, s[set])
		}
	}
	for _, ns := range []string{"user", "pid", "mnt", "ipc", "uts", "net"} {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		mine, _ := os.Readlink("/proc/self/ns/" + ns)
		if err != nil || theirs == mine {
			t.Errorf("it shares our %s namespace (%v)", ns, err)
		}
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("its session is %d, %v: a terminal's signals would reach it", sid, err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); err != nil || strings.TrimSpace(string(b)) != "500" {
		t.Errorf("oom_score_adj is %s, %v", b, err)
	}
	if now, err := os.ReadFile("/proc/self/cgroup"); err != nil || !bytes.Equal(now, ours) {
		t.Errorf("starting it moved us from %s to %s", ours, now)
	}
	if entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid)); err != nil || len(entries) > 2 {
		t.Errorf("its root holds %v, %v", entries, err)
	}
	checkFiles(t, pid)
}

// checkFiles makes sure that a sandbox process holds nothing of ours open.
func checkFiles(t *testing.T, pid int) {
	t.Helper()
	var ours []string
	for fd := range 3 {
		if to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil && to != os.DevNull {
			ours = append(ours, to)
		}
	}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(fds) == 0 {
		t.Fatalf("no open files, %v", err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err != nil {
			continue // closed meanwhile
		}
		if slices.Contains(ours, to) {
			t.Errorf("it holds our %s", to)
		}
		if info, err := os.Stat(fd); err == nil && info.IsDir() {
			t.Errorf("it holds the folder %s", to)
		}
	}
}

// TestWholeTreeIsCaged makes sure that every process that serves a machine is in its control group and is nobody.
func TestWholeTreeIsCaged(t *testing.T) {
	m, pid := boot(t)
	defer m.Stop(t.Context())
	// Every stub process is a child of the sandbox process, in its pid namespace.
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		t.Fatal(err)
	}
	group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !strings.Contains(string(group), "/tartarus/"+m.Record().ID) {
		t.Fatalf("its control group is %s, %v", group, err)
	}
	found := 0
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		p, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p)); err != nil || ns != want {
			continue
		}
		found++
		if theirs, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p)); err == nil && !bytes.Equal(theirs, group) {
			t.Errorf("process %d is in %s", p, theirs)
		}
		if uid := status(t, p)["Uid"]; !strings.HasPrefix(uid, "65534 ") {
			t.Errorf("process %d is user %s", p, uid)
		}
	}
	if found < 2 {
		t.Errorf("found only %d processes", found)
	}
}

// TestSetUserID is what sudo needs.
func TestSetUserID(t *testing.T) {
	m, _ := boot(t)
	defer m.Stop(t.Context())
	var out bytes.Buffer
	code, err := m.(vmm.Execer).Exec(t.Context(), []string{vmmtest.GuestPath, "as", "1000", vmmtest.GuestPath + "-root", "uid"}, &out)
	if err != nil || code != 0 || strings.TrimSpace(out.String()) != "1000 0" {
		t.Errorf("a set-user-id program runs as %q, code %d, %v", out.String(), code, err)
	}
	// And without the bit one stays who one is.
	out.Reset()
	code, err = m.(vmm.Execer).Exec(t.Context(), []string{vmmtest.GuestPath, "as", "1000", vmmtest.GuestPath, "uid"}, &out)
	if err != nil || code != 0 || strings.TrimSpace(out.String()) != "1000 1000" {
		t.Errorf("a program runs as %q, code %d, %v", out.String(), code, err)
	}
}

func TestProbe(t *testing.T) {
	odd := filepath.Join(t.TempDir(), "odd")
	if err := os.WriteFile(odd, []byte("not a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := gvisor.New(gvisor.Config{Dir: t.TempDir(), Program: odd})
	if err != nil {
		t.Fatal(err)
	}
	s := d.Probe(t.Context())
	if s.Usable || s.Reason == "" || s.Tier != tartarus.TierUserKernel || s.Version == "" {
		t.Errorf("support with a broken program is %+v", s)
	}
	private := filepath.Join(t.TempDir(), "private")
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(private, b, 0o700); err != nil {
		t.Fatal(err)
	}
	if d, err = gvisor.New(gvisor.Config{Dir: t.TempDir(), Program: private}); err != nil {
		t.Fatal(err)
	}
	if s := d.Probe(t.Context()); s.Usable || s.Reason == "" {
		t.Errorf("support with a private program is %+v", s)
	}
	if _, err := gvisor.New(gvisor.Config{}); err == nil {
		t.Error("a driver without a folder")
	}
}

// TestStrayDescriptors starts a machine while this process has descriptors that survive an exec, two of them where runsc puts a guest's standard
// streams: it starts all the same, and has none of them.
func TestStrayDescriptors(t *testing.T) {
	secret, err := os.Create(filepath.Join(t.TempDir(), "secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	for _, n := range []int{199, 253, 254} {
		if _, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0); err == nil {
			t.Skipf("needs the descriptor %d, which is in use", n)
		}
		if err := unix.Dup3(int(secret.Fd()), n, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(n) })
	}
	_, pid := boot(t)
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(links) == 0 {
		t.Fatalf("no descriptors: %v", err)
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && to == secret.Name() {
			t.Errorf("the sandbox process has %s as descriptor %s", to, filepath.Base(link))
		}
	}
}
