package vmmtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

func boot(e *env) {
	m := e.start(e.config("boot1"))
	r := m.Record()
	e.equal("record's driver", r.Driver, e.driver.Name())
	e.equal("record's id", r.ID, prefix+"boot1")
	u, err := m.Usage(e.ctx)
	if err != nil || u.MemoryBytes <= 0 || u.PIDs <= 0 || u.CPU <= 0 {
		e.Errorf("usage of a running machine is %+v, %v", u, err)
	}
	if err := m.Stop(e.ctx); err != nil {
		e.Fatal(err)
	}
	e.equal("reason", e.ends(m).Reason, tartarus.ReasonUser)
}

func argsEnvHostname(e *env) {
	m := e.start(e.config("args1"))
	e.count(m) // files are written before counting starts
	e.equal("arguments", e.do(m, "cat", "/args"), "one\ntwo")
	env := strings.Split(e.do(m, "cat", "/env"), "\n")
	for _, want := range []string{"GREETING=hello", "PATH="} {
		found := false
		for _, got := range env {
			found = found || strings.HasPrefix(got, want)
		}
		if !found {
			e.Errorf("environment %q has no %s", env, want)
		}
	}
	for _, got := range env {
		if strings.HasPrefix(got, "TARTARUS_") {
			e.Errorf("the guest sees %q", got)
		}
	}
	e.equal("hostname", e.do(m, "hostname"), "h-args1")
	e.equal("user", e.do(m, "uid"), "0 0")
}

func execute(e *env) {
	m := e.start(e.config("exec1"))
	e.equal("output", e.do(m, "args", "a b", "", "c"), "a b||c")
	_, code, err := e.try(m, "exit", "7")
	if code != 7 || err != nil {
		e.Errorf("exit 7 gives %d, %v", code, err)
	}
	x, ok := m.(vmm.Execer)
	if !ok {
		return
	}
	if _, err := x.Exec(e.ctx, []string{"/does/not/exist"}, os.Stderr); err != nil {
		e.is(err, tartarus.NotFound)
	} else {
		e.Error("a program that does not exist ran")
	}
	// Much output and a slow reader: nothing is lost, and something left behind that writes for ever holds nobody up.
	var slow slowCounter
	if code, err := x.Exec(e.ctx, []string{GuestPath, "pour", "8"}, &slow); code != 0 || err != nil || slow < 8<<20 {
		e.Errorf("8 MiB of output: %d bytes, code %d, %v", slow, code, err)
	}
	ctx, cancel := context.WithCancel(e.ctx)
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := x.Exec(ctx, []string{GuestPath, "sleep", "30"}, os.Stderr); !errors.Is(err, context.Canceled) {
		e.Errorf("exec whose context ends gives %v", err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { e.equal("output", e.do(m, "args", "x"), "x") })
	}
	wg.Wait()
	if err := m.Stop(e.ctx); err != nil {
		e.Fatal(err)
	}
	_, err = x.Exec(e.ctx, []string{GuestPath, "args"}, os.Stderr)
	e.is(err, tartarus.GuestGone)
}

// slowCounter is a reader that takes its time.
type slowCounter int

func (s *slowCounter) Write(b []byte) (int, error) {
	*s += slowCounter(len(b))
	time.Sleep(time.Millisecond)
	return len(b), nil
}

func stopIdempotent(e *env) {
	m := e.start(e.config("stop1"))
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if err := m.Stop(e.ctx); err != nil {
				e.Error(err)
			}
		})
	}
	wg.Wait()
	if err := m.Stop(e.ctx); err != nil {
		e.Error(err)
	}
	e.equal("reason", e.ends(m).Reason, tartarus.ReasonUser)
	_, err := m.Usage(e.ctx)
	e.is(err, tartarus.GuestGone)
	e.is(m.Pause(e.ctx), tartarus.GuestGone)
	e.is(m.Resume(e.ctx), tartarus.GuestGone)
	e.is(m.Snapshot(e.ctx, e.folder("none")), tartarus.GuestGone)

	t0 := time.Now()
	again := e.start(e.config("stop1")) // the id is free again
	booted := time.Now()
	if err := again.Stop(e.ctx); err != nil {
		e.Fatal(err)
	}
	e.Logf("boot %s, stop %s", booted.Sub(t0), time.Since(booted))
}

func endedByItself(e *env) {
	c := e.config("end1")
	if e.can(Linux) {
		c.Args = []string{GuestPath, "exit", "7"}
	}
	m := e.start(c)
	if !e.can(Linux) {
		e.do(m, "end")
	}
	x := e.ends(m)
	e.equal("reason", x.Reason, tartarus.ReasonCrashed)
	if x.Message == "" {
		e.Error("an end without a message")
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { e.equal("exit", e.ends(m), x) })
	}
	wg.Wait()
	if err := m.Stop(e.ctx); err != nil {
		e.Error(err)
	}
	e.equal("exit after Stop", e.ends(m), x)
}

func waitContext(e *env) {
	m := e.start(e.config("wait1"))
	ctx, cancel := context.WithTimeout(e.ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := m.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		e.Errorf("wait gives %v", err)
	}
}

func sameID(e *env) {
	m := e.start(e.config("same1"))
	for _, d := range []vmm.Driver{e.driver, e.open()} {
		_, err := d.Boot(e.ctx, e.config("same1"))
		e.is(err, tartarus.Conflict)
	}
	_, err := e.driver.Adopt(e.ctx, m.Record())
	e.is(err, tartarus.Conflict)
	e.alive(m)
}

func relatedIDs(e *env) {
	var all []vmm.Machine
	for _, id := range []string{"rel", "rel1", "rel11"} {
		all = append(all, e.start(e.config(id)))
	}
	if _, ok := all[0].(vmm.Execer); ok && e.can(Linux) {
		for i, m := range all {
			e.equal("hostname", e.do(m, "hostname"), []string{"h-rel", "h-rel1", "h-rel11"}[i])
		}
	}
	if err := all[0].Stop(e.ctx); err != nil {
		e.Fatal(err)
	}
	e.alive(all[1])
	e.alive(all[2])
}

func badConfiguration(e *env) {
	for what, change := range map[string]func(*vmm.Config){
		"no id":          func(c *vmm.Config) { c.ID = "" },
		"id with a path": func(c *vmm.Config) { c.ID = "../x" },
		"id with a dash": func(c *vmm.Config) { c.ID = "a-b" },
		"long id":        func(c *vmm.Config) { c.ID = strings.Repeat("a", 64) },
		"no image":       func(c *vmm.Config) { c.RootFS = "" },
		"negative limit": func(c *vmm.Config) { c.Resources.PIDs = -1 },
		"empty device":   func(c *vmm.Config) { c.Interface = &vmm.Interface{} },
	} {
		c := e.config("bad1")
		change(&c)
		if _, err := e.driver.Boot(e.ctx, c); kindOf(err) != tartarus.Invalid {
			e.Errorf("%s: %v", what, err)
		}
	}
	c := e.config("bad1")
	c.RootFS = filepath.Join(e.dir, "nothing")
	_, err := e.driver.Boot(e.ctx, c)
	e.is(err, tartarus.NotFound)
}

func bootFails(e *env) {
	garbage := filepath.Join(e.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("garbage", 4096)), 0o600); err != nil {
		e.Fatal(err)
	}
	for what, change := range map[string]func(*vmm.Config){
		"garbage image": func(c *vmm.Config) { c.RootFS = garbage },
		"no program":    func(c *vmm.Config) { c.Args = []string{"/does/not/exist"} },
		"no namespace": func(c *vmm.Config) {
			c.Interface = e.newSlot(1).guest
			c.Interface.NetNS = filepath.Join(e.dir, "none")
		},
		"no device": func(c *vmm.Config) {
			c.Interface = e.newSlot(2).guest
			c.Interface.Device = "none0"
		},
	} {
		if what == "no program" && !e.can(Linux) {
			continue
		}
		c := e.config("fail1")
		change(&c)
		before := lookAround(e.T, e.dir)
		if m, err := e.driver.Boot(e.ctx, c); err == nil {
			e.Errorf("%s: booted", what)
			e.keep(m)
		} else {
			e.Logf("%s: %v", what, err)
		}
		before.compare(e.T, e.dir)
	}
	e.start(e.config("fail1"))
}

// bootGivenUp ends the caller's context at many moments of a start.
func bootGivenUp(e *env) {
	for _, after := range []time.Duration{0, 1, 3, 6, 10, 15, 20, 30, 40, 55} {
		ctx, cancel := context.WithTimeout(e.ctx, after*time.Millisecond)
		m, err := e.driver.Boot(ctx, e.config("cancel1"))
		if err == nil {
			err = m.Stop(e.ctx)
		} else if ctx.Err() == nil {
			e.Errorf("after %d ms: %v", after, err)
		} else {
			err = nil
		}
		cancel()
		if err != nil {
			e.Fatal(err)
		}
	}
	e.start(e.config("cancel1"))
}

func tenAtOnce(e *env) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	t0 := time.Now()
	for i := range 10 {
		wg.Go(func() {
			c := e.config("ten" + string(rune('a'+i)))
			m, err := e.driver.Boot(e.ctx, c)
			if err != nil {
				e.Error(err)
				return
			}
			mu.Lock()
			e.keep(m)
			mu.Unlock()
			e.alive(m)
		})
	}
	wg.Wait()
	e.Logf("ten machines in %s", time.Since(t0))
}
