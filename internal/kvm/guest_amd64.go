package kvm

// Guest physical memory, all of it identity mapped:
//
//	0x1000 page map level 4     0x4000 interrupt descriptors     0x8000 code
//	0x2000 page directories     0x5000 exception stubs           0x9000 data (64-byte aligned, for xsave)
//	0x3000 page directory       0x6000 global descriptors        0xf000 top of the stack
//
// A step starts with rcx = its argument, or else its count, rsi = count and rdi = addrData. It ends with a write to portDone.
const (
	addrPML4 = 0x1000
	addrPDPT = 0x2000
	addrPD   = 0x3000
	addrIDT  = 0x4000
	addrStub = 0x5000
	addrGDT  = 0x6000
	addrCode = 0x8000
	addrData = 0x9000
	addrTop  = 0xf000
	memSize  = 2 << 20 // one large page

	portDone  = 0x10 // a step went through
	portFault = 0x11 // an exception came; its number is in al
)

// spin is ordinary instructions only. The exit at its end is measured with it: 2 µs on hardware, up to 50 µs in nested
// virtualisation, so at 20,000 turns at most 2.5 ns of a turn.
var spin = step{name: "an ordinary loop", count: 20_000, code: []byte{
	0x48, 0x83, 0xc0, 0x01, // 1: add  $1, %rax
	0x48, 0xff, 0xc9, //          dec  %rcx
	0x75, 0xf7, //                jnz  1b
	0xe6, portDone, //            out  %al, $portDone
	0xf4, //                      hlt
}}

// hang never leaves the guest; tests use it to see the watchdog work.
var hang = step{name: "hang", code: []byte{0xeb, 0xfe}} // 1: jmp 1b

// undefined is no instruction; tests use it to see that exceptions are told.
var undefined = step{name: "ud2", code: []byte{0x0f, 0x0b}}

// timed are privileged instructions that a guest kernel executes all the time: at each context switch and each entry. 500 turns
// add at most 100 ns of the exit to each, and take 10 ms where one is emulated in 20 µs.
var timed = []step{
	{name: "mov to cr3", count: 500, code: []byte{
		0x0f, 0x20, 0xd8, //       mov  %cr3, %rax
		0x0f, 0x22, 0xd8, //    1: mov  %rax, %cr3
		0x48, 0xff, 0xc9, //       dec  %rcx
		0x75, 0xf8, //             jnz  1b
		0xe6, portDone, //         out  %al, $portDone
		0xf4, //                   hlt
	}},
	{name: "wrmsr of the gs base", count: 500, arg: 0xc0000101, code: []byte{
		0x31, 0xc0, //             xor  %eax, %eax
		0x31, 0xd2, //             xor  %edx, %edx
		0x0f, 0x30, //          1: wrmsr
		0x48, 0xff, 0xce, //       dec  %rsi
		0x75, 0xf9, //             jnz  1b
		0xe6, portDone, //         out  %al, $portDone
		0xf4, //                   hlt
	}},
	{name: "cli", count: 500, code: []byte{
		0xfa,             //    1: cli
		0x48, 0xff, 0xc9, //       dec  %rcx
		0x75, 0xfa, //             jnz  1b
		0xe6, portDone, //         out  %al, $portDone
		0xf4, //                   hlt
	}},
}

// required are instructions that every 64-bit Linux kernel executes in ring 0: without them it does not boot.
var required = []step{
	{name: "cmpxchg16b", feature: feature{leaf: 1, reg: 2, bit: 13}, code: []byte{
		0x31, 0xc0, //                   xor  %eax, %eax
		0x31, 0xd2, //                   xor  %edx, %edx
		0xbb, 0x01, 0x00, 0x00, 0x00, // mov  $1, %ebx
		0x31, 0xc9, //                   xor  %ecx, %ecx
		0xf0, 0x48, 0x0f, 0xc7, 0x0f, // lock cmpxchg16b (%rdi)
		0xe6, portDone, //               out  %al, $portDone
		0xf4, //                         hlt
	}},
	{name: "xrstor", feature: feature{leaf: 1, reg: 2, bit: 26}, code: []byte{
		0x31, 0xc9, //                   xor  %ecx, %ecx
		0x31, 0xd2, //                   xor  %edx, %edx
		0xb8, 0x03, 0x00, 0x00, 0x00, // mov  $3, %eax      x87 and SSE state
		0x0f, 0x01, 0xd1, //             xsetbv
		0x0f, 0xae, 0x27, //             xsave (%rdi)
		0x0f, 0xae, 0x2f, //             xrstor (%rdi)
		0xe6, portDone, //               out  %al, $portDone
		0xf4, //                         hlt
	}},
	{name: "int3", code: []byte{
		0xcc,           //               int3               its handler is a single iretq
		0xe6, portDone, //               out  %al, $portDone
		0xf4, //                         hlt
	}},
	{name: "clac", feature: feature{leaf: 7, reg: 1, bit: 20}, code: []byte{
		0x0f, 0x01, 0xca, //             clac
		0xe6, portDone, //               out  %al, $portDone
		0xf4, //                         hlt
	}},
	{name: "swapgs", code: []byte{
		0x0f, 0x01, 0xf8, //             swapgs
		0xe6, portDone, //               out  %al, $portDone
		0xf4, //                         hlt
	}},
}

// iretq is the handler of int3.
var iretq = []byte{0x48, 0xcf}

const vectorInt3 = 3

// layOut fills fresh guest memory with page tables, descriptors and exception stubs.
func layOut(mem []byte) {
	const present, writable, large = 1 << 0, 1 << 1, 1 << 7
	put64(mem, addrPML4, addrPDPT|present|writable)
	put64(mem, addrPDPT, addrPD|present|writable)
	put64(mem, addrPD, 0|present|writable|large) // one page of 2 MiB at 0
	put64(mem, addrGDT+8, 0x00af9b000000ffff)    // code: 64-bit, ring 0
	put64(mem, addrGDT+16, 0x00cf93000000ffff)   // data
	for v := range 32 {
		at := uint64(addrStub + 8*v)
		// mov $v, %al; out %al, $portFault; hlt
		copy(mem[at:], []byte{0xb0, byte(v), 0xe6, portFault, 0xf4})
		if v == vectorInt3 {
			copy(mem[at:], iretq)
		}
		// Interrupt gate: offset 15..0, selector 8, present and type 0xe, offset 31..16 (zero: stubs lie below 64 KiB).
		put64(mem, addrIDT+16*v, at|8<<16|0x8e00<<32)
	}
}

func put64(mem []byte, at int, v uint64) {
	for i := range 8 {
		mem[at+i] = byte(v >> (8 * i))
	}
}
