package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// controllers that limit a sandbox.
var controllers = []string{"cpu", "memory", "pids"}

// tries is what is written into a new cgroup to see that the controller works: generous limits on an empty group.
var tries = map[string]map[string]string{
	"v1": {"cpu": "cpu.shares", "memory": "memory.limit_in_bytes", "pids": "pids.max"},
	"v2": {"cpu": "cpu.max", "memory": "memory.max", "pids": "pids.max"},
}

var values = map[string]string{
	"cpu.shares": "512", "cpu.max": "50000 100000",
	"memory.limit_in_bytes": "268435456", "memory.max": "268435456", "pids.max": "64",
}

// hierarchy is one mounted tree of cgroups.
type hierarchy struct {
	dir         string
	version     string // v1 or v2
	controllers []string
	options     []string
}

// checkCgroups creates a group under every hierarchy that has a controller we need and sets a limit in it.
func checkCgroups(_ context.Context, c *Config) Check {
	mounted := c.hierarchies()
	var kinds, bad []string
	found := map[string]string{}
	for _, h := range mounted {
		if !slices.Contains(kinds, h.version) {
			kinds = append(kinds, h.version)
		}
		for name, err := range h.try() {
			switch {
			case err == nil:
				found[name] = h.version
			case found[name] == "":
				bad = append(bad, fmt.Sprintf("%s (%s): %v", name, h.version, err))
			}
		}
	}
	var missing []string
	for _, name := range controllers {
		if found[name] == "" {
			missing = append(missing, name)
		}
	}
	kind := strings.Join(kinds, "+")
	if len(kinds) == 2 {
		kind = "hybrid (v1 and v2)"
	}
	switch {
	case len(mounted) == 0:
		return Check{Status: Fail, Detail: "no cgroup file system is mounted", Fix: "mount -t cgroup2 none /sys/fs/cgroup"}
	case len(missing) > 0:
		detail := fmt.Sprintf("%s: no usable controller for %s", kind, strings.Join(missing, ", "))
		if len(bad) > 0 {
			slices.Sort(bad)
			detail += "; " + strings.Join(bad, "; ")
		}
		return Check{Status: Fail, Detail: detail,
			Fix: "run as root outside a container, or in one that is privileged and has its own writable /sys/fs/cgroup; on cgroup v2 enable the controllers in cgroup.subtree_control"}
	}
	return Check{Status: OK, Detail: kind + ": cpu, memory and pids limits work"}
}

// try makes a group, sets each controller's limit in it and removes it again.
func (h hierarchy) try() map[string]error {
	out := map[string]error{}
	dir, err := os.MkdirTemp(h.dir, "tartarus-doctor-")
	if err == nil {
		defer os.Remove(dir)
	}
	for _, name := range controllers {
		if !slices.Contains(h.controllers, name) {
			continue
		}
		if err != nil {
			out[name] = err
			continue
		}
		file := tries[h.version][name]
		out[name] = write(filepath.Join(dir, file), values[file])
	}
	return out
}

// write sets a control file that must already be there: creating one would prove nothing.
func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// hierarchies lists the cgroup mounts with the controllers each serves.
func (c *Config) hierarchies() []hierarchy {
	var out []hierarchy
	for line := range strings.Lines(c.read("/proc/self/mountinfo")) {
		// 36 35 98:0 /root /mount options [optional…] - type source super-options
		left, right, ok := strings.Cut(strings.TrimSpace(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 {
			continue
		}
		h := hierarchy{dir: c.path(l[4]), options: strings.Split(r[2], ",")}
		switch r[0] {
		case "cgroup":
			h.version = "v1"
			h.controllers = h.options
		case "cgroup2":
			h.version = "v2"
			h.controllers = strings.Fields(c.read(filepath.Join(l[4], "cgroup.controllers")))
		default:
			continue
		}
		out = append(out, h)
	}
	return out
}
