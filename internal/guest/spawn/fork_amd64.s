#include "textflag.h"

// func clone3(args *cloneArgs, size uintptr) (r1 uintptr, errno uintptr)
//
// The child shares this stack and runs on it first. The way back is kept in a register, where what the child calls cannot overwrite it.
TEXT ·clone3(SB), NOSPLIT|NOFRAME, $0-32
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	$435, AX // SYS_CLONE3
	POPQ	R12
	SYSCALL
	PUSHQ	R12
	CMPQ	AX, $-4095
	JCC	failed
	MOVQ	AX, r1+16(FP)
	MOVQ	$0, errno+24(FP)
	RET

failed:
	NEGQ	AX
	MOVQ	$0, r1+16(FP)
	MOVQ	AX, errno+24(FP)
	RET
