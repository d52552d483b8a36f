#include "textflag.h"

// The stack is as the kernel leaves it: argc, then the pointers to the arguments. It stays so for Go, whose turn comes at runtime.
TEXT ·entry(SB),NOSPLIT|NOFRAME,$0
	MOVQ	0(SP), R12		// argc
	TESTQ	R12, R12
	JLE	runtime
	MOVQ	8(SP), SI
	MOVQ	SI, R8			// where the name begins, behind the last slash
name:
	MOVBLZX	(SI), AX
	INCQ	SI
	CMPB	AL, $'/'
	JNE	inside
	MOVQ	SI, R8
inside:
	TESTB	AL, AL
	JNE	name
	SUBQ	R8, SI			// its length and one
	CMPQ	SI, $6
	JEQ	five
	CMPQ	SI, $5
	JNE	runtime
	MOVL	(R8), AX
	CMPL	AX, $0x65757274		// true
	JEQ	success
	CMPL	AX, $0x6f686365		// echo
	JEQ	echo
	JMP	runtime
five:
	CMPL	(R8), $0x736c6166	// fals
	JNE	runtime
	CMPB	4(R8), $'e'
	JNE	runtime
	MOVL	$1, DI
	JMP	exit

echo:
	LEAQ	-4096(SP), R9		// what is printed, put together below the stack
	LEAQ	-8(SP), R13		// and what does not fit is Go's
	MOVQ	R9, DI
	MOVQ	$1, R10
	CMPQ	R12, $1
	JEQ	print
	MOVQ	16(SP), SI
	CMPB	(SI), $'-'		// perhaps an option
	JEQ	runtime
argument:
	MOVQ	8(SP)(R10*8), SI
byte:
	MOVBLZX	(SI), AX
	TESTB	AL, AL
	JEQ	next
	CMPQ	DI, R13
	JCC	runtime
	MOVB	AL, (DI)
	INCQ	DI
	INCQ	SI
	JMP	byte
next:
	INCQ	R10
	CMPQ	R10, R12
	JEQ	print
	CMPQ	DI, R13
	JCC	runtime
	MOVB	$' ', (DI)
	INCQ	DI
	JMP	argument
print:
	MOVB	$'\n', (DI)		// there is room for this one
	INCQ	DI
	MOVQ	DI, R13
	MOVQ	R9, SI
write:
	MOVQ	R13, DX
	SUBQ	SI, DX
	MOVL	$1, DI
	MOVL	$1, AX			// write
	SYSCALL
	TESTQ	AX, AX
	JLE	failed
	ADDQ	AX, SI
	CMPQ	SI, R13
	JNE	write
success:
	XORL	DI, DI
exit:
	MOVL	$231, AX		// exit_group
	SYSCALL
failed:
	CMPQ	SI, R9
	JEQ	runtime			// Go tries it again, and says what is wrong
	MOVL	$1, DI
	JMP	exit

runtime:
	JMP	_rt0_amd64_linux(SB)
