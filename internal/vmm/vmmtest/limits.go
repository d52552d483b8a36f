package vmmtest

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

func limitMemory(e *env) {
	other := e.start(e.config("mem2"))
	m := e.start(e.config("mem1"))
	total := 0
	fmt.Sscanf(strings.SplitN(e.do(m, "cat", "/proc/meminfo"), "\n", 2)[0], "MemTotal: %d kB", &total)
	if total < 192<<10 || total > 256<<10 {
		e.Errorf("a guest limited to 256 MiB sees %d KiB", total)
	}
	if out := e.do(m, "eat", "64"); out != "ate 64" {
		e.Errorf("64 MiB of 256: %s", out)
	}
	if out, code, err := e.try(m, "eat", "1024", "60"); err == nil && code == 0 {
		e.Errorf("1024 MiB of 256: %s", out)
	}
	if e.factory.OwnKernel { // it has killed the eater, and the host knows of no shortage
		e.counts(m, e.count(m))
		e.counts(other, e.count(other))
		u, err := m.Usage(e.ctx)
		if err != nil || u.MemoryBytes > 1024<<20 {
			e.Errorf("on the host it uses %d MiB, %v", u.MemoryBytes>>20, err)
		}
		return
	}
	x := e.ends(m)
	e.equal("reason", x.Reason, tartarus.ReasonOOM)
	if err := m.Stop(e.ctx); err != nil {
		e.Error(err)
	}
	e.equal("reason after Stop", e.ends(m).Reason, tartarus.ReasonOOM)
	e.counts(other, e.count(other))
}

func limitDisk(e *env) {
	m := e.start(e.config("disk1"))
	e.count(m) // its first process ends when it has no room for the counter's file
	for i, path := range []string{"/big", "/tmp/big"} {
		var wrote int
		var full bool
		out := e.do(m, "fill", path)
		if _, err := fmt.Sscanf(out, "wrote %d full %t", &wrote, &full); err != nil || !full || wrote > 64 {
			e.Errorf("%s: %s", path, out)
		}
		if i == 0 && wrote < 56 {
			e.Errorf("only %d of 64 MiB could be written", wrote)
		}
		u, err := m.Usage(e.ctx)
		if err != nil || u.DiskBytes < 48<<20 || u.DiskBytes > 80<<20 {
			e.Errorf("the host says %d MiB, %v", u.DiskBytes>>20, err)
		}
	}
	e.equal("output", e.do(m, "args", "alive"), "alive")
}

func limitPIDs(e *env) {
	m := e.start(e.config("pids1"))
	for range 2 { // what it ended is free again
		var started int
		var refused bool
		out := e.do(m, "bomb", "500")
		if _, err := fmt.Sscanf(out, "started %d refused %t", &started, &refused); err != nil || !refused || started > 64 || started < 8 {
			e.Errorf("a guest limited to 64 processes: %s", out)
		}
	}
	// As the guest's root, by every means it has.
	e.Log(e.do(m, "remount"))
	out := e.do(m, "bomb", "500")
	if !strings.Contains(out, "refused true") {
		e.Errorf("the guest lifted its limit: %s", out)
	}
}

func wildForkBomb(e *env) {
	other := e.start(e.config("wild2"))
	m := e.start(e.config("wild1"))
	done := make(chan struct{})
	e.count(m)
	go func() {
		defer close(done)
		_, _, _ = e.try(m, "wild") // ends with the machine
	}()
	most := int64(0)
	for range 20 { // long enough to reach the limit many times over
		e.pause(50 * time.Millisecond)
		u, err := m.Usage(e.ctx)
		if err != nil {
			e.Fatal(err)
		}
		most = max(most, u.PIDs)
	}
	if most > 1000 {
		e.Errorf("%d threads on the host for a guest that may have 64", most)
	}
	e.Logf("at most %d threads on the host", most)
	e.counts(other, e.count(other))
	ctx, cancel := context.WithTimeout(e.ctx, 50*time.Millisecond)
	defer cancel()
	if x, err := m.Wait(ctx); err == nil {
		e.Errorf("the machine ended: %+v", x)
	}
	t0 := time.Now()
	if err := m.Stop(e.ctx); err != nil {
		e.Fatal(err)
	}
	e.Logf("stopped in %s", time.Since(t0))
	<-done
}

func limitCPU(e *env) {
	m := e.start(e.config("cpu1"))
	if n, err := strconv.Atoi(e.do(m, "cpus")); err != nil || n != 1 {
		e.Errorf("a guest with one processor sees %d, %v", n, err)
	}
	if runtime.NumCPU() < 2 {
		return // nothing to be limited to
	}
	before, err := m.Usage(e.ctx)
	if err != nil {
		e.Fatal(err)
	}
	t0 := time.Now()
	e.do(m, "spin", "4", "800")
	wall := time.Since(t0)
	after, err := m.Usage(e.ctx)
	if err != nil {
		e.Fatal(err)
	}
	// A period's worth can be left over from before and be used at the end.
	if used := after.CPU - before.CPU; used > wall+250*time.Millisecond {
		e.Errorf("one processor gave %s of time in %s", used, wall)
	}
}
