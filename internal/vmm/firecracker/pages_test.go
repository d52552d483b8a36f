package firecracker_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/firecracker"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/pagefault"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/payload"
)

// TestPageFaultHandler restores machines whose memory a handler brings in.
func TestPageFaultHandler(t *testing.T) {
	r := newRig(t, func(c *firecracker.Config) { c.PageFaults.Handler = true })
	if err := pagefault.Available(); err != nil {
		t.Skip(err)
	}
	src := r.boot("src")
	r.do(src, payload.Fill)
	r.do(src, payload.Keep('k', "kept"))
	snap := r.snapshot(src)

	first := r.restore("first", snap)
	r.equal(r.ask(first, payload.Give('k')), "kept")
	r.do(first, payload.Verify) // every byte of 16 MiB came through the handler
	pid := pagesOf(t, first)
	status := readFile(t, "/proc/"+pid+"/status")
	for what, want := range map[string]string{"Uid": "", "CapEff": "0000000000000000", "NoNewPrivs": "1", "Groups": ""} {
		got := field(status, what)
		if what == "Uid" {
			ids := strings.Fields(got)
			if len(ids) != 4 || ids[0] == "0" || ids[0] != ids[1] || ids[0] == field(readFile(t, "/proc/"+monitorOf(t, first)+"/status"), "Uid")[:len(ids[0])] {
				t.Errorf("the handler runs as %q", got)
			}
			continue
		}
		if got != want {
			t.Errorf("%s of the handler is %q, want %q", what, got, want)
		}
	}
	tasks, err := filepath.Glob("/proc/" + pid + "/task/*/status")
	if err != nil || len(tasks) < 2 {
		t.Errorf("threads of the handler: %v, %v", tasks, err)
	}
	for _, task := range tasks {
		s, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		for what, want := range map[string]string{"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "Groups": "", "NoNewPrivs": "1"} {
			if got := field(string(s), what); got != want {
				t.Errorf("%s of a thread of the handler is %q, want %q", what, got, want)
			}
		}
	}
	if root, err := os.ReadDir("/proc/" + pid + "/root"); err != nil || len(root) != 0 {
		t.Errorf("the handler sees %v, %v", root, err)
	}
	if mine, its := netOf(t, "self"), netOf(t, pid); mine == its {
		t.Error("the handler has the host's network")
	}
	r.stop(first) // and with it, its working set is kept

	sets, err := os.ReadDir(filepath.Join(r.dir, "working"))
	if err != nil || len(sets) != 1 {
		t.Fatalf("working sets: %v, %v", sets, err)
	}
	r.eventually("the working set is written", func() bool {
		info, err := os.Stat(filepath.Join(r.dir, "working", sets[0].Name()))
		return err == nil && info.Size() > (16<<20)/pagefault.Unit*4 // the pattern's units, and some
	})
	second := r.restore("second", snap)
	r.do(second, payload.Verify)
	r.do(second, payload.Keep('k', "its own"))
	r.equal(r.ask(r.restore("third", snap), payload.Give('k')), "kept")
	r.do(src, payload.Verify)
}

// TestPageFaultHandlerDies kills one handler of two: its machine ends and says why, the other does not notice.
func TestPageFaultHandlerDies(t *testing.T) {
	r := newRig(t, func(c *firecracker.Config) { c.PageFaults.Handler = true })
	if err := pagefault.Available(); err != nil {
		t.Skip(err)
	}
	src := r.boot("src")
	r.do(src, payload.Fill)
	snap := r.snapshot(src)
	victim, other := r.restore("victim", snap), r.restore("other", snap)
	r.count(victim)
	pid, err := strconv.Atoi(pagesOf(t, victim))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	x, err := victim.Wait(r.ctx)
	if err != nil || x.Reason != tartarus.ReasonCrashed || !strings.Contains(x.Message, "page-fault handler") {
		t.Errorf("the machine ended with %+v, %v", x, err)
	}
	r.do(other, payload.Verify)
	r.do(src, payload.Verify)
}

// TestPageFaultHandlerIsAdopted has another driver take over a machine with its handler.
func TestPageFaultHandlerIsAdopted(t *testing.T) {
	r := newRig(t, func(c *firecracker.Config) { c.PageFaults.Handler = true })
	if err := pagefault.Available(); err != nil {
		t.Skip(err)
	}
	src := r.boot("src")
	r.do(src, payload.Fill)
	record := r.restoreElsewhere("clone", r.snapshot(src))
	m, err := r.open().Adopt(r.ctx, record)
	if err != nil {
		t.Fatal(err)
	}
	r.keep(m)
	r.do(m, payload.Verify)
	pid, _ := strconv.Atoi(pagesOf(t, m))
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if x, err := m.Wait(r.ctx); err != nil || !strings.Contains(x.Message, "page-fault handler") {
		t.Errorf("the machine ended with %+v, %v", x, err)
	}
}

// TestRemoteMemory restores a snapshot whose memory is not in its folder, through an opener of the handler's program.
func TestRemoteMemory(t *testing.T) {
	away := t.TempDir()
	r := newRig(t, func(c *firecracker.Config) {
		c.PageFaults.Remote = func(context.Context, string) (*firecracker.Remote, error) {
			info, err := os.Stat(filepath.Join(away, "memory"))
			if err != nil {
				return nil, err
			}
			return &firecracker.Remote{Kind: "slow", Spec: []byte(strconv.Quote(filepath.Join(away, "memory"))), Size: info.Size()}, nil
		}
	})
	if err := pagefault.Available(); err != nil {
		t.Skip(err)
	}
	src := r.boot("src")
	r.do(src, payload.Fill)
	snap := r.snapshot(src)
	if err := os.Rename(filepath.Join(snap, "memory"), filepath.Join(away, "memory")); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b"} {
		m := r.restore(id, snap)
		r.do(m, payload.Verify)
		r.stop(m)
	}
	// Memory that cannot be read ends the machine, and nothing else.
	if err := os.Truncate(filepath.Join(away, "memory"), 4096); err != nil {
		t.Fatal(err)
	}
	m, err := r.driver.Restore(r.ctx, r.config("c"), snap)
	if err == nil {
		r.keep(m)
		if x, err := m.Wait(r.ctx); err != nil || x.Reason != tartarus.ReasonCrashed {
			t.Errorf("a machine without memory ends with %+v, %v", x, err)
		}
	}
	r.do(src, payload.Verify)
}

func pagesOf(t *testing.T, m vmm.Machine) string {
	t.Helper()
	s := stateOf(t, m)
	if s.Pages == nil {
		t.Fatal(errors.New("the machine has no page-fault handler"))
	}
	return strconv.Itoa(s.Pages.PID)
}

func netOf(t *testing.T, pid string) string {
	t.Helper()
	s, err := os.Readlink("/proc/" + pid + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return s
}
