package kvm

import "encoding/binary"

// Guest physical memory, all of it identity mapped once the MMU is on:
//
//	0x1000 translation table level 1     0x4000 vectors     0x9000 data
//	0x2000 translation table level 2     0x8000 code, 0x80 for each step
//
// A step starts with x0 = its count, x1 = mmioDone, x2 = its argument. It ends with a store to mmioDone, which is no memory.
// Its first instruction may be skipped, because the kernel completes the store of the step before it by going one
// instruction on: it does nothing.
const (
	addrL1   = 0x1000
	addrL2   = 0x2000
	addrVBAR = 0x4000
	addrCode = 0x8000
	addrData = 0x9000
	memSize  = 2 << 20 // one block

	mmioDone  = 0x10000000   // a step went through
	mmioFault = mmioDone + 4 // an exception came; its class is stored

	stepSize = 0x80
)

func words(list ...uint32) []byte {
	out := make([]byte, 0, 4*len(list))
	for _, w := range list {
		out = binary.LittleEndian.AppendUint32(out, w)
	}
	return out
}

// spin is ordinary instructions only. The exit at its end is measured with it: 2 µs on hardware, up to 50 µs in nested
// virtualisation, so at 20,000 turns at most 2.5 ns of a turn.
var spin = step{name: "an ordinary loop", count: 20_000, code: words(
	0xd503201f, //    nop
	0x91000442, // 1: add  x2, x2, #1
	0xd1000400, //    sub  x0, x0, #1
	0xb5ffffc0, //    cbnz x0, 1b
	0xb9000020, //    str  w0, [x1]
	0x14000000, //    b    .
)}

// hang never leaves the guest; tests use it to see the watchdog work.
var hang = step{name: "hang", code: words(
	0xd503201f, // nop
	0x14000000, // b .
)}

// undefined is no instruction; tests use it to see that exceptions are told.
var undefined = step{name: "udf", code: words(
	0xd503201f, // nop
	0x00000000, // udf #0
)}

// timed are privileged instructions that a guest kernel executes all the time and hardware does not trap. 500 turns
// add at most 100 ns of the exit to each, and take 10 ms where one is emulated in 20 µs.
var timed = []step{
	{name: "msr tpidr_el1", count: 500, code: words(
		0xd503201f, //    nop
		0xd518d082, // 1: msr  tpidr_el1, x2
		0xd1000400, //    sub  x0, x0, #1
		0xb5ffffc0, //    cbnz x0, 1b
		0xb9000020, //    str  w0, [x1]
		0x14000000, //    b    .
	)},
	{name: "msr vbar_el1", count: 500, code: words(
		0xd503201f, //    nop
		0xb27203e3, //    mov  x3, #addrVBAR
		0xd518c003, // 1: msr  vbar_el1, x3
		0xd1000400, //    sub  x0, x0, #1
		0xb5ffffc0, //    cbnz x0, 1b
		0xb9000020, //    str  w0, [x1]
		0x14000000, //    b    .
	)},
	{name: "msr daifset", count: 500, code: words(
		0xd503201f, //    nop
		0xd50342df, // 1: msr  daifset, #2
		0xd1000400, //    sub  x0, x0, #1
		0xb5ffffc0, //    cbnz x0, 1b
		0xb9000020, //    str  w0, [x1]
		0x14000000, //    b    .
	)},
}

// required are things that every 64-bit Linux kernel does: without them it does not boot. The one that switches the MMU on is
// the last, because it stays on.
var required = []step{
	{name: "exceptions", code: words(
		0xd503201f, //    nop
		0xd4200000, //    brk  #0           the handler goes one instruction on
		0xb9000020, //    str  w0, [x1]
		0x14000000, //    b    .
	)},
	{name: "mmu and exclusive access", code: words(
		0xd503201f, //    nop
		0xb2401fe2, //    mov  x2, #0xff    attribute 0: normal memory, write-back; 1: device
		0xd518a202, //    msr  mair_el1, x2
		0xd286a322, //    mov  x2, #0x3519  39 bits of addresses, 4 KiB pages,
		0xf2a01002, //    movk x2, #0x80, lsl #16   write-back, inner shareable, no upper half
		0xd5182042, //    msr  tcr_el1, x2
		0xb27403e2, //    mov  x2, #addrL1
		0xd5182002, //    msr  ttbr0_el1, x2
		0xd5033fdf, //    isb
		0xd5381002, //    mrs  x2, sctlr_el1
		0xd28200a3, //    mov  x3, #0x1005  MMU, data cache, instruction cache
		0xaa030042, //    orr  x2, x2, x3
		0xd5181002, //    msr  sctlr_el1, x2
		0xd5033fdf, //    isb
		0xd2920003, //    mov  x3, #addrData
		0xc85ffc64, // 1: ldaxr x4, [x3]
		0x91000484, //    add  x4, x4, #1
		0xc805fc64, //    stlxr w5, x4, [x3]
		0xb5ffffa5, //    cbnz x5, 1b
		0xb9000020, //    str  w0, [x1]
		0x14000000, //    b    .
	)},
}

// handler takes exceptions: a breakpoint is stepped over, the class of any other is stored to mmioFault.
var handler = words(
	0xd5385206, //    mrs  x6, esr_el1
	0xd35afcc6, //    lsr  x6, x6, #26
	0xf100f0df, //    cmp  x6, #0x3c      brk
	0x540000a1, //    b.ne 2f
	0xd5384026, //    mrs  x6, elr_el1
	0x910010c6, //    add  x6, x6, #4
	0xd5184026, //    msr  elr_el1, x6
	0xd69f03e0, //    eret
	0xb9000426, // 2: str  w6, [x1, #4]
	0x14000000, //    b    .
)

// all lists the steps in the order in which they lie in memory. They are put there before the guest runs first, and never
// changed: a guest without caches would not see what the host writes later.
func all() []step {
	out := []step{spin, hang, undefined}
	out = append(out, timed...)
	return append(out, required...)
}

// codeOf is where a step lies; false when it is none of all.
func codeOf(s step) (addr uint64, ok bool) {
	for i, known := range all() {
		if known.name == s.name {
			return addrCode + uint64(i)*stepSize, true
		}
	}
	return 0, false
}

// layOut fills fresh guest memory with translation tables, vectors and the code of all steps.
func layOut(mem []byte) {
	const (
		table, block    = 3, 1
		accessed, inner = 1 << 10, 3 << 8
		device          = 1 << 2             // attribute 1
		never           = 1<<53 | 1<<54      // not executable
		mmioIndex       = mmioDone / memSize // blocks are as large as the memory
	)
	put := binary.LittleEndian.PutUint64
	put(mem[addrL1:], addrL2|table)
	put(mem[addrL2:], 0|accessed|inner|block)
	put(mem[addrL2+8*mmioIndex:], mmioDone|accessed|device|never|block)
	for vector := addrVBAR; vector < addrVBAR+0x800; vector += 0x80 {
		copy(mem[vector:], handler)
	}
	for i, s := range all() {
		copy(mem[addrCode+i*stepSize:addrData], s.code)
	}
}
