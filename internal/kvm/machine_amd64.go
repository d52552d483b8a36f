package kvm

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of <linux/kvm.h> for x86-64.
const (
	getSupportedCPUID = 0xc008ae05
	setTSSAddr        = 0xae47
	setIdentityMap    = 0x4008ae48
	setRegs           = 0x4090ae82
	getSregs          = 0x8138ae83
	setSregs          = 0x4138ae84
	setCPUID2         = 0x4008ae90
)

type regs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r8, r9, r10, r11, r12, r13, r14, r15   uint64
	rip, rflags                            uint64
}

type segment struct {
	base                           uint64
	limit                          uint32
	selector                       uint16
	typ, present, dpl, db, s, l, g uint8
	avl, unusable, _               uint8
}

type descriptorTable struct {
	base  uint64
	limit uint16
	_     [3]uint16
}

type sregs struct {
	cs, ds, es, fs, gs, ss, tr, ldt segment
	gdt, idt                        descriptorTable
	cr0, cr2, cr3, cr4, cr8         uint64
	efer, apicBase                  uint64
	_                               [4]uint64 // pending interrupts
}

const maxCPUID = 256 // entries; the kernel's own KVM_MAX_CPUID_ENTRIES

type cpuidEntry struct {
	function, index, flags uint32
	eax, ebx, ecx, edx     uint32
	_                      [3]uint32
}

type cpuid struct {
	n, _    uint32
	entries [maxCPUID]cpuidEntry
}

// arch is what a machine holds on x86-64.
type arch struct {
	cpuid cpuid
	start sregs
}

// createMachine also reserves what older Intel processors need below 4 GiB and outside the guest's memory, before there
// is a processor: three pages for a task state segment and one for an identity map.
func createMachine(kvm int) (int, error) {
	vm, err := ioctl(kvm, createVM, 0)
	if err != nil {
		return -1, err
	}
	identity := uint64(0xfffbc000)
	_, err = ioctl(vm, setTSSAddr, 0xfffbd000)
	if err == nil {
		err = ioctlPtr(vm, setIdentityMap, unsafe.Pointer(&identity))
	}
	if err != nil {
		_ = unix.Close(vm)
		return -1, fmt.Errorf("reserve pages: %w", err)
	}
	return vm, nil
}

// setUp gives the processor its features and its start: 64-bit mode, ring 0.
func (m *machine) setUp(kvm int) error {
	m.cpuid.n = maxCPUID
	if err := ioctlPtr(kvm, getSupportedCPUID, unsafe.Pointer(&m.cpuid)); err != nil {
		return fmt.Errorf("get supported cpuid: %w", err)
	}
	if err := ioctlPtr(m.vcpu, setCPUID2, unsafe.Pointer(&m.cpuid)); err != nil {
		return fmt.Errorf("set cpuid: %w", err)
	}
	if err := ioctlPtr(m.vcpu, getSregs, unsafe.Pointer(&m.start)); err != nil {
		return fmt.Errorf("get special registers: %w", err)
	}
	m.start.longMode(m.needs(step{feature: feature{leaf: 1, reg: 2, bit: 26}}))
	return nil
}

// longMode sets s up as a 64-bit kernel has it: flat segments, paging on, SSE on, and XSAVE where there is one.
func (s *sregs) longMode(xsave bool) {
	const (
		pe, mp, et, ne, wp, pg  = 1 << 0, 1 << 1, 1 << 4, 1 << 5, 1 << 16, 1 << 31 // CR0
		pae, osfxsr, osxmmexcpt = 1 << 5, 1 << 9, 1 << 10                          // CR4
		osxsave                 = 1 << 18
		lme, lma, sce           = 1 << 8, 1 << 10, 1 << 0 // EFER
	)
	code := segment{limit: 0xffffffff, selector: 8, typ: 11, present: 1, s: 1, l: 1, g: 1}
	data := segment{limit: 0xffffffff, selector: 16, typ: 3, present: 1, s: 1, db: 1, g: 1}
	s.cs, s.ds, s.es, s.fs, s.gs, s.ss = code, data, data, data, data, data
	s.gdt = descriptorTable{base: addrGDT, limit: 3*8 - 1}
	s.idt = descriptorTable{base: addrIDT, limit: 32*16 - 1}
	s.cr0 = pe | mp | et | ne | wp | pg
	s.cr3 = addrPML4
	s.cr4 = pae | osfxsr | osxmmexcpt
	if xsave {
		s.cr4 |= osxsave
	}
	s.efer = lme | lma | sce
}

// needs reports whether a kernel would use s on this guest's processor.
func (m *machine) needs(s step) bool {
	f := s.feature
	if f == (feature{}) {
		return true
	}
	for _, e := range m.cpuid.entries[:m.cpuid.n] {
		if e.function == f.leaf && e.index == 0 {
			return []uint32{e.eax, e.ebx, e.ecx, e.edx}[f.reg]>>f.bit&1 == 1
		}
	}
	return false
}

// load puts the code of s in place and the processor at its start.
func (m *machine) load(s step) error {
	clear(m.mem[addrCode:addrData])
	copy(m.mem[addrCode:], s.code)
	r := regs{rip: addrCode, rsp: addrTop, rflags: 2, rcx: s.count, rsi: s.count, rdi: addrData}
	if s.arg != 0 {
		r.rcx = s.arg
	}
	start := m.start
	if err := ioctlPtr(m.vcpu, setSregs, unsafe.Pointer(&start)); err != nil {
		return fmt.Errorf("set special registers: %w", err)
	}
	if err := ioctlPtr(m.vcpu, setRegs, unsafe.Pointer(&r)); err != nil {
		return fmt.Errorf("set registers: %w", err)
	}
	return nil
}

// outcome explains the exit that ended a step.
func (m *machine) outcome(reason uint32) error {
	switch reason {
	case exitIO: // direction, size: a byte each; port: two; count: four; offset of the data: eight
		port, at := binary.LittleEndian.Uint16(m.shared[union+2:]), binary.LittleEndian.Uint64(m.shared[union+8:])
		if port == portDone {
			return nil
		}
		if port == portFault && at < uint64(len(m.shared)) {
			return fmt.Errorf("exception %d", m.shared[at])
		}
	case exitShutdown:
		return fmt.Errorf("triple fault")
	case exitInternal:
		return fmt.Errorf("not emulated")
	case exitFailEntry:
		return fmt.Errorf("refused by the processor")
	}
	return fmt.Errorf("exit %d", reason)
}
