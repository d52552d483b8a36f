// Package kvm judges whether /dev/kvm can carry a Linux guest. It runs a small guest in ring 0 and times it, because
// a device that opens, and even one that runs a guest, may still be a software stand-in under which a Linux kernel
// dies or crawls; it never says usable without having seen the instructions a kernel needs work at hardware speed.
package kvm

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Device is the path of the KVM device.
const Device = "/dev/kvm"

// limit bounds a whole judgement. On hardware it takes a few milliseconds, most of them to create and
// destroy the virtual machine.
const limit = 900 * time.Millisecond

// maxOrdinaryNS is the most that one turn of a loop of three ordinary instructions in kernel mode may cost, in nanoseconds. A
// processor that runs the guest itself needs 1 cycle, 0.2 to 1 ns. A stand-in that decodes and emulates each instruction needs
// 300 ns or more for each of the three (measured under kvm_pvm: 1,050 ns a turn). The line is at 20: ten times a slow
// processor of 1 GHz that shares its core, fifty times below emulation.
const maxOrdinaryNS = 20

// maxPrivilegedNS is the same for one turn around a privileged instruction. A load of CR3 or a write of the GS base runs
// inside the guest without an exit on any processor with nested paging (Intel EPT since 2008, AMD NPT since 2007), also
// in nested virtualisation: 100 to 1,000 cycles, 30 to 500 ns at 2 to 3 GHz. A stand-in that runs ordinary code itself and traps
// only these pays an exit, a decode and a page-table walk each: 2,000 to 100,000 ns. The line is at 1,500.
const maxPrivilegedNS = 1500

// Verdict is what a judgement found out.
type Verdict struct {
	Present  bool `json:"present"`  // the device exists
	Openable bool `json:"openable"` // this process may open it
	Usable   bool `json:"usable"`   // an unmodified Linux guest can run on it

	Ran          bool     `json:"ran"`                    // a guest ran at all
	OrdinaryNS   float64  `json:"ordinaryNS,omitempty"`   // one turn of a loop of ordinary instructions
	PrivilegedNS float64  `json:"privilegedNS,omitempty"` // one privileged instruction, the slowest kind measured
	Slowest      string   `json:"slowest,omitempty"`      // which kind that was
	Broken       []string `json:"broken,omitempty"`       // instructions a kernel needs that did not work
	Module       string   `json:"module,omitempty"`       // kernel module that serves the device, where it can be told

	Took   time.Duration `json:"tookNS"`
	Reason string        `json:"reason"` // one sentence for people, also when usable
}

// Judge finds out what /dev/kvm is worth. It returns within a second, or when ctx ends, even if the guest never exits.
func Judge(ctx context.Context) Verdict { return judgeDevice(ctx, Device) }

func judgeDevice(ctx context.Context, device string) Verdict {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	v := judge(ctx, device)
	v.Module = module()
	v.decide()
	v.Took = time.Since(start)
	return v
}

// decide turns what was measured into a verdict. A Reason that is already there says why nothing could be measured.
func (v *Verdict) decide() {
	v.Usable = false
	if v.Reason != "" {
		return
	}
	var slow []string
	if v.OrdinaryNS > maxOrdinaryNS {
		slow = append(slow, fmt.Sprintf("a loop of 3 ordinary instructions takes %.0f ns a turn in a kernel (limit %d)", v.OrdinaryNS, maxOrdinaryNS))
	}
	if v.PrivilegedNS > maxPrivilegedNS {
		slow = append(slow, fmt.Sprintf("%s takes %.0f ns (limit %d)", v.Slowest, v.PrivilegedNS, maxPrivilegedNS))
	}
	if len(v.Broken) > 0 {
		slow = append(slow, "a Linux kernel would crash on "+strings.Join(v.Broken, ", "))
	}
	if len(slow) > 0 {
		v.Reason = "not hardware virtualisation: " + strings.Join(slow, "; ")
		return
	}
	v.Usable = true
	v.Reason = fmt.Sprintf("a guest ran at hardware speed: %.1f ns a turn of ordinary instructions, %.0f ns for %s, the slowest privileged one",
		v.OrdinaryNS, v.PrivilegedNS, v.Slowest)
}
