//! `--test-devices`, each of them tested by a guest from inside; and that nothing of them is there without.

use boot::testing::Code;

use crate::multiboot::run;
use crate::support::kvm;

/// Runs a guest that is to pass.
#[track_caller]
fn passes(guest: &'static Code, arguments: &[&str]) {
    run(guest, &[&["--test-devices"], arguments].concat()).assert(1, "", "");
}

/// Loads a table of interrupts in which the vector $vector is the code $handler, which may use all registers, and ends
/// with a jump, and EAX: PVM cannot return from an interrupt.
macro_rules! on_interrupt {
    ($vector:literal, $handler:expr) => {
        concat!(
            "mov esp, 0x210000
             call 87f
             mov esp, 0x210000
             ",
            $handler,
            "
             87: pop eax
             mov ecx, 0x202000 + 8 * ",
            $vector,
            "
             mov [ecx], ax
             mov word ptr [ecx + 2], 0x10
             mov word ptr [ecx + 4], 0x8e00
             shr eax, 16
             mov [ecx + 6], ax
             mov word ptr [0x203000], 0x7ff
             mov dword ptr [0x203002], 0x202000
             lidt [0x203000]
             mov dword ptr [0x200000], 0"
        )
    };
}

/// Waits for an interrupt.
macro_rules! wait {
    () => {
        "4: sti
         hlt
         jmp 4b"
    };
}

guest!(EXIT_DWORD, ".code32", "mov eax, 0x100\n mov dx, 0xf4\n out dx, eax\n 2: hlt\n jmp 2b");
guest!(EXIT_WORD, ".code32", "mov eax, 1\n mov dx, 0xf4\n out dx, ax\n 2: hlt\n jmp 2b");
guest!(
    EXIT_BYTE,
    ".code32",
    say!("'s'"),
    // The first status counts, and no triple fault or power-off after it.
    "mov eax, 38\n out 0xf4, al\n mov eax, 0\n out 0xf4, al",
    power_off!()
);

#[test]
fn a_value_at_the_debug_port_is_the_exit_status_without_a_word() {
    needs!(kvm());
    run(&EXIT_DWORD, &["--test-devices"]).assert(1, "", "");
    run(&EXIT_WORD, &["--test-devices"]).assert(3, "", "");
    run(&EXIT_BYTE, &["--test-devices"]).assert(77, "s", "");
    run(&EXIT_BYTE, &["--test-devices", "--on-reboot", "restart"]).assert(77, "s", "");
}

guest!(
    LATCHES,
    ".code32
     mov eax, 0x12345678
     out 0xe0, eax
     xor eax, eax
     in eax, 0xe0
     cmp eax, 0x12345678",
    check!(1, "je"),
    "in al, 0xe1
     cmp al, 0x56",
    check!(2, "je"),
    "in ax, 0xe2
     cmp ax, 0x1234",
    check!(3, "je"),
    "mov ax, 0xbeef
     out 0xe2, ax
     mov al, 0xaa
     out 0xe0, al
     in eax, 0xe0
     cmp eax, 0xbeef56aa",
    check!(4, "je"),
    "mov al, 1
     out 0xe8, al
     mov al, 4
     out 0xeb, al
     mov ax, 0x302
     out 0xe9, ax
     in eax, 0xe8
     cmp eax, 0x04030201",
    check!(5, "je"),
    "in eax, 0xe0
     cmp eax, 0xbeef56aa",
    check!(6, "je"),
    passed!(),
);

#[test]
fn latches_keep_what_is_written_at_every_width() {
    needs!(kvm());
    passes(&LATCHES, &[]);
    passes(&LATCHES, &["--no-acpi", "--cpus", "2"]);
}

guest!(
    FLUSHES,
    ".code32
     mov ecx, 100
     2: mov eax, ecx
     mov [0x300ffc], eax
     mov eax, 0x300000
     out 0xe4, eax
     cmp [0x300ffc], ecx",
    check!(1, "je"),
    "mov [0x300000], ecx
     mov eax, 0x300ffc
     out 0xe4, eax
     cmp [0x300000], ecx",
    check!(2, "je"),
    // The code itself, and where there is no memory.
    "mov eax, 0x100000
     out 0xe4, eax
     mov eax, 0xfffff000
     out 0xe4, eax
     dec ecx
     jnz 2b",
    passed!(),
);

#[test]
fn a_flushed_page_is_there_again_with_its_content() {
    needs!(kvm());
    passes(&FLUSHES, &[]);
}

guest!(
    LINES_BY_PIC,
    ".code32",
    on_interrupt!(0x26, "inc dword ptr [0x200000]\n jmp 5f"),
    "mov al, 0xbf",
    set_up_pics!(),
    "mov dx, 0x2006
     mov al, 1
     out dx, al",
    wait!(),
    // An edge is one interrupt, and the next needs the line down.
    "5: mov al, 0x20
     out 0x20, al
     mov dx, 0x2006
     cmp dword ptr [0x200000], 1
     ja 6f
     mov al, 1
     out dx, al
     sti
     nop
     nop
     cli
     cmp dword ptr [0x200000], 1",
    check!(1, "je"),
    "mov dword ptr [0x200004], 1
     xor al, al
     out dx, al
     mov al, 1
     out dx, al",
    "8: sti
     hlt
     jmp 8b
     6: cmp dword ptr [0x200000], 2",
    check!(2, "je"),
    "cmp dword ptr [0x200004], 1",
    check!(3, "je"),
    passed!(),
);

#[test]
fn a_port_drives_its_line_into_the_pic() {
    needs!(kvm());
    passes(&LINES_BY_PIC, &[]);
}

guest!(
    LINES_BY_IO_APIC,
    ".code32",
    on_interrupt!(0x44, "inc dword ptr [0x200000]\n jmp 5f"),
    "mov al, 0xff",
    set_up_pics!(),
    // Pin 20: vector 0x44, level, to APIC 0.
    "mov ebx, 0xfec00000
     mov dword ptr [ebx], 0x39
     mov dword ptr [ebx + 0x10], 0
     mov dword ptr [ebx], 0x38
     mov dword ptr [ebx + 0x10], 0x8044
     mov ebx, 0xfee00000
     mov dword ptr [ebx + 0xf0], 0x1ff
     mov dx, 0x2014
     mov al, 1
     out dx, al",
    wait!(),
    // As long as the line is up, the end of one interrupt is the beginning of the next.
    "5: cmp dword ptr [0x200000], 3
     jb 6f
     mov dx, 0x2014
     xor al, al
     out dx, al
     6: mov dword ptr [ebx + 0xb0], 0
     cmp dword ptr [0x200000], 3
     jae 7f",
    "8: sti
     hlt
     jmp 8b
     7: sti
     nop
     nop
     cli
     cmp dword ptr [0x200000], 3",
    check!(1, "je"),
    passed!(),
);

#[test]
fn a_port_drives_its_line_into_the_io_apic_by_level() {
    needs!(kvm());
    passes(&LINES_BY_IO_APIC, &[]);
}

guest!(
    SCRATCH,
    ".code32
     mov ebx, 0xff000000
     cmp dword ptr [ebx], 0",
    check!(1, "je"),
    "mov dword ptr [ebx + 0xfffc], 0x89abcdef
     cmp word ptr [ebx + 0xfffe], 0x89ab",
    check!(2, "je"),
    "mov byte ptr [ebx + 0xfffd], 0x55
     cmp dword ptr [ebx + 0xfffc], 0x89ab55ef",
    check!(3, "je"),
    "cmp dword ptr [ebx + 0x10000], -1",
    check!(4, "je"),
    passed!(),
);

#[test]
fn scratch_memory_keeps_what_is_written_and_ends_at_64_kib() {
    needs!(kvm());
    passes(&SCRATCH, &[]);
}

guest!(
    FW_CFG,
    ".code32
     cld
     mov dx, 0x510
     xor eax, eax
     out dx, ax
     mov edi, 0x200000
     mov ecx, 4
     mov dx, 0x511
     rep insb
     cmp dword ptr [0x200000], 0x554d4551 // QEMU",
    check!(1, "je"),
    read_fw_cfg!(5),
    "cmp al, 3",
    check!(2, "je"),
    "in al, dx
     test al, al",
    check!(3, "jz"),
    "mov dx, 0x510
     mov ax, 3
     out dx, ax
     mov edi, 0x200000
     mov ecx, 8
     mov dx, 0x511
     2: in al, dx
     stosb
     loop 2b
     cmp dword ptr [0x200000], 0x4000000",
    check!(4, "je"),
    "cmp dword ptr [0x200004], 0",
    check!(5, "je"),
    passed!(),
);

#[test]
fn fw_cfg_tells_the_cpus_and_the_memory() {
    needs!(kvm());
    passes(&FW_CFG, &["--cpus", "3"]);
}

guest!(
    PM_TIMER,
    ".code32
     mov ebx, 0xe0000
     2: cmp dword ptr [ebx], 0x20445352 // RSD
     jne 3f
     cmp dword ptr [ebx + 4], 0x20525450 // PTR
     je 4f
     3: add ebx, 16
     cmp ebx, 0x100000",
    "jb 2b",
    check!(1, "jb"),
    "4: mov esi, [ebx + 16]
     cmp dword ptr [esi], 0x54445352 // RSDT",
    check!(2, "je"),
    "mov ecx, [esi + 4]
     add ecx, esi
     add esi, 36
     5: mov edi, [esi]
     cmp dword ptr [edi], 0x50434146 // FACP
     je 6f
     add esi, 4
     cmp esi, ecx
     jb 5b",
    check!(3, "jb"),
    "6: mov edx, [edi + 76]
     cmp edx, 0x608",
    check!(4, "je"),
    "in eax, dx
     mov ebx, eax
     mov ecx, 1000000
     7: in eax, dx
     sub eax, ebx
     jnz 8f
     loop 7b
     8: cmp eax, 0",
    check!(5, "ja"),
    // Forward, and not by half of all there is.
    "test eax, eax",
    check!(6, "jns"),
    passed!(),
);

#[test]
fn the_pm_timer_is_named_by_the_fadt_and_runs() {
    needs!(kvm());
    passes(&PM_TIMER, &[]);
}

guest!(
    PIT,
    ".code32",
    on_interrupt!(0x20, "inc dword ptr [0x200000]\n jmp 5f"),
    "mov al, 0xfe",
    set_up_pics!(),
    // Channel 0, mode 2, every 10 ms.
    "mov al, 0x34
     out 0x43, al
     mov al, 0x9b
     out 0x40, al
     mov al, 0x2e
     out 0x40, al",
    wait!(),
    "5: mov al, 0x20
     out 0x20, al
     cmp dword ptr [0x200000], 3
     jae 6f
     8: sti
     hlt
     jmp 8b
     6: mov al, 0
     out 0x43, al
     in al, 0x40
     mov ah, al
     in al, 0x40
     cmp al, 0x2e",
    check!(1, "jbe"),
    passed!(),
);

#[test]
fn the_interval_timer_interrupts_through_the_pic() {
    needs!(kvm());
    passes(&PIT, &[]);
}
