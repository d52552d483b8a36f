// Package doctor finds out whether this host can run sandboxes, by trying what they need rather than by reading that it
// should work. A check never changes the host: whatever it creates to try, it removes before it answers.
package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/kvm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// Status is how a check came out.
type Status string

// The states. Only Fail keeps sandboxes from running.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Groups of checks, in the order in which they are shown.
const (
	Host       = "host"
	Networking = "network"
	Virtual    = "virtualisation"
	Hardening  = "hardening"
)

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	Group  string `json:"group"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"` // what to do; always there unless the status is ok
}

// Runtime is what one driver says of this host.
type Runtime struct {
	Name    string        `json:"name"`
	Usable  bool          `json:"usable"`
	Tier    tartarus.Tier `json:"tier,omitempty"`
	Version string        `json:"version,omitempty"`
	Reason  string        `json:"reason,omitempty"`
}

// Report is everything that was found.
type Report struct {
	OK       bool        `json:"ok"` // sandboxes can run here
	Checks   []Check     `json:"checks"`
	Runtimes []Runtime   `json:"runtimes"`
	KVM      kvm.Verdict `json:"kvm"`
}

// Config says what to look at.
type Config struct {
	DataDir string       // where the data will be kept
	Drivers []vmm.Driver // runtimes to probe, strongest first
	Range   netip.Prefix // addresses that sandboxes will get; the zero Prefix is not checked
	UID     int          // effective user
	Problem error        // why there are no drivers to probe; nil when there are

	root string // of the file system that is read; tests use one of their own
}

// perCheck bounds one check: the slowest, creating a network namespace on a loaded host, takes some 100 ms.
const perCheck = 10 * time.Second

// prober is one check. It fills in status, detail and fix.
type prober struct {
	name, group string
	probe       func(context.Context, *Config) Check
}

// probers is the list of all checks, in the order in which they run and are shown.
var probers = []prober{
	{"user", Host, checkUser},
	{"kernel", Host, checkKernel},
	{"cgroups", Host, checkCgroups},
	{"user namespaces", Host, checkUserNamespaces},
	{"memory", Host, checkMemory},
	{"disk", Host, checkDisk},
	{"erofs", Host, optionalFilesystem("erofs", "gVisor reads EROFS images itself; only mounting them on the host needs the kernel")},
	{"overlay", Host, optionalFilesystem("overlay", "only building images in the host's own folders needs it")},
	{"loop devices", Host, checkLoop},
	{"network namespaces", Networking, checkNetNS},
	{"nftables", Networking, checkNFTables},
	{"forwarding", Networking, checkForwarding},
	{"firewall", Networking, checkForwardPolicy},
	{"address range", Networking, checkRange},
	{"swap", Hardening, checkSwap},
	{"same-page merging", Hardening, checkKSM},
	{"hyper-threading", Hardening, checkSMT},
	{"nested virtualisation", Hardening, checkNested},
	{"nx_huge_pages", Hardening, checkNXHugePages},
	{"favordynmods", Hardening, checkFavorDynMods},
}

// Examine looks at everything. It always returns a whole report; what could not be looked at is in it as such.
func Examine(ctx context.Context, c Config) Report {
	if c.root == "" {
		c.root = "/"
	}
	var r Report
	for _, p := range probers {
		r.Checks = append(r.Checks, run(ctx, p, &c))
	}
	r.KVM = kvm.Judge(ctx)
	r.Checks = append(r.Checks, kvmCheck(r.KVM))
	if c.Problem != nil {
		r.Checks = append(r.Checks, Check{Name: "runtimes", Group: Virtual, Status: Fail, Detail: c.Problem.Error(),
			Fix: "run as root, and with a data folder that can be written to (--data)"})
	}
	for _, d := range c.Drivers {
		s := d.Probe(ctx)
		r.Runtimes = append(r.Runtimes, Runtime{Name: d.Name(), Usable: s.Usable, Tier: s.Tier, Version: s.Version, Reason: s.Reason})
		r.Checks = append(r.Checks, driverChecks(ctx, d)...)
	}
	r.OK = r.sandboxesCanRun()
	return r
}

func run(ctx context.Context, p prober, c *Config) Check {
	ctx, cancel := context.WithTimeout(ctx, perCheck)
	defer cancel()
	done := make(chan Check, 1)
	go func() { done <- p.probe(ctx, c) }()
	var out Check
	select {
	case out = <-done:
	case <-ctx.Done():
		out = Check{Status: Fail, Detail: fmt.Sprintf("no answer within %s", perCheck), Fix: "look into the kernel log (dmesg); the host is stuck or overloaded"}
	}
	out.Name, out.Group = p.name, p.group
	return out
}

// sandboxesCanRun: nothing failed, and some runtime with real isolation works.
func (r Report) sandboxesCanRun() bool {
	for _, c := range r.Checks {
		if c.Status == Fail {
			return false
		}
	}
	for _, rt := range r.Runtimes {
		if rt.Usable && rt.Tier.AtLeast(tartarus.TierUserKernel) {
			return true
		}
	}
	return false
}

// driverChecks are what a driver has to say of the host. None fails: what keeps it from running is in its support.
func driverChecks(ctx context.Context, d vmm.Driver) (out []Check) {
	e, ok := d.(vmm.Examiner)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, perCheck)
	defer cancel()
	for _, f := range e.Examine(ctx) {
		c := Check{Name: f.Name, Group: Virtual, Status: OK, Detail: f.Detail, Fix: f.Fix}
		if f.Fix != "" {
			c.Status = Warn
		}
		out = append(out, c)
	}
	return out
}

// kvmCheck never fails: without KVM sandboxes run in a user-space kernel or an emulated machine.
func kvmCheck(v kvm.Verdict) Check {
	c := Check{Name: kvm.Device, Group: Virtual, Status: OK, Detail: v.Reason}
	if !v.Usable {
		c.Status = Warn
		c.Fix = "for hardware isolation use a machine with VT-x or AMD-V, or a virtual machine with nested virtualisation switched on; until then runtimes without KVM are used"
	}
	return c
}
