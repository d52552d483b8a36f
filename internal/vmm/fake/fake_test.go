package fake_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/fake"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	var hosts sync.Map // a state folder stands for a host
	const noGuest, noProcess = "runs no guest", "its machines live in one process"
	vmmtest.Run(t, vmmtest.Factory{
		New: func(dir string) (vmm.Driver, error) {
			h, _ := hosts.LoadOrStore(dir, fake.NewHost())
			return fake.New(fake.Config{Host: h.(*fake.Host)})
		},
		RootFS: func(t testing.TB) string {
			path := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		},
		Skips: map[string]string{
			"args env hostname": noGuest, "exec": noGuest, "limit memory": noGuest, "limit disk": noGuest,
			"limit pids": noGuest, "limit pids of a wild fork bomb": noGuest, "limit cpu": noGuest, "network": noGuest,
			"no network": noGuest, "pause and resume": noGuest, "snapshot and restore": noGuest,
			"restore three at once": noGuest, "snapshot of a paused machine": noGuest, "snapshot that fails": noGuest,
			"ended by itself": noGuest, "boot that fails": noGuest, "adopt": noProcess, "adopt a paused machine": noProcess,
			"adopt refuses another process": noProcess, "adopt a dead machine": noProcess, "leftovers": noProcess,
		},
	})
}

func machine(t *testing.T, d *fake.Driver, id string) vmm.Machine {
	t.Helper()
	m, err := d.Boot(t.Context(), vmm.Config{ID: id, RootFS: os.DevNull})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func newDriver(t *testing.T, c fake.Config) *fake.Driver {
	t.Helper()
	d, err := fake.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestMachinesOutliveTheirDriver(t *testing.T) {
	host := fake.NewHost()
	before := newDriver(t, fake.Config{Host: host})
	m := machine(t, before, "one")
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	machine(t, before, "two")
	machine(t, before, "three")
	host.Machine("three").End(tartarus.ReasonCrashed, "while nobody looked")

	after := newDriver(t, fake.Config{Host: host})
	if _, err := after.Adopt(t.Context(), m.Record()); err != nil {
		t.Fatal(err)
	}
	if !host.Machine("one").Paused() {
		t.Error("the adopted machine forgot that it is paused")
	}
	if _, err := after.Adopt(t.Context(), vmm.Record{Driver: fake.Name, ID: "three"}); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("a dead machine was adopted: %v", err)
	}
	nobody := func(string) bool { return false }
	found, err := after.Leftovers(t.Context(), nobody, true)
	if err != nil || len(found) != 1 || found[0].Name != "two" {
		t.Errorf("leftovers are %v, %v", found, err)
	}
	if host.Len() != 1 {
		t.Errorf("%d machines are left", host.Len())
	}
}

func TestEndsAndFaults(t *testing.T) {
	broken := errors.New("injected")
	fault := ""
	d := newDriver(t, fake.Config{Fault: func(_ context.Context, op, id string) error {
		if op == fault {
			return broken
		}
		return nil
	}})
	m := machine(t, d, "one")
	for op, do := range map[string]func() error{
		"boot": func() error {
			_, err := d.Boot(t.Context(), vmm.Config{ID: "two", RootFS: os.DevNull})
			return err
		},
		"pause":    func() error { return m.Pause(t.Context()) },
		"resume":   func() error { return m.Resume(t.Context()) },
		"snapshot": func() error { return m.Snapshot(t.Context(), t.TempDir()) },
		"usage":    func() error { _, err := m.Usage(t.Context()); return err },
		"stop":     func() error { return m.Stop(t.Context()) },
	} {
		fault = op
		if err := do(); !errors.Is(err, broken) {
			t.Errorf("%s: %v", op, err)
		}
	}
	fault = ""
	m.(*fake.Machine).End(tartarus.ReasonOOM, "injected")
	if err := m.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if x, err := m.Wait(t.Context()); err != nil || x.Reason != tartarus.ReasonOOM {
		t.Errorf("exit is %+v, %v", x, err)
	}
}

// TestRefusesOutsideTests runs a program that is neither a test nor a benchmark.
func TestRefusesOutsideTests(t *testing.T) {
	dir := t.TempDir()
	source := `package main

import "github.com/tartarus-sandbox/tartarus/internal/vmm/fake"

func main() {
	if _, err := fake.New(fake.Config{}); err != nil {
		print("refused")
	}
	if _, err := fake.New(fake.Config{Benchmark: true}); err == nil {
		print(" allowed")
	}
}
`
	path := filepath.Join(dir, "main.go")
	if err := os.WriteFile(path, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	// Inside the module's internal folder as far as the compiler is concerned: by an overlay.
	overlay := filepath.Join(dir, "overlay.json")
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(here, "outside", "main.go")
	if err := os.WriteFile(overlay, []byte(`{"Replace":{"`+at+`":"`+path+`"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "run", "-overlay", overlay, "./outside").CombinedOutput()
	if err != nil && strings.Contains(string(out), "executable file not found") {
		t.Skip("no go tool")
	}
	if string(out) != "refused allowed" {
		t.Errorf("outside tests it says %q, %v", out, err)
	}
}
