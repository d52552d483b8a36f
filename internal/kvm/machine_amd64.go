package kvm

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of <linux/kvm.h> for x86-64.
const (
	getAPIVersion     = 0xae00
	createVM          = 0xae01
	getVCPUMmapSize   = 0xae04
	getSupportedCPUID = 0xc008ae05
	createVCPU        = 0xae41
	setMemoryRegion   = 0x4020ae46
	setTSSAddr        = 0xae47
	setIdentityMap    = 0x4008ae48
	runVCPU           = 0xae80
	setRegs           = 0x4090ae82
	getSregs          = 0x8138ae83
	setSregs          = 0x4138ae84
	setCPUID2         = 0x4008ae90
)

// Reasons of an exit.
const (
	exitIO        = 2
	exitHLT       = 5
	exitShutdown  = 8
	exitFailEntry = 9
	exitInternal  = 17
)

type memoryRegion struct {
	slot, flags            uint32
	guest, size, userspace uint64
}

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

// exit is the head of the page shared with the kernel (struct kvm_run).
type exit struct {
	_             uint8 // request_interrupt_window
	immediateExit uint8
	_             [6]uint8
	reason        uint32
	_             [4]uint8
	_             [2]uint64 // cr8, apic_base
	// The union. For an I/O exit direction, size, port; for failures a number in its first word.
	direction, size uint8
	port            uint16
	count           uint32
	dataOffset      uint64
}

// machine is one virtual machine with one processor in 64-bit mode, ring 0.
type machine struct {
	vm, vcpu int
	mem      []byte
	shared   []byte
	cpuid    *cpuid
	start    sregs
}

func ioctl(fd int, request, arg uintptr) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
		if errno == unix.EINTR && request != runVCPU {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(r), nil
	}
}

func newMachine(kvm int) (_ *machine, err error) {
	m := &machine{vm: -1, vcpu: -1, cpuid: &cpuid{n: maxCPUID}}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	if m.vm, err = ioctl(kvm, createVM, 0); err != nil {
		m.vm = -1
		return nil, fmt.Errorf("create virtual machine: %w", err)
	}
	// Three pages (and one) that older Intel processors need below 4 GiB and outside the guest's memory.
	if _, err = ioctl(m.vm, setTSSAddr, 0xfffbd000); err != nil {
		return nil, fmt.Errorf("set tss address: %w", err)
	}
	identity := uint64(0xfffbc000)
	if _, err = ioctl(m.vm, setIdentityMap, uintptr(unsafe.Pointer(&identity))); err != nil {
		return nil, fmt.Errorf("set identity map address: %w", err)
	}
	if m.mem, err = unix.Mmap(-1, 0, memSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return nil, fmt.Errorf("map guest memory: %w", err)
	}
	layOut(m.mem)
	region := memoryRegion{size: memSize, userspace: uint64(uintptr(unsafe.Pointer(&m.mem[0])))}
	if _, err = ioctl(m.vm, setMemoryRegion, uintptr(unsafe.Pointer(&region))); err != nil {
		return nil, fmt.Errorf("set guest memory: %w", err)
	}
	return m, m.addCPU(kvm)
}

func (m *machine) addCPU(kvm int) (err error) {
	if m.vcpu, err = ioctl(m.vm, createVCPU, 0); err != nil {
		m.vcpu = -1
		return fmt.Errorf("create virtual processor: %w", err)
	}
	size, err := ioctl(kvm, getVCPUMmapSize, 0)
	if err != nil || size < int(unsafe.Sizeof(exit{})) {
		return fmt.Errorf("size of shared page %d: %w", size, err)
	}
	if m.shared, err = unix.Mmap(m.vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map shared page: %w", err)
	}
	if _, err = ioctl(kvm, getSupportedCPUID, uintptr(unsafe.Pointer(m.cpuid))); err != nil {
		return fmt.Errorf("get supported cpuid: %w", err)
	}
	if _, err = ioctl(m.vcpu, setCPUID2, uintptr(unsafe.Pointer(m.cpuid))); err != nil {
		return fmt.Errorf("set cpuid: %w", err)
	}
	if _, err = ioctl(m.vcpu, getSregs, uintptr(unsafe.Pointer(&m.start))); err != nil {
		return fmt.Errorf("get special registers: %w", err)
	}
	m.start.longMode(m.has(feature{leaf: 1, reg: 2, bit: 26}))
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

// has reports whether the guest's processor announces f; the zero feature is always there.
func (m *machine) has(f feature) bool {
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

// run executes s from its first instruction and measures until its last. When ctx ends, so does the guest.
func (m *machine) run(ctx context.Context, s step) (time.Duration, error) {
	copy(m.mem[addrCode:addrData], make([]byte, addrData-addrCode))
	copy(m.mem[addrCode:], s.code)
	r := regs{rip: addrCode, rsp: addrTop, rflags: 2, rcx: s.count, rsi: s.count, rdi: addrData}
	if s.rcx != 0 {
		r.rcx = s.rcx
	}
	start := m.start
	if _, err := ioctl(m.vcpu, setSregs, uintptr(unsafe.Pointer(&start))); err != nil {
		return 0, fmt.Errorf("set special registers: %w", err)
	}
	if _, err := ioctl(m.vcpu, setRegs, uintptr(unsafe.Pointer(&r))); err != nil {
		return 0, fmt.Errorf("set registers: %w", err)
	}
	e := (*exit)(unsafe.Pointer(&m.shared[0]))
	e.immediateExit = 0
	release := kickAtEnd(ctx, &e.immediateExit)
	defer release()
	began := time.Now()
	for {
		_, err := ioctl(m.vcpu, runVCPU, 0)
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if err == unix.EINTR || err == unix.EAGAIN {
			continue // a signal of the Go runtime, not ours
		}
		if err != nil {
			return 0, fmt.Errorf("run: %w", err)
		}
		return time.Since(began), m.outcome(e)
	}
}

// outcome explains the exit that ended a step.
func (m *machine) outcome(e *exit) error {
	switch {
	case e.reason == exitIO && e.port == portDone:
		return nil
	case e.reason == exitIO && e.port == portFault && e.dataOffset < uint64(len(m.shared)):
		return fmt.Errorf("exception %d", m.shared[e.dataOffset])
	case e.reason == exitShutdown:
		return fmt.Errorf("triple fault")
	case e.reason == exitInternal:
		return fmt.Errorf("not emulated")
	case e.reason == exitFailEntry:
		return fmt.Errorf("refused by the processor")
	}
	return fmt.Errorf("exit %d", e.reason)
}

// kickAtEnd makes the calling thread leave the guest when ctx ends. immediate_exit covers the moment before it
// enters; the signal covers the time inside. SIGURG is the one the Go runtime itself sends to its threads and ignores.
func kickAtEnd(ctx context.Context, immediateExit *uint8) (release func()) {
	runtime.LockOSThread()
	pid, tid := unix.Getpid(), unix.Gettid()
	var left atomic.Bool
	finished := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-finished:
			return
		case <-ctx.Done():
		}
		*immediateExit = 1
		for !left.Load() {
			_ = unix.Tgkill(pid, tid, unix.SIGURG)
			select {
			case <-finished:
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() {
		left.Store(true)
		close(finished)
		<-stopped
		runtime.UnlockOSThread()
	}
}

func (m *machine) close() {
	if m == nil {
		return
	}
	if m.shared != nil {
		_ = unix.Munmap(m.shared)
	}
	for _, fd := range []int{m.vcpu, m.vm} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	if m.mem != nil {
		_ = unix.Munmap(m.mem)
	}
	m.shared, m.mem, m.vcpu, m.vm = nil, nil, -1, -1
}
