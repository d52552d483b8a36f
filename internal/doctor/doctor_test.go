package doctor

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host lays out the files of a machine that is in order and lets a test change some.
func host(t *testing.T, change map[string]string) *Config {
	root := t.TempDir()
	files := map[string]string{
		"proc/sys/kernel/osrelease":               "6.1.0-28-amd64\n",
		"proc/meminfo":                            "MemTotal:       8000000 kB\nMemAvailable:   6000000 kB\n",
		"proc/swaps":                              "Filename\tType\tSize\tUsed\tPriority\n",
		"proc/filesystems":                        "nodev\tproc\n\terofs\n",
		"proc/sys/net/ipv4/ip_forward":            "1\n",
		"proc/self/mountinfo":                     "30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate,favordynmods\n",
		"sys/fs/cgroup/cgroup.controllers":        "cpuset cpu io memory pids\n",
		"sys/kernel/mm/ksm/run":                   "0\n",
		"sys/devices/system/cpu/smt/active":       "0\n",
		"sys/module/kvm_intel/parameters/nested":  "N\n",
		"sys/module/kvm/parameters/nx_huge_pages": "Y\n",
	}
	for name, content := range change {
		files[name] = content
	}
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &Config{root: root, DataDir: t.TempDir()}
}

func TestChecksOfFiles(t *testing.T) {
	for name, tc := range map[string]struct {
		check  func(context.Context, *Config) Check
		change map[string]string
		want   Status
		detail string
	}{
		"kernel":            {checkKernel, nil, OK, "6.1.0"},
		"kernel old":        {checkKernel, map[string]string{"proc/sys/kernel/osrelease": "4.19.0"}, Fail, "older"},
		"kernel unmended":   {checkKernel, map[string]string{"proc/sys/kernel/osrelease": "5.7.1"}, Warn, "security"},
		"kernel unreadable": {checkKernel, map[string]string{"proc/sys/kernel/osrelease": "plan9"}, Warn, "cannot be read"},
		"memory":            {checkMemory, nil, OK, "5859 MiB available"},
		"memory short":      {checkMemory, map[string]string{"proc/meminfo": "MemTotal: 900000 kB\nMemAvailable: 500000 kB\n"}, Warn, "488 MiB"},
		"memory gone":       {checkMemory, map[string]string{"proc/meminfo": "MemTotal: 900000 kB\nMemAvailable: 50000 kB\n"}, Fail, "48 MiB"},
		"memory unreadable": {checkMemory, map[string]string{"proc/meminfo": ""}, Warn, "cannot be read"},
		"disk":              {checkDisk, nil, OK, "free at"},
		"erofs":             {optionalFilesystem("erofs", "why"), nil, OK, "in the kernel"},
		"no overlay":        {optionalFilesystem("overlay", "why"), nil, OK, "optional: why"},
		"no loop":           {checkLoop, nil, OK, "optional"},
		"forwarding":        {checkForwarding, nil, OK, "on"},
		"forwarding off":    {checkForwarding, map[string]string{"proc/sys/net/ipv4/ip_forward": "0"}, OK, "switched on"},
		"swap":              {checkSwap, nil, OK, "off"},
		"swap on":           {checkSwap, map[string]string{"proc/swaps": "Filename Type\n/dev/sda2 partition\n"}, Warn, "memory of sandboxes"},
		"ksm":               {checkKSM, nil, OK, "off"},
		"ksm on":            {checkKSM, map[string]string{"sys/kernel/mm/ksm/run": "1"}, Warn, "timing"},
		"smt on":            {checkSMT, map[string]string{"sys/devices/system/cpu/smt/active": "1"}, Warn, "share a core"},
		"nested":            {checkNested, nil, OK, "off"},
		"nested on":         {checkNested, map[string]string{"sys/module/kvm_intel/parameters/nested": "Y"}, Warn, "kvm_intel.nested"},
		"nested amd":        {checkNested, map[string]string{"sys/module/kvm_amd/parameters/nested": "1"}, Warn, "kvm_amd.nested"},
		"nx huge pages":     {checkNXHugePages, nil, OK, "Y"},
		"nx off":            {checkNXHugePages, map[string]string{"sys/module/kvm/parameters/nx_huge_pages": "N"}, Warn, "multihit"},
		"nx not needed": {checkNXHugePages, map[string]string{"sys/module/kvm/parameters/nx_huge_pages": "N",
			"sys/devices/system/cpu/vulnerabilities/itlb_multihit": "Not affected"}, OK, "does not need"},
		"favordynmods":     {checkFavorDynMods, nil, OK, "on"},
		"favordynmods off": {checkFavorDynMods, map[string]string{"proc/self/mountinfo": "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"}, Warn, "waits"},
		"no cgroup v2":     {checkFavorDynMods, map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpuset\n"}, OK, "does not apply"},
		"no cgroups":       {checkCgroups, map[string]string{"proc/self/mountinfo": ""}, Fail, "no cgroup file system"},
	} {
		t.Run(name, func(t *testing.T) {
			got := tc.check(t.Context(), host(t, tc.change))
			if got.Status != tc.want || !strings.Contains(got.Detail, tc.detail) {
				t.Errorf("%+v, want %s with %q", got, tc.want, tc.detail)
			}
			if (got.Status == OK) != (got.Fix == "") {
				t.Errorf("status %s with fix %q", got.Status, got.Fix)
			}
		})
	}
}

// TestCgroupsWithoutControllers: a folder that is called a hierarchy but has no control files proves nothing.
func TestCgroupsWithoutControllers(t *testing.T) {
	c := host(t, map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpuset cpu memory pids\n"})
	got := checkCgroups(t.Context(), c)
	if got.Status != Fail || !strings.Contains(got.Detail, "cpu, memory, pids") {
		t.Fatalf("%+v", got)
	}
	left, _ := filepath.Glob(filepath.Join(c.root, "sys/fs/cgroup/tartarus-doctor-*"))
	if len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestUser(t *testing.T) {
	if got := checkUser(t.Context(), &Config{UID: 1000}); got.Status != Fail || !strings.Contains(got.Fix, "sudo") || !strings.Contains(got.Fix, "--url") {
		t.Fatalf("%+v", got)
	}
	if got := checkUser(t.Context(), &Config{}); got.Status != OK {
		t.Fatalf("%+v", got)
	}
}

func TestDiskWantsAFolderThatCanExist(t *testing.T) {
	c := &Config{DataDir: filepath.Join(t.TempDir(), "not", "yet")}
	if got := checkDisk(t.Context(), c); got.Status == Fail && !strings.Contains(got.Detail, "MiB free") {
		t.Fatalf("%+v", got)
	}
	c.DataDir = "/proc/version/x"
	if got := checkDisk(t.Context(), c); got.Status != Fail {
		t.Fatalf("%+v", got)
	}
}

// driver says what a test wants of a host.
type driver struct {
	vmm.Driver
	support vmm.Support
}

func (driver) Name() string                        { return "test" }
func (d driver) Probe(context.Context) vmm.Support { return d.support }

func (driver) Examine(context.Context) []vmm.Finding {
	return []vmm.Finding{{Name: "jailer", Detail: "1.2.3"}, {Name: "userfaultfd", Detail: "none", Fix: "boot another kernel"}}
}

func TestSandboxesCanRun(t *testing.T) {
	fine := []Check{{Status: OK}, {Status: Warn}}
	good := []Runtime{{Usable: true, Tier: tartarus.TierUserKernel}}
	for name, tc := range map[string]struct {
		report Report
		want   bool
	}{
		"all well":       {Report{Checks: fine, Runtimes: good}, true},
		"a failed check": {Report{Checks: append([]Check{{Status: Fail}}, fine...), Runtimes: good}, false},
		"no runtime":     {Report{Checks: fine}, false},
		"unusable":       {Report{Checks: fine, Runtimes: []Runtime{{Tier: tartarus.TierHardware}}}, false},
		"no isolation":   {Report{Checks: fine, Runtimes: []Runtime{{Usable: true, Tier: tartarus.TierNone}}}, false},
	} {
		if got := tc.report.sandboxesCanRun(); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestExamineHere runs every check on the real host: each answers, in time, with a fix where it is not content.
func TestExamineHere(t *testing.T) {
	start := time.Now()
	r := Examine(t.Context(), Config{DataDir: t.TempDir(), UID: os.Geteuid(), Range: netip.MustParsePrefix("198.18.0.0/15"),
		Drivers: []vmm.Driver{driver{support: vmm.Support{Usable: true, Tier: tartarus.TierUserKernel}}}})
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("took %s", took)
	}
	if len(r.Checks) != len(probers)+1+2 || len(r.Runtimes) != 1 {
		t.Errorf("%d checks, %d runtimes", len(r.Checks), len(r.Runtimes))
	}
	if last := r.Checks[len(r.Checks)-2:]; last[0].Status != OK || last[1].Status != Warn || last[1].Fix != "boot another kernel" || last[1].Group != Virtual {
		t.Errorf("what the driver said: %+v", last)
	}
	for _, c := range r.Checks {
		t.Logf("%-4s %-22s %s", c.Status, c.Name, c.Detail)
		if c.Name == "" || c.Group == "" || c.Detail == "" || (c.Status == OK) != (c.Fix == "") {
			t.Errorf("incomplete: %+v", c)
		}
	}
	if os.Geteuid() != 0 && r.OK {
		t.Error("content without root")
	}
}

func TestNoDriversIsAFailedCheck(t *testing.T) {
	r := Examine(t.Context(), Config{DataDir: t.TempDir(), UID: os.Geteuid(), Problem: errors.New("mkdir: permission denied")})
	last := r.Checks[len(r.Checks)-1]
	if r.OK || last.Status != Fail || last.Fix == "" || !strings.Contains(last.Detail, "permission denied") {
		t.Fatalf("%+v", last)
	}
}

func TestStuckCheckIsReported(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	got := run(ctx, prober{"stuck", Host, func(context.Context, *Config) Check { <-release; return Check{} }}, &Config{})
	if got.Status != Fail || got.Name != "stuck" || got.Fix == "" {
		t.Fatalf("%+v", got)
	}
}
