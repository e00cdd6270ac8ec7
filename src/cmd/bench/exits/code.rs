//! What the guests of the benchmark execute: one operation over and over, each timed by the guest itself with RDTSC, in
//! long mode with the first 4 GiB mapped to themselves. Code can be moved: it runs wherever it is put.
//!
//! A run begins with what the host has written into the mailbox: how many operations, and whether to time each
//! (into the ring, 32 bits a time) or all together (into the mailbox). It ends with an exit of another kind than the
//! operation's, so that a loop which only compares exit reasons notices. LFENCE keeps RDTSC from being executed out of
//! order (Intel SDM vol. 2, RDTSC); RDTSCP would do as well, but not every KVM emulates it.

use boot::testing::assembly;

/// The mailbox, in RAM: words of 64 bits. At 0x18 is where to go at the end instead of leaving, if not 0.
pub const MAILBOX: u64 = 0x20_0000;
/// How many operations.
pub const COUNT: u64 = MAILBOX;
/// Not 0 if all operations are timed together.
pub const BATCH: u64 = MAILBOX + 0x8;
/// How long all together have taken, in ticks.
pub const TOTAL: u64 = MAILBOX + 0x10;
/// What an operation needs to know, such as an address.
pub const PARAMETER: u64 = MAILBOX + 0x20;
/// And how far it is from one operation's to the next.
pub const STRIDE: u64 = MAILBOX + 0x28;
/// How many runs have come to their end.
pub const RUNS: u64 = MAILBOX + 0x30;
/// How many interrupts have been taken.
pub const INTERRUPTS: u64 = MAILBOX + 0x40;
/// When the last one was, in ticks.
pub const INTERRUPTED: u64 = MAILBOX + 0x48;
/// The times of single operations.
pub const RING: u64 = 0x40_0000;
/// What else is noted of each.
pub const SECOND_RING: u64 = 0x80_0000;
/// No more operations than this fit in a ring.
pub const RING_MAX: u64 = 1 << 20;
/// The first port of the device that the operations are about.
pub const PORT: u16 = 0xe0;
/// Its registers in memory space.
pub const MMIO: u64 = 0xd000_3000;
/// The port that ends a run.
pub const DONE_PORT: u16 = 0xe8;
/// The address that ends a run.
pub const DONE_MMIO: u64 = 0xd000_4000;
/// The vector of the interrupts.
pub const VECTOR: u8 = 0x40;

/// Reads the clock into EAX and EDX, after everything before and before everything behind.
macro_rules! clock {
    () => {
        "lfence\n rdtsc\n lfence\n"
    };
}

/// Reads the clock into RAX.
macro_rules! clock64 {
    () => {
        "lfence\n rdtsc\n lfence\n shl rdx, 32\n or rax, rdx\n"
    };
}

/// The end of a run: it leaves, and the next run begins; or it goes where the mailbox says.
macro_rules! end {
    ($done:literal) => {
        concat!(
            "7: add qword ptr [r14 + 48], 1\n mov rax, [r14 + 24]\n test rax, rax\n jz 8f\n jmp rax\n 8:",
            $done,
            "\n jmp 1b"
        )
    };
}

/// The loop around an operation. `first` is executed once a run, `next` between operations and not timed; `op` may use
/// every register but R8, R11 to R15 and those that `first` sets. `done` ends the run, and the next one begins behind it.
macro_rules! payload {
    ($name:ident, first = $first:literal, op = $op:literal, next = $next:literal, done = $done:literal) => {
        assembly!(
            pub $name,
            "1: mov r14d, 0x200000\n mov r12, [r14]\n mov r13d, 0x400000\n",
            $first,
            "\n cmp qword ptr [r14 + 8], 0\n jne 5f",
            concat!("3:", clock!(), "mov r8d, eax\n", $op, "\n", clock!()),
            "sub eax, r8d\n mov [r13], eax\n add r13, 4\n",
            concat!($next, "\n dec r12\n jnz 3b\n jmp 7f"),
            concat!("5:", clock64!(), "mov r15, rax"),
            concat!("6:", $op, "\n", $next, "\n dec r12\n jnz 6b"),
            concat!(clock64!(), "sub rax, r15\n mov [r14 + 16], rax"),
            end!($done),
        );
    };
    ($name:ident, $op:literal) => {
        payload!($name, first = "", op = $op, next = "", done = "out 0xe8, al");
    };
    // The operation is itself an exit by a port.
    ($name:ident, port $op:literal) => {
        payload!($name, first = "", op = $op, next = "", done = "mov edx, 0xd0004000\n mov [rdx], eax");
    };
    ($name:ident, memory $op:literal) => {
        payload!($name, first = "mov ebx, 0xd0003000", op = $op, next = "", done = "out 0xe8, al");
    };
}

payload!(NULL, "");
payload!(CPUID, "xor eax, eax\n xor ecx, ecx\n cpuid");
payload!(HYPERCALL_INTEL, "mov eax, 99\n vmcall");
payload!(HYPERCALL_AMD, "mov eax, 99\n vmmcall");
payload!(RDMSR, "mov ecx, 0x3b\n rdmsr");
payload!(WRMSR, "mov ecx, 0x3b\n xor eax, eax\n xor edx, edx\n wrmsr");
// One that no processor has.
payload!(RDMSR_NOBODY, "mov ecx, 0x4b495445\n rdmsr");
payload!(PIO_KERNEL, "mov edx, 0x4d0\n in al, dx");
payload!(PIO_IN_1, port "in al, 0xe0");
payload!(PIO_IN_2, port "in ax, 0xe0");
payload!(PIO_IN_4, port "in eax, 0xe0");
payload!(PIO_OUT_1, port "out 0xe0, al");
payload!(PIO_OUT_2, port "out 0xe0, ax");
payload!(PIO_OUT_4, port "out 0xe0, eax");
payload!(PIO_NOBODY, port "in al, 0xf0");
payload!(PIO_REP16, port "mov edx, 0xe0\n mov esi, 0x200080\n mov ecx, 16\n cld\n rep outsb");
payload!(MMIO_READ_1, memory "mov al, [rbx]");
payload!(MMIO_READ_4, memory "mov eax, [rbx]");
payload!(MMIO_READ_8, memory "mov rax, [rbx]");
payload!(MMIO_WRITE_1, memory "mov [rbx], al");
payload!(MMIO_WRITE_4, memory "mov [rbx], eax");
payload!(MMIO_WRITE_8, memory "mov [rbx], rax");
// With a value that the eventfds of these addresses want.
payload!(NOTIFY_PIO, "xor eax, eax\n out 0xe0, eax");
payload!(NOTIFY_MMIO, memory "xor eax, eax\n mov [rbx], eax");
payload!(
    TOUCH,
    first = "mov rdi, [r14 + 32]\n mov r11, [r14 + 40]",
    op = "mov [rdi], al",
    next = "add rdi, r11",
    done = "out 0xe8, al"
);

/// A loop whose operations are answered by an interrupt. The ring gets how long after an operation's begin that was taken,
/// the other ring the lower half of what `note` leaves in RAX.
macro_rules! answered {
    ($name:ident, op = $op:literal, wait = $wait:literal, note = $note:literal, next = $next:literal) => {
        assembly!(
            pub $name,
            "1: mov r14d, 0x200000\n mov r12, [r14]\n mov r13d, 0x400000\n mov r15d, 0x800000\n sti",
            concat!("3: mov r9, [r14 + 64]\n", clock64!(), "mov r8, rax\n", $op),
            concat!("\n", clock64!(), "mov r10, rax"),
            concat!("4: ", $wait, "\n cmp r9, [r14 + 64]\n je 4b"),
            "mov rax, [r14 + 72]\n sub rax, r8\n mov [r13], eax",
            concat!($note, "\n mov [r15], eax\n add r13, 4\n add r15, 4"),
            concat!($next, "\n dec r12\n jnz 3b\n cli"),
            end!("out 0xe8, al"),
        );
    };
}

// To itself, fixed, vector 0x40 (Intel SDM vol. 3 §11.6.1).
answered!(
    IPI_SELF_XAPIC,
    op = "mov ebx, 0xfee00300\n mov dword ptr [rbx], 0x44040",
    wait = "",
    note = "",
    next = ""
);
answered!(
    IPI_SELF_X2APIC,
    op = "mov ecx, 0x830\n mov eax, 0x44040\n xor edx, edx\n wrmsr",
    wait = "",
    note = "",
    next = ""
);
// To local APIC 1. R10 is when sending had been done; behind each the other may come to rest, PARAMETER ticks.
answered!(
    IPI_XAPIC,
    op = "mov ebx, 0xfee00300\n mov dword ptr [rbx + 16], 0x1000000\n mov dword ptr [rbx], 0x4040",
    wait = "",
    note = "mov rax, r10\n sub rax, r8",
    next = "mov r10, [r14 + 72]\n add r10, [r14 + 32]\n 9: rdtsc\n shl rdx, 32\n or rax, rdx\n cmp rax, r10\n jb 9b"
);
answered!(
    IPI_X2APIC,
    op = "mov ecx, 0x830\n mov eax, 0x4040\n mov edx, 1\n wrmsr",
    wait = "",
    note = "mov rax, r10\n sub rax, r8",
    next = "mov r10, [r14 + 72]\n add r10, [r14 + 32]\n 9: rdtsc\n shl rdx, 32\n or rax, rdx\n cmp rax, r10\n jb 9b"
);
// A queue's doorbell, and an interrupt when that has been served.
answered!(
    ROUND_TRIP,
    op = "xor eax, eax\n mov ebx, 0xd0003000\n mov [rbx], eax",
    wait = "",
    note = "mov rax, r8",
    next = ""
);
// The deadline is PARAMETER ticks away (Intel SDM vol. 3 §11.5.4.1), and R8 is when.
answered!(
    TIMER,
    op = "add r8, [r14 + 32]\n mov rax, r8\n mov rdx, r8\n shr rdx, 32\n mov ecx, 0x6e0\n cli\n wrmsr\n sti\n hlt",
    wait = "",
    note = "",
    next = ""
);

// What goes before a payload in an image: from 32-bit protected mode into long mode, with the first 4 GiB mapped to
// themselves, then the payload, which comes back to `11`, twice; and behind it what prints the ring.
assembly!(
    pub IMAGE,
    ".code32",
    "cld\n mov esp, 0x180000",
    // Page tables at 0x9000: one of the fourth level, one of the third, four directories of large pages.
    "mov edi, 0x9000\n xor eax, eax\n mov ecx, 0x1800\n rep stosd",
    "mov dword ptr [0x9000], 0xa003",
    "mov edi, 0xa000\n mov eax, 0xb003\n mov ecx, 4",
    "3: mov [edi], eax\n add eax, 0x1000\n add edi, 8\n loop 3b",
    "mov edi, 0xb000\n mov eax, 0x83\n mov ecx, 2048",
    "4: mov [edi], eax\n add eax, 0x200000\n add edi, 8\n loop 4b",
    // A table of segments at 0x500, and its address behind it.
    "xor eax, eax\n mov edi, 0x500\n mov ecx, 8\n rep stosd",
    "mov dword ptr [0x510], 0xffff\n mov dword ptr [0x514], 0x00af9b00",
    "mov dword ptr [0x518], 0xffff\n mov dword ptr [0x51c], 0x00cf9300",
    "mov word ptr [0x530], 31\n mov dword ptr [0x532], 0x500\n lgdt [0x530]",
    // PAE, the tables, long mode, paging.
    "mov eax, 0x20\n mov cr4, eax\n mov eax, 0x9000\n mov cr3, eax",
    "mov ecx, 0xc0000080\n rdmsr\n or eax, 0x100\n wrmsr",
    "mov eax, cr0\n or eax, 0x80000001\n mov cr0, eax",
    // What is behind the call is returned to, in the 64-bit segment.
    "jmp 8f\n 7: retf\n 8: push 0x10\n call 7b",
    ".code64",
    "mov eax, 0x18\n mov ds, eax\n mov es, eax\n mov ss, eax",
    // Once to get warm, then once more.
    "xor r10d, r10d\n mov edi, 0x200000\n xor eax, eax\n mov ecx, 16\n rep stosq",
    "lea rax, [rip + 11f]\n mov [0x200018], rax",
    "6: mov qword ptr [0x200000], 2000\n mov [0x200038], r10\n jmp 20f",
    "11: mov r10, [0x200038]\n inc r10\n cmp r10, 2\n jb 6b",
    // The last thousand of the ring.
    "mov esi, 0x400000 + 4000\n mov edi, 1000",
    "12: mov ebx, [rsi]\n add rsi, 4\n mov ecx, 8",
    "13: rol ebx, 4\n mov eax, ebx\n and al, 15\n add al, 48\n cmp al, 58\n jb 14f\n add al, 39",
    "14: mov edx, 0x3f8\n out dx, al\n dec ecx\n jnz 13b",
    "mov al, 10\n out dx, al\n dec edi\n jnz 12b",
    "mov edx, 0x600\n mov al, 0x34\n out dx, al\n mov edx, 0xf4\n xor eax, eax\n out dx, eax",
    "push 0\n push 0\n lidt [rsp]\n ud2",
    "20:",
);

// Leaves the time in the mailbox.
assembly!(
    pub CLOCK,
    "1: mov r14d, 0x200000",
    concat!(clock64!(), "mov [r14 + 16], rax\n add qword ptr [r14 + 48], 1\n out 0xe8, al\n jmp 1b")
);

// Stays in the guest, and takes interrupts.
assembly!(pub SPIN, "sti\n 1: jmp 1b");
assembly!(pub HALT, "sti\n 1: hlt\n jmp 1b");

/// An interrupt's handler: notes the time, tells the local APIC, and counts last.
macro_rules! handler {
    ($name:ident, $eoi:literal) => {
        assembly!(
            pub $name,
            concat!("push rax\n push rcx\n push rdx\n push r14\n", clock64!()),
            "mov r14d, 0x200000\n mov [r14 + 72], rax",
            $eoi,
            "add qword ptr [r14 + 64], 1\n pop r14\n pop rdx\n pop rcx\n pop rax\n iretq",
        );
    };
}

handler!(HANDLER_XAPIC, "mov ecx, 0xfee000b0\n mov dword ptr [rcx], 0");
handler!(HANDLER_X2APIC, "mov ecx, 0x80b\n xor eax, eax\n xor edx, edx\n wrmsr");
