// Package cgroup gives each machine a control group of its own, with limits, on hosts with cgroup v2 and on
// hosts where the controllers still live in v1 hierarchies. A Group is one named folder below "tartarus" in every
// hierarchy that is used, and Remove leaves none of them behind.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Parent is the folder below which every group is made.
const Parent = "tartarus"

// period is the length of a scheduling period in microseconds: the kernel's default.
const period = 100_000

// controllers are those that limit or count a machine.
var controllers = []string{"cpu", "cpuacct", "memory", "pids"}

// Host is where the control groups of this host are mounted.
type Host struct {
	unified string            // mount point of the v2 hierarchy, when it holds the controllers
	v1      map[string]string // controller to mount point

	mkdir, rmdir func(path string) error // replaced by tests on a tree that no kernel serves
}

// Limits bound a group. A zero field means no limit.
type Limits struct {
	CPUs        int   // whole processors
	MemoryBytes int64 // memory, and no swap beyond it
	PIDs        int64 // host processes and threads
}

// Usage is what a group has used and holds now.
type Usage struct {
	CPU         time.Duration
	MemoryBytes int64 // without page cache that the kernel can drop at once
	PIDs        int64
}

// Detect finds the hierarchies of this host.
func Detect() (*Host, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	defer f.Close()
	h := parse(bufio.NewScanner(f))
	if h.unified == "" && len(h.v1) == 0 {
		return nil, errors.New("find control groups: no hierarchy is mounted below /sys/fs/cgroup")
	}
	return h, nil
}

// parse reads mountinfo lines (proc_pid_mountinfo(5)). Controllers in v1 hierarchies win: the v2 hierarchy beside
// them ("hybrid") has none.
func parse(lines *bufio.Scanner) *Host {
	h := &Host{
		v1:    map[string]string{},
		mkdir: func(path string) error { return os.Mkdir(path, 0o755) },
		rmdir: syscall.Rmdir, // os.Remove would try to unlink first
	}
	unified := ""
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		sep := slices.Index(fields, "-")
		if len(fields) < 5 || sep < 0 || len(fields) < sep+4 {
			continue
		}
		at, kind, options := fields[4], fields[sep+1], fields[sep+3]
		switch kind {
		case "cgroup2":
			if unified == "" {
				unified = at
			}
		case "cgroup":
			for o := range strings.SplitSeq(options, ",") {
				if slices.Contains(controllers, o) && h.v1[o] == "" {
					h.v1[o] = at
				}
			}
		}
	}
	if len(h.v1) == 0 {
		h.unified = unified
	}
	return h
}

// Version is 1 or 2.
func (h *Host) Version() int {
	if h.unified != "" {
		return 2
	}
	return 1
}

// Missing lists the controllers that a machine needs and this host does not offer.
func (h *Host) Missing() []string {
	var missing []string
	have := func(c string) bool { return h.v1[c] != "" }
	if h.unified != "" {
		offered := strings.Fields(readString(filepath.Join(h.unified, "cgroup.controllers")))
		have = func(c string) bool { return slices.Contains(offered, c) }
	}
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !have(c) {
			missing = append(missing, c)
		}
	}
	return missing
}

// bases lists the folders that hold our parent folder, each once.
func (h *Host) bases() []string {
	if h.unified != "" {
		return []string{h.unified}
	}
	var out []string
	for _, c := range controllers {
		if at := h.v1[c]; at != "" && !slices.Contains(out, at) {
			out = append(out, at)
		}
	}
	return out
}

// Group names the group called name, whether it exists or not.
func (h *Host) Group(name string) *Group {
	g := &Group{host: h, name: name}
	for _, b := range h.bases() {
		g.dirs = append(g.dirs, filepath.Join(b, Parent, name))
	}
	return g
}

// Make creates the group called name with its limits. When it fails, nothing of the group is left.
func (h *Host) Make(name string, l Limits) (g *Group, err error) {
	g = h.Group(name)
	made := make([]string, 0, len(g.dirs))
	defer func() {
		if err != nil {
			for _, d := range made {
				_ = h.rmdir(d) // best effort: the first error is the one to tell
			}
		}
	}()
	for _, d := range g.dirs {
		if err := h.delegate(filepath.Dir(d)); err != nil {
			return nil, fmt.Errorf("make control group %s: %w", name, err)
		}
		if err := h.mkdir(d); err != nil {
			return nil, fmt.Errorf("make control group %s: %w", name, err)
		}
		made = append(made, d)
	}
	if err := g.apply(l); err != nil {
		return nil, err
	}
	return g, nil
}

// delegate makes the parent folder and, in v2, turns the controllers on for its children.
func (h *Host) delegate(parent string) error {
	if err := h.mkdir(parent); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if h.unified == "" {
		return nil
	}
	for _, d := range []string{h.unified, parent} {
		path := filepath.Join(d, "cgroup.subtree_control")
		on := strings.Fields(readString(path))
		var missing []string
		for _, c := range []string{"cpu", "memory", "pids"} {
			if !slices.Contains(on, c) {
				missing = append(missing, "+"+c)
			}
		}
		if len(missing) == 0 {
			continue
		}
		if err := write(path, strings.Join(missing, " ")); err != nil {
			return fmt.Errorf("turn on controllers %v in %s: %w", missing, d, err)
		}
	}
	return nil
}

// Group is one machine's control group.
type Group struct {
	host *Host
	name string
	dirs []string
}

// SetCPUs limits the group to n whole processors; 0 changes nothing.
func (g *Group) SetCPUs(n int) error { return g.apply(Limits{CPUs: n}) }

func (g *Group) apply(l Limits) error {
	for _, s := range g.settings(l) {
		if err := write(s.path, s.value); err != nil && !s.optional {
			return fmt.Errorf("limit control group %s: %w", g.name, err)
		}
	}
	return nil
}

type setting struct {
	path, value string
	optional    bool
}

// file is the path of a controller's file in this group; empty when the host lacks the controller.
func (g *Group) file(controller, name string) string {
	base := g.host.unified
	if base == "" {
		base = g.host.v1[controller]
	}
	if base == "" {
		return ""
	}
	return filepath.Join(base, Parent, g.name, name)
}

func (g *Group) settings(l Limits) []setting {
	quota := strconv.Itoa(l.CPUs * period)
	memory := strconv.FormatInt(l.MemoryBytes, 10)
	pids := strconv.FormatInt(l.PIDs, 10)
	v2 := g.host.unified != ""
	var s []setting
	add := func(controller, name, value string, optional bool) {
		if path := g.file(controller, name); path != "" {
			s = append(s, setting{path, value, optional})
		}
	}
	if l.CPUs > 0 {
		if v2 {
			add("cpu", "cpu.max", quota+" "+strconv.Itoa(period), false)
		} else {
			add("cpu", "cpu.cfs_period_us", strconv.Itoa(period), false)
			add("cpu", "cpu.cfs_quota_us", quota, false)
		}
	}
	if l.MemoryBytes > 0 {
		if v2 {
			add("memory", "memory.max", memory, false)
			add("memory", "memory.swap.max", "0", true) // absent without swap accounting
			add("memory", "memory.oom.group", "1", true)
		} else {
			add("memory", "memory.limit_in_bytes", memory, false)
			add("memory", "memory.memsw.limit_in_bytes", memory, true)
			add("memory", "memory.swappiness", "0", true)
		}
	}
	if l.PIDs > 0 {
		add("pids", "pids.max", pids, false)
	}
	return s
}

// Dirs lists the folders of the group.
func (g *Group) Dirs() []string { return slices.Clone(g.dirs) }

// Dir opens the folder into which a process can be cloned at once (v2 only; nil on v1, where Add must be used).
func (g *Group) Dir() (*os.File, error) {
	if g.host.unified == "" {
		return nil, nil
	}
	f, err := os.Open(g.dirs[0])
	if err != nil {
		return nil, fmt.Errorf("open control group %s: %w", g.name, err)
	}
	return f, nil
}

// Add moves a process into the group. Children it has already stay where they are.
func (g *Group) Add(pid int) error {
	for _, d := range g.dirs {
		if err := write(filepath.Join(d, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("add process to control group %s: %w", g.name, err)
		}
	}
	return nil
}

// PIDs lists the processes in the group, in any hierarchy.
func (g *Group) PIDs() []int {
	var pids []int
	for _, d := range g.dirs {
		for _, s := range strings.Fields(readString(filepath.Join(d, "cgroup.procs"))) {
			if pid, err := strconv.Atoi(s); err == nil && pid > 0 && !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// Exists reports whether any folder of the group exists.
func (g *Group) Exists() bool {
	return slices.ContainsFunc(g.dirs, func(d string) bool {
		_, err := os.Stat(d)
		return err == nil
	})
}

// OOMKills counts the processes of the group that the kernel killed for want of memory.
func (g *Group) OOMKills() int64 {
	if g.host.unified != "" {
		return keyed(g.file("memory", "memory.events"), "oom_kill")
	}
	return keyed(g.file("memory", "memory.oom_control"), "oom_kill")
}

// Usage reads what the group uses.
func (g *Group) Usage() (Usage, error) {
	if !g.Exists() {
		return Usage{}, fmt.Errorf("read control group %s: %w", g.name, fs.ErrNotExist)
	}
	var u Usage
	if g.host.unified != "" {
		u.CPU = time.Duration(keyed(g.file("cpu", "cpu.stat"), "usage_usec")) * time.Microsecond
		u.MemoryBytes = readInt(g.file("memory", "memory.current")) - keyed(g.file("memory", "memory.stat"), "inactive_file")
	} else {
		u.CPU = time.Duration(readInt(g.file("cpuacct", "cpuacct.usage")))
		u.MemoryBytes = readInt(g.file("memory", "memory.usage_in_bytes")) - keyed(g.file("memory", "memory.stat"), "total_inactive_file")
	}
	u.MemoryBytes = max(u.MemoryBytes, 0)
	u.PIDs = readInt(g.file("pids", "pids.current"))
	return u, nil
}

// Kill sends SIGKILL to every process in the group.
func (g *Group) Kill() {
	if g.host.unified != "" && write(filepath.Join(g.dirs[0], "cgroup.kill"), "1") == nil {
		return
	}
	for _, pid := range g.PIDs() {
		if pid == os.Getpid() {
			continue // a thread on its way through, see Start
		}
		_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is as good
	}
}

// removeTimeout bounds Remove for callers without a deadline. Measured: 1 ms, and up to 1 s when a process of
// many gigabytes is on its way out.
const removeTimeout = 30 * time.Second

// Remove kills what still runs in the group and takes its folders away. It does nothing when they are gone.
func (g *Group) Remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	delay := time.Millisecond
	for {
		var last error
		for _, d := range g.dirs {
			// A group made inside by a driver goes first.
			inner, _ := filepath.Glob(filepath.Join(d, "*", "cgroup.procs"))
			for _, p := range inner {
				_ = g.host.rmdir(filepath.Dir(p))
			}
			if err := g.host.rmdir(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
				last = err
			}
		}
		if last == nil {
			return nil
		}
		g.Kill() // busy: a process is on its way out, or one was missed
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove control group %s: %w", g.name, last)
		case <-time.After(delay):
		}
		delay = min(2*delay, 50*time.Millisecond)
	}
}

func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

func readString(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

func readInt(path string) int64 {
	n, _ := strconv.ParseInt(strings.TrimSpace(readString(path)), 10, 64)
	return n
}

// keyed reads one number from a file of "key value" lines.
func keyed(path, key string) int64 {
	for line := range strings.Lines(readString(path)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}
