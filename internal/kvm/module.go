package kvm

import "os"

// module names the kernel module behind the device. It is a hint for people, nothing is decided by it.
func module() string {
	for _, name := range []string{"kvm_intel", "kvm_amd", "kvm_pvm"} {
		if _, err := os.Stat("/sys/module/" + name); err == nil {
			return name
		}
	}
	return ""
}
