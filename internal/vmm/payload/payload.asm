# A guest of one page for tests and benchmarks of virtual machine monitors: no kernel, no interrupts, no devices but the
# serial port. It counts, and it obeys lines that come in on the serial port.
#
# Entry: 64-bit mode, ring 0, the first GiB identity mapped by pages of 2 MiB whose tables CR3 leads to (what a monitor sets up
# for the Linux 64-bit boot protocol). It goes on in ring 3 with the right to use ports, because a stand-in for hardware
# virtualisation emulates each instruction of ring 0 and runs those of ring 3 itself.
#
#   c            the count, which grows by one in about 2^24 cycles of the time stamp counter (5 to 8 ms)
#   s N TEXT     keep TEXT, at most 55 bytes, in place N (one character)
#   g N          what place N holds
#   p            write the pattern over 16 MiB from 32 MiB on: each 8 bytes hold their own address, mixed
#   v            verify the pattern: "ok", or the address of the first 8 bytes that are wrong, in hexadecimal
#   d N          dirty page N (one character) of the pattern's region: its first 8 bytes become the count
#   x            reset, which ends the machine
#
# Each line is answered by one line that begins with "=".
        .code64
        .text
        .globl  _start
        .set    PORT, 0x3f8
        .set    KEEP, 0x2000000 - 0x10000       # 256 places of 64 bytes
        .set    AREA, 0x2000000
        .set    AREA_END, 0x3000000
        .set    LINE, KEEP + 0x8000             # the line that is coming in

_start: mov     $0x1ff0000 - 0x100, %rsp
        cld
        mov     %cr3, %rbx                      # let ring 3 use every page: bit 2 in each table
        orb     $4, (%rbx)
        mov     (%rbx), %rax
        and     $-4096, %rax
        orb     $4, (%rax)
        mov     (%rax), %rdi
        and     $-4096, %rdi
        mov     $512, %ecx
1:      orb     $4, (%rdi)
        add     $8, %rdi
        dec     %ecx
        jnz     1b
        mov     %rbx, %cr3
        lgdt    table(%rip)
        mov     %rsp, %rax
        pushq   $0x1b                           # stack segment, ring 3
        pushq   %rax
        pushq   $0x3002                         # flags: ports for ring 3
        pushq   $0x23                           # code segment, ring 3
        lea     ring3(%rip), %rax
        pushq   %rax
        iretq

ring3:
        xor     %ebp, %ebp                      # rbp: the count
        xor     %ebx, %ebx                      # rbx: length of the line so far
        rdtsc
        mov     %eax, %r12d                     # r12: time of the last count
        mov     $KEEP, %edi                     # nothing is kept yet
        mov     $0x10000 / 8, %ecx
        xor     %eax, %eax
        rep stosq
        lea     hello(%rip), %rsi
        call    puts

loop:   call    tick
        mov     $PORT + 5, %dx
        in      %dx, %al
        test    $1, %al
        jz      idle
        mov     $PORT, %dx
        in      %dx, %al
        cmp     $'\n', %al
        je      obey
        cmp     $120, %ebx
        jae     loop                            # too long: the rest is dropped
        mov     %al, LINE(%rbx)
        inc     %ebx
        jmp     loop
idle:   mov     $2000, %ecx                     # do not ask the port all the time: each question leaves the guest
1:      pause
        dec     %ecx
        jnz     1b
        jmp     loop

tick:   rdtsc
        mov     %eax, %ecx
        sub     %r12d, %ecx
        cmp     $1 << 24, %ecx
        jb      1f
        mov     %eax, %r12d
        inc     %rbp
1:      ret

obey:   movb    $0, LINE(%rbx)
        xor     %ebx, %ebx
        movzbl  LINE, %eax
        movzbl  LINE + 2, %r8d
        cmp     $'c', %al
        je      count
        cmp     $'s', %al
        je      keep
        cmp     $'g', %al
        je      give
        cmp     $'p', %al
        je      fill
        cmp     $'v', %al
        je      verify
        cmp     $'d', %al
        je      dirty
        cmp     $'x', %al
        je      reset
        lea     what(%rip), %rsi
        jmp     answer

count:  call    begin
        mov     %rbp, %rax
        call    decimal
        jmp     end

keep:   mov     %r8d, %edi
        shl     $6, %edi
        add     $KEEP, %edi
        mov     $LINE + 4, %esi
        mov     $55, %ecx
        rep movsb
        movb    $0, (%rdi)
        lea     ok(%rip), %rsi
        jmp     answer

give:   mov     %r8d, %esi
        shl     $6, %esi
        add     $KEEP, %esi
        jmp     answer

fill:   mov     $AREA, %edi
1:      call    mixed
        mov     %rax, (%rdi)
        add     $8, %rdi
        cmp     $AREA_END, %rdi
        jb      1b
        lea     ok(%rip), %rsi
        jmp     answer

verify: mov     $AREA, %edi
1:      call    mixed
        cmp     %rax, (%rdi)
        jne     2f
        add     $8, %rdi
        cmp     $AREA_END, %rdi
        jb      1b
        lea     ok(%rip), %rsi
        jmp     answer
2:      call    begin
        mov     %rdi, %rax
        call    hexadecimal
        jmp     end

dirty:  mov     %r8d, %edi
        shl     $12, %edi
        add     $AREA, %edi
        mov     %rbp, (%rdi)
        lea     ok(%rip), %rsi
        jmp     answer

reset:  mov     $0xfe, %al                      # the keyboard controller's reset line
        out     %al, $0x64
        jmp     .

mixed:  mov     %rdi, %rax                      # rax: what belongs at rdi
        mov     $0x9e3779b97f4a7c15, %r9
        imul    %r9, %rax
        ret

begin:  mov     $'=', %al
        jmp     putc
answer: call    begin                           # a line that rsi points to, ended by a zero
        call    puts
end:    mov     $'\n', %al
        call    putc
        jmp     loop

puts:   lodsb
        test    %al, %al
        jz      1f
        call    putc
        jmp     puts
putc:   mov     $PORT, %dx
        out     %al, %dx
1:      ret

decimal:
        mov     $10, %r9d
        jmp     number
hexadecimal:
        mov     $16, %r9d
number: lea     -1(%rsp), %rsi                  # the digits, from the last to the first, below what calls need
        sub     $64, %rsi
        movb    $0, (%rsi)
1:      xor     %edx, %edx
        div     %r9
        add     $'0', %dl
        cmp     $'9', %dl
        jbe     2f
        add     $'a' - '9' - 1, %dl
2:      dec     %rsi
        mov     %dl, (%rsi)
        test    %rax, %rax
        jnz     1b
        jmp     puts

        .balign 8
gdt:    .quad   0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff
table:  .word   table - gdt - 1
        .quad   gdt
hello:  .asciz  "payload\n"
ok:     .asciz  "ok"
what:   .asciz  "what?"
