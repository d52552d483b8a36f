package gvisor

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// guestID is what every guest is called inside its own sandbox. It is the same for all, so that a snapshot can
// be restored under any identity; outside, a sandbox is told apart by its folder.
const guestID = "guest"

// defaultPath is the PATH of a guest that was not given one.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// capabilities of the guest's root, inside the sandbox's own kernel only. To those that containers usually have are
// added: SYS_ADMIN, SYS_RESOURCE and SYS_NICE (hostname, mounts, sudo, nice), SYS_PTRACE (debuggers),
// NET_ADMIN (ip, within its own network stack), DAC_READ_SEARCH, IPC_LOCK and LEASE. Modules, raw devices,
// clocks, reboot and audit are left out: the sandbox's kernel has nothing behind them.
var capabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
	"CAP_IPC_LOCK", "CAP_KILL", "CAP_LEASE", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW",
	"CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_NICE",
	"CAP_SYS_PTRACE", "CAP_SYS_RESOURCE",
}

// newConfig is runsc's configuration for one sandbox whose folder is dir.
func newConfig(dir string) (*config.Config, error) {
	flags := flag.NewFlagSet("runsc", flag.ContinueOnError)
	config.RegisterFlags(flags)
	conf, err := config.NewFromFlags(flags)
	if err != nil {
		return nil, fmt.Errorf("make runsc configuration: %w", err)
	}
	conf.RootDir = dir
	conf.Platform = "systrap"
	conf.Network = config.NetworkSandbox
	conf.DirectFS = false     // no host files are served: the sandbox needs no power over any
	conf.AllowSUID = true     // sudo
	conf.EnableRaw = true     // ping; what leaves is filtered on the host
	conf.IgnoreCgroups = true // the driver makes them
	conf.Traceback = "single" // a crash must not write megabytes
	conf.PanicLog = ""        // donated as a descriptor instead
	conf.HostSettings = config.HostSettingsIgnore
	conf.InSandboxCgroup = config.InSandboxCgroupV2                 // one hierarchy, as on systems of today
	conf.RestoreSpecValidation = config.RestoreSpecValidationIgnore // identity and limits differ by design
	conf.SidecarUsagePolicy = config.SidecarUsageDefault
	return conf, nil
}

// newSpec is the container that c describes.
func newSpec(c vmm.Config, dir string) *specs.Spec {
	args := c.Args
	if len(args) == 0 {
		args = []string{tartarus.AgentPath}
	}
	env := c.Env
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		env = append([]string{defaultPath}, env...)
	}
	shm := []string{"mode=1777"}
	if half := c.Resources.MemoryMB / 2; half > 0 { // as Linux does; its pages count as memory
		shm = append(shm, "size="+strconv.FormatInt(half, 10)+"m")
	}
	limits := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 16, Hard: 1 << 20}}
	if n := uint64(c.Resources.PIDs); n > 0 { // for those who ask; limitTasks enforces it
		limits = append(limits, specs.POSIXRlimit{Type: "RLIMIT_NPROC", Soft: n, Hard: n})
	}
	caps := &specs.LinuxCapabilities{
		Bounding: capabilities, Effective: capabilities, Permitted: capabilities, Inheritable: capabilities,
	}
	return &specs.Spec{
		Version:  specs.Version,
		Hostname: c.Hostname,
		Root:     &specs.Root{Path: dir},
		Process: &specs.Process{
			Args: args, Env: env, Cwd: "/", Capabilities: caps, Rlimits: limits,
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "dev", Source: "dev"},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts"},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: shm},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup2", Source: "cgroup", Options: []string{"ro"}},
			// Not a file system: an entry of an unknown type is passed over, but it keeps runsc from putting a
			// tmpfs of its own there. /tmp is then part of the writable layer and of its size limit.
			{Destination: "/tmp", Type: "tartarus-keep", Source: "none"},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.CgroupNamespace}},
		},
	}
}

// mountConf says that the root is an EROFS image below a writable layer of at most diskMB, kept in a host file.
func mountConf(diskMB int64) specutils.GoferMountConf {
	conf := specutils.GoferMountConf{Lower: specutils.Erofs, Upper: specutils.AnonOverlay}
	if diskMB > 0 {
		conf.Size = strconv.FormatInt(diskMB<<20, 10)
	}
	return conf
}

// cpus is how many processors the guest sees.
func cpus(r tartarus.Resources) int {
	if r.VCPU <= 0 {
		return runtime.NumCPU()
	}
	return min(r.VCPU, runtime.NumCPU())
}

// hostPIDs bounds the sandbox's threads on the host for a guest that may have n. A guest thread is a thread of the
// sandbox kernel and one of its address space's, and an address space is a process with two threads of its own;
// 512 more let the sandbox kernel itself live when the guest is at its limit.
func hostPIDs(n int64) int64 {
	if n <= 0 {
		return 0
	}
	return 512 + 5*(n+reserve)
}
