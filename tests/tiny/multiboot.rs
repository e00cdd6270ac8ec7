//! Multiboot images: what they find at their first instruction, and what they are told.

use std::process::Stdio;

use boot::testing::{Code, Entry, multiboot_at, multiboot_elf};

use crate::process::Kite;
use crate::support::child::End;
use crate::support::guest::Elf;
use crate::support::kvm;

/// Runs a Multiboot image.
pub fn run(guest: &'static Code, arguments: &[&str]) -> End {
    Kite::start(guest, Entry::Multiboot, arguments, Stdio::null(), Stdio::piped()).end()
}

/// Ends the guest with a status that no other check has, unless the condition of this jump holds.
macro_rules! check {
    ($number:literal, $jump:literal) => {
        concat!(
            $jump,
            " 88f
             mov dx, 0xf4
             mov eax, ",
            $number,
            "
             out dx, eax
             89: hlt
             jmp 89b
             88:"
        )
    };
}

/// Ends the guest with the status of success, 1.
macro_rules! passed {
    () => {
        "mov dx, 0xf4
         xor eax, eax
         out dx, eax
         89: hlt
         jmp 89b"
    };
}

/// Prints the text at ESI, and a semicolon.
macro_rules! print_text {
    () => {
        "mov dx, 0x3f8
         86: mov al, [esi]
         inc esi
         test al, al
         jz 87f
         out dx, al
         jmp 86b
         87: mov al, ';'
         out dx, al"
    };
}

guest!(
    STATE,
    ".code32
     mov esp, 0x210000
     cmp eax, 0x2badb002",
    check!(1, "je"),
    "pushfd
     pop eax
     test eax, 0x20200", // VM, IF
    check!(2, "jz"),
    "mov eax, cr0
     and eax, 0x80000001 // PG, PE
     cmp eax, 1",
    check!(3, "je"),
    // Every segment begins at 0 and reaches far.
    "mov dword ptr [0x3fffffc], 0x5a5aa5a5
     mov eax, 0x3fffffc
     mov ecx, 0x5a5aa5a5
     cmp cs:[eax], ecx",
    check!(4, "je"),
    "cmp es:[eax], ecx",
    check!(5, "je"),
    "cmp fs:[eax], ecx",
    check!(6, "je"),
    "cmp gs:[eax], ecx",
    check!(7, "je"),
    "cmp ss:[eax], ecx",
    check!(8, "je"),
    // The address line 20 is a line of its own.
    "mov dword ptr [0x200000], 1
     mov dword ptr [0x300000], 2
     cmp dword ptr [0x200000], 1",
    check!(9, "je"),
    "mov eax, [ebx]
     and eax, 0x24d
     cmp eax, 0x24d",
    check!(10, "je"),
    "cmp dword ptr [ebx + 4], 639",
    check!(11, "je"),
    "cmp dword ptr [ebx + 8], 0xfc00 // 63 MiB",
    check!(12, "je"),
    // The memory map ends where RAM does.
    "mov ecx, [ebx + 44]
     mov edi, [ebx + 48]
     add ecx, edi
     2: cmp dword ptr [edi + 20], 1
     jne 3f
     mov eax, [edi + 4]
     add eax, [edi + 12]
     3: add edi, [edi]
     add edi, 4
     cmp edi, ecx
     jb 2b",
    check!(13, "je"),
    "cmp eax, 0x4000000",
    check!(14, "je"),
    "mov esi, [ebx + 16]",
    print_text!(),
    "mov esi, [ebx + 64]",
    print_text!(),
    "mov ecx, [ebx + 20]
     jecxz 2f
     cmp ecx, 1",
    check!(15, "je"),
    "mov edi, [ebx + 24]
     mov esi, [edi + 8]",
    print_text!(),
    "mov esi, [edi]
     test esi, 0xfff",
    check!(16, "jz"),
    "mov ecx, [edi + 4]
     sub ecx, esi
     mov dx, 0x3f8
     cld
     rep outsb
     2:",
    passed!(),
);

#[test]
fn a_multiboot_image_finds_the_machine_and_its_information_as_specified() {
    needs!(kvm());
    run(&STATE, &["--test-devices"]).assert(1, "tiny.elf;kite;", "");
    let words = ["--test-devices", "--cmdline", "one 'two three'", "--append", "four"];
    run(&STATE, &words).assert(1, "tiny.elf one 'two three' four;kite;", "");
}

#[test]
fn an_initrd_is_the_one_module_with_its_name() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("en vironment");
    std::fs::write(&path, "A=1\nB=2\n").unwrap();
    let end = run(&STATE, &["--test-devices", "--initrd", path.to_str().unwrap()]);
    end.assert(1, "tiny.elf;kite;en_vironment;A=1\nB=2\n", "");
}

#[test]
fn an_elf_image_with_a_header_is_loaded_by_its_segments() {
    needs!(kvm());
    let elf = Elf::of(&multiboot_elf(STATE.code()));
    Kite::run_file(elf, &["--test-devices"]).end().assert(1, "tiny.elf;kite;", "");
}

guest!(MULTIBOOT_OFF, ".code32", say!("'o'"), power_off!());

#[test]
fn a_multiboot_image_needs_no_test_devices() {
    needs!(kvm());
    run(&MULTIBOOT_OFF, &[]).assert(0, "o", "");
    run(&MULTIBOOT_OFF, &["--no-acpi", "--cpus", "2"]).assert(0, "o", "");
}

#[test]
fn a_multiboot_image_may_lie_in_low_memory() {
    needs!(kvm());
    for start in [0x1000, 0x4000, 0x9_0000] {
        let image = Elf::of(&multiboot_at(STATE.code(), start));
        Kite::run_file(image, &["--test-devices"]).end().assert(1, "tiny.elf;kite;", "");
    }
}
