package vmmtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// managerEnv carries what a manager process shall do.
const managerEnv = "TARTARUS_VMMTEST_MANAGER"

// order is what a manager process shall do: boot a machine and wait to be killed.
type order struct {
	Dir    string     `json:"dir"`
	Config vmm.Config `json:"config"`
	Pause  bool       `json:"pause"`
	Host   string     `json:"host,omitempty"` // network namespace from which the guest is reached, where verbs go over the network
}

// report is what it did.
type report struct {
	Record vmm.Record `json:"record"`
	Count  int        `json:"count"`
	Error  string     `json:"error"`
}

// Manager must be called by TestMain, before the tests: where the test binary was started to be a manager that will
// be killed, it is one, and does not return.
func Manager(f Factory) {
	what := os.Getenv(managerEnv)
	if what == "" {
		return
	}
	var r report
	if err := manage(f, what, &r); err != nil {
		r.Error = err.Error()
	}
	_ = json.NewEncoder(os.Stdout).Encode(r)
	_, _ = io.Copy(io.Discard, os.Stdin) // until killed, or until the test has died
	os.Exit(0)
}

func manage(f Factory, what string, r *report) error {
	var o order
	if err := json.Unmarshal([]byte(what), &o); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), f.patience()/2)
	defer cancel()
	d, err := f.New(o.Dir)
	if err != nil {
		return err
	}
	m, err := d.Boot(ctx, o.Config)
	if err != nil {
		return err
	}
	for r.Count == 0 && ctx.Err() == nil {
		out, err := runVerb(ctx, f, o, m, "cat", "/count")
		if err != nil {
			return err
		}
		r.Count, _ = strconv.Atoi(out)
	}
	if o.Pause {
		if err := m.Pause(ctx); err != nil {
			return err
		}
	}
	r.Record = m.Record()
	return ctx.Err()
}

func runVerb(ctx context.Context, f Factory, o order, m vmm.Machine, verb ...string) (string, error) {
	argv := append([]string{GuestPath}, verb...)
	if o.Host != "" {
		host, err := os.Open(o.Host)
		if err != nil {
			return "", err
		}
		defer host.Close()
		out, _, err := dialVerb(ctx, m, host, o.Config.Interface.Address.Addr(), argv)
		return out, err
	}
	if f.Exec != nil {
		out, _, err := f.Exec(ctx, m, argv)
		return strings.TrimSpace(out), err
	}
	x, ok := m.(vmm.Execer)
	if !ok {
		return "", fmt.Errorf("machine cannot execute")
	}
	var out bytes.Buffer
	_, err := x.Exec(ctx, argv, &out)
	return strings.TrimSpace(out.String()), err
}

// manager is another process that booted a machine.
type manager struct {
	cmd    *exec.Cmd
	record vmm.Record
	count  int // how far the machine had counted
}

// startManager has another process boot a machine in this row's folder.
func (e *env) startManager(id string, pause bool) *manager {
	e.Helper()
	o := order{Dir: e.dir, Config: e.config(id), Pause: pause}
	if s := e.slots[o.Config.ID]; s != nil {
		o.Host = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.host.Fd())
	}
	what, err := json.Marshal(o)
	if err != nil {
		e.Fatal(err)
	}
	cmd := exec.CommandContext(e.ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), managerEnv+"="+string(what))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		e.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil {
		e.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		e.Fatal(err)
	}
	m := &manager{cmd: cmd}
	e.after = append(e.after, m.kill)
	var r report
	if err := json.NewDecoder(bufio.NewReader(out)).Decode(&r); err != nil || r.Error != "" {
		e.Fatalf("manager process: %s, %v", r.Error, err)
	}
	m.record, m.count = r.Record, r.Count
	return m
}

// kill ends the manager without any warning, as a crash would, and with it its whole process group.
func (m *manager) kill() {
	if m.cmd.ProcessState == nil {
		_ = m.cmd.Process.Signal(unix.SIGKILL)
		_ = m.cmd.Wait()
	}
}

// replaceNumber changes the number called key, wherever it is in a driver's state.
func replaceNumber(e *env, state json.RawMessage, key string, value int64) json.RawMessage {
	e.Helper()
	var v any
	d := json.NewDecoder(bytes.NewReader(state))
	d.UseNumber() // start times do not fit into a float
	if err := d.Decode(&v); err != nil {
		e.Fatal(err)
	}
	if !replaceIn(v, key, value) {
		e.Skipf("the driver's record has no %q", key)
	}
	return mustJSON(v)
}

func replaceIn(v any, key string, value int64) bool {
	object, ok := v.(map[string]any)
	if !ok {
		return false
	}
	if _, ok := object[key]; ok {
		object[key] = value
		return true
	}
	for _, inner := range object {
		if replaceIn(inner, key, value) {
			return true
		}
	}
	return false
}
