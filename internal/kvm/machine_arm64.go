package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of <linux/kvm.h> for arm64.
const (
	preferredTarget = 0x8020aeaf
	vcpuInit        = 0x4020aeae
	setOneReg       = 0x4010aeac

	capIPASize = 165 // KVM_CAP_ARM_VM_IPA_SIZE
)

// Registers of struct kvm_regs, by their place in it.
const (
	coreReg = 0x6030000000100000 // KVM_REG_ARM64, 64 bits wide, KVM_REG_ARM_CORE
	regX0   = coreReg + 2*0
	regX1   = coreReg + 2*1
	regX2   = coreReg + 2*2
	regPC   = coreReg + 2*32

	regVBAR = 0x603000000013c600 // KVM_REG_ARM64_SYSREG of op0 3, op1 0, CRn 12, CRm 0, op2 0
)

type target struct {
	target   uint32
	features [7]uint32
}

type oneReg struct{ id, addr uint64 }

// arch is what a machine holds on arm64: nothing more.
type arch struct{}

// createMachine asks for 40 bits of physical addresses, and for as many as there are where the host has fewer.
func createMachine(kvm int) (int, error) {
	vm, err := ioctl(kvm, createVM, 0)
	if !errors.Is(err, unix.EINVAL) {
		return vm, err
	}
	bits, err := ioctl(kvm, checkExtension, capIPASize)
	if err != nil {
		return -1, fmt.Errorf("ask for the size of addresses: %w", err)
	}
	return ioctl(kvm, createVM, uintptr(bits))
}

// setUp makes the processor one of the host's own kind; it starts in EL1 with the MMU off and interrupts masked.
func (m *machine) setUp(int) error {
	var t target
	if err := ioctlPtr(m.vm, preferredTarget, unsafe.Pointer(&t)); err != nil {
		return fmt.Errorf("ask for the processor's kind: %w", err)
	}
	if err := ioctlPtr(m.vcpu, vcpuInit, unsafe.Pointer(&t)); err != nil {
		return fmt.Errorf("initialise virtual processor: %w", err)
	}
	return m.set(regVBAR, addrVBAR)
}

// needs: every step is about something that all processors have.
func (m *machine) needs(step) bool { return true }

// load puts the processor at the start of s.
func (m *machine) load(s step) error {
	pc, ok := codeOf(s)
	if !ok {
		return fmt.Errorf("step %s is not in memory", s.name)
	}
	for _, r := range []struct{ id, value uint64 }{{regX0, s.count}, {regX1, mmioDone}, {regX2, s.arg}, {regPC, pc}} {
		if err := m.set(r.id, r.value); err != nil {
			return err
		}
	}
	return nil
}

// set gives a register a value. The kernel reads it by its address, which must not change meanwhile.
func (m *machine) set(id, value uint64) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&value)
	reg := oneReg{id, uint64(uintptr(unsafe.Pointer(&value)))}
	if err := ioctlPtr(m.vcpu, setOneReg, unsafe.Pointer(&reg)); err != nil {
		return fmt.Errorf("set register %#x: %w", id, err)
	}
	return nil
}

// outcome explains the exit that ended a step.
func (m *machine) outcome(reason uint32) error {
	switch reason {
	case exitMMIO: // address, eight bytes; data, eight bytes
		switch binary.LittleEndian.Uint64(m.shared[union:]) {
		case mmioDone:
			return nil
		case mmioFault:
			return fmt.Errorf("exception class %#x", binary.LittleEndian.Uint32(m.shared[union+8:]))
		}
	case exitShutdown:
		return errors.New("shut down")
	case exitInternal:
		return errors.New("not emulated")
	case exitFailEntry:
		return errors.New("refused by the processor")
	}
	return fmt.Errorf("exit %d", reason)
}
