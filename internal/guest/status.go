package guest

import (
	"bufio"
	"encoding/json"
	"math"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
	"github.com/tartarus-sandbox/tartarus/internal/guest/hostapi"
)

func (a *Agent) health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
}

func (a *Agent) envs(w http.ResponseWriter, _ *http.Request) {
	env := a.settings.Load().Env
	if env == nil {
		env = map[string]string{}
	}
	answer(w, env)
}

func answer(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		fault.HTTP(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(data) // a client that is gone is not told
}

func (a *Agent) metrics(w http.ResponseWriter, _ *http.Request) {
	m := hostapi.Metrics{Time: time.Now().Unix(), CPUCount: runtime.NumCPU(), CPUUsed: a.cpuUsed()}
	mem, err := meminfo()
	if err != nil {
		fault.HTTP(w, err)
		return
	}
	m.MemTotal, m.MemCache = mem["MemTotal"], mem["Cached"]
	available, ok := mem["MemAvailable"]
	if !ok {
		available = mem["MemFree"] + mem["Cached"] + mem["Buffers"]
	}
	m.MemUsed = m.MemTotal - min(available, m.MemTotal)
	m.MemTotalMiB, m.MemUsedMiB = m.MemTotal>>20, m.MemUsed>>20
	var disk unix.Statfs_t
	if err := unix.Statfs(a.config.Root, &disk); err != nil {
		fault.HTTP(w, os.NewSyscallError("statfs", err))
		return
	}
	m.DiskTotal = disk.Blocks * uint64(disk.Bsize)
	m.DiskUsed = m.DiskTotal - min(disk.Bfree*uint64(disk.Bsize), m.DiskTotal)
	answer(w, m)
}

// meminfo reads the lines of /proc/meminfo, in bytes.
func meminfo() (map[string]uint64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mem := make(map[string]uint64)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64); err == nil {
			mem[name] = n << 10
		}
	}
	return mem, nil
}

// cpuTimes are the ticks that all processors spent since boot.
type cpuTimes struct{ busy, total uint64 }

// cpuUsed is the share of processor time used since the call before, or since boot for the first.
func (a *Agent) cpuUsed() float64 {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	now, ok := parseCPU(string(data))
	if !ok {
		return 0
	}
	a.metering.Lock()
	last := a.lastCPU
	a.lastCPU = now
	a.metering.Unlock()
	if now.total <= last.total || now.busy < last.busy {
		return 0
	}
	return math.Round(10000*float64(now.busy-last.busy)/float64(now.total-last.total)) / 100
}

// parseCPU reads the first line of /proc/stat: "cpu user nice system idle iowait irq softirq steal ...". Guest time is part
// of user time and must not be counted twice.
func parseCPU(stat string) (t cpuTimes, ok bool) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 5 || f[0] != "cpu" {
		return t, false
	}
	for i, field := range f[1:min(len(f), 9)] {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return t, false
		}
		t.total += n
		if i != 3 && i != 4 { // idle, iowait
			t.busy += n
		}
	}
	return t, true
}
