package doctor

import (
	"context"
	"slices"
	"strings"
)

// The checklist of a host that runs strangers' code. Nothing here fails: it is about what leaks between sandboxes and
// the host, not about whether they run.

func checkSwap(_ context.Context, c *Config) Check {
	lines := strings.Split(c.read("/proc/swaps"), "\n")
	if len(lines) <= 1 {
		return Check{Status: OK, Detail: "off"}
	}
	return Check{Status: Warn, Detail: "on: the memory of sandboxes may be written to disk and stay there", Fix: "swapoff -a, and remove it from /etc/fstab"}
}

func checkKSM(_ context.Context, c *Config) Check {
	if run := c.read("/sys/kernel/mm/ksm/run"); run == "1" {
		return Check{Status: Warn, Detail: "on: one sandbox can find out by timing what another holds in memory", Fix: "echo 2 > /sys/kernel/mm/ksm/run"}
	}
	return Check{Status: OK, Detail: "off"}
}

func checkSMT(_ context.Context, c *Config) Check {
	if c.read("/sys/devices/system/cpu/smt/active") == "1" {
		return Check{Status: Warn, Detail: "on: two sandboxes may share a core and its caches",
			Fix: "echo off > /sys/devices/system/cpu/smt/control where tenants do not trust each other, or pin each tenant to whole cores"}
	}
	return Check{Status: OK, Detail: "off or not there"}
}

func checkNested(_ context.Context, c *Config) Check {
	for _, module := range []string{"kvm_intel", "kvm_amd"} {
		if v := c.read("/sys/module/" + module + "/parameters/nested"); v == "Y" || v == "1" {
			return Check{Status: Warn, Detail: module + ".nested is on: guests reach more of the host kernel than they need",
				Fix: "options " + module + " nested=0 in /etc/modprobe.d/, then reload the module"}
		}
	}
	return Check{Status: OK, Detail: "off or not there"}
}

func checkNXHugePages(_ context.Context, c *Config) Check {
	switch v := c.read("/sys/module/kvm/parameters/nx_huge_pages"); v {
	case "":
		return Check{Status: OK, Detail: "no KVM module"}
	case "N", "off", "0":
		if strings.Contains(c.read("/sys/devices/system/cpu/vulnerabilities/itlb_multihit"), "Not affected") {
			return Check{Status: OK, Detail: "off, and this processor does not need it"}
		}
		return Check{Status: Warn, Detail: "off: a guest may stop this processor by iTLB multihit", Fix: "echo auto > /sys/module/kvm/parameters/nx_huge_pages"}
	default:
		return Check{Status: OK, Detail: v}
	}
}

// checkFavorDynMods: without it each start of a machine waits for a grace period of the kernel in cgroup migration.
// It is about the unified hierarchy only, and only where that one carries the limits.
func checkFavorDynMods(_ context.Context, c *Config) Check {
	for _, h := range c.hierarchies() {
		if h.version != "v2" || !slices.Contains(h.controllers, "memory") {
			continue
		}
		if slices.Contains(h.options, "favordynmods") {
			return Check{Status: OK, Detail: "on"}
		}
		return Check{Status: Warn, Detail: "off: moving a machine into its cgroup waits for the whole kernel, some 10 ms each",
			Fix: "mount -o remount,favordynmods /sys/fs/cgroup (Linux 6.0 and newer)"}
	}
	return Check{Status: OK, Detail: "limits are set by cgroup v1, does not apply"}
}
