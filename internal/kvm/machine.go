//go:build amd64 || arm64

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

// Requests of <linux/kvm.h> that all architectures have.
const (
	getAPIVersion   = 0xae00
	createVM        = 0xae01
	checkExtension  = 0xae03
	getVCPUMmapSize = 0xae04
	createVCPU      = 0xae41
	setMemoryRegion = 0x4020ae46
	runVCPU         = 0xae80
)

// Reasons of an exit.
const (
	exitIO        = 2
	exitMMIO      = 6
	exitShutdown  = 8
	exitFailEntry = 9
	exitInternal  = 17
)

type memoryRegion struct {
	slot, flags            uint32
	guest, size, userspace uint64
}

// exit is the head of the page shared with the kernel (struct kvm_run). What belongs to the reason follows it.
type exit struct {
	_             uint8 // request_interrupt_window
	immediateExit uint8
	_             [6]uint8
	reason        uint32
	_             [4]uint8
	_             [2]uint64
}

// machine is one virtual machine with one processor in the kernel's mode.
type machine struct {
	vm, vcpu int
	mem      []byte
	shared   []byte
	arch
}

// step is a piece of guest code that ends by telling that it is done.
type step struct {
	name    string
	code    []byte
	count   uint64  // turns of its loop
	arg     uint64  // what its instruction works on, where it needs something
	feature feature // without which a kernel would not use it either
}

// feature names one bit of the guest's CPUID. The zero feature is always there.
type feature struct {
	leaf uint32
	reg  int // 1 ebx, 2 ecx
	bit  uint
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

// ioctlPtr keeps what arg points to where it is until the call has returned.
func ioctlPtr(fd int, request uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		return nil
	}
}

func newMachine(kvm int) (_ *machine, err error) {
	m := &machine{vm: -1, vcpu: -1}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	if m.vm, err = createMachine(kvm); err != nil {
		m.vm = -1
		return nil, fmt.Errorf("create virtual machine: %w", err)
	}
	if m.mem, err = unix.Mmap(-1, 0, memSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return nil, fmt.Errorf("map guest memory: %w", err)
	}
	layOut(m.mem)
	region := memoryRegion{size: memSize, userspace: uint64(uintptr(unsafe.Pointer(&m.mem[0])))}
	if err = ioctlPtr(m.vm, setMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return nil, fmt.Errorf("set guest memory: %w", err)
	}
	if m.vcpu, err = ioctl(m.vm, createVCPU, 0); err != nil {
		m.vcpu = -1
		return nil, fmt.Errorf("create virtual processor: %w", err)
	}
	size, err := ioctl(kvm, getVCPUMmapSize, 0)
	if err != nil || size < union+32 {
		return nil, fmt.Errorf("size of shared page %d: %w", size, err)
	}
	if m.shared, err = unix.Mmap(m.vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map shared page: %w", err)
	}
	return m, m.setUp(kvm)
}

// union is where, in the shared page, the part begins that depends on the reason of an exit.
const union = int(unsafe.Sizeof(exit{}))

// run executes s from its first instruction and measures until its last. When ctx ends, so does the guest.
func (m *machine) run(ctx context.Context, s step) (time.Duration, error) {
	if err := m.load(s); err != nil {
		return 0, err
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
		return time.Since(began), m.outcome(e.reason)
	}
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
