//! How a unit test ends that does not end by itself; and a machine without test devices.

use crate::multiboot::run;
use crate::support::kvm;

const TRIPLE: &str = "kite: the guest crashed: triple fault on vCPU 0\n";

// With a reset announced as Linux does: to a test these are bytes like any others.
guest!(
    TEST_TRIPLE_FAULT,
    ".code32
     mov word ptr [0x472], 0x1234
     mov word ptr [0x203000], 0
     mov dword ptr [0x203002], 0
     lidt [0x203000]
     ud2"
);

#[test]
fn a_triple_fault_ends_at_once_with_a_status_of_its_own() {
    needs!(kvm());
    for arguments in [&["--test-devices"][..], &["--test-devices", "--on-reboot", "restart"], &[]] {
        let end = run(&TEST_TRIPLE_FAULT, arguments);
        assert!(end.stderr.starts_with(TRIPLE), "{}", end.stderr);
        end.assert(255, "", &end.stderr);
    }
}

guest!(TEST_INTO_THE_VOID, ".code32", say!("'v'"), "mov eax, 0x30000000\n jmp eax");

#[test]
fn an_internal_error_ends_at_once_with_a_status_of_its_own() {
    needs!(kvm());
    let end = run(&TEST_INTO_THE_VOID, &["--test-devices"]);
    assert!(end.stderr.starts_with("kite: the guest crashed: "), "{}", end.stderr);
    end.assert(255, "v", &end.stderr);
}

guest!(
    NOTHING,
    ".code32
     mov edi, 0x200000
     // What is written is lost.
     mov eax, 0x12345678
     out 0xe0, eax
     out 0xe8, eax
     out 0xf4, eax
     mov dx, 0x510
     xor eax, eax
     out dx, ax
     mov dx, 0xcf8
     mov eax, 0x80000800
     out dx, eax
     mov ebx, 0xff000000
     mov [ebx], eax
     // And everything reads as ones.
     mov esi, -1
     in eax, 0xe0
     and esi, eax
     in eax, 0xe8
     and esi, eax
     in eax, 0xf4
     and esi, eax
     mov dx, 0x510
     in eax, dx
     and esi, eax
     mov dx, 0x511
     in eax, dx
     and esi, eax
     mov dx, 0x608
     in eax, dx
     and esi, eax
     mov dx, 0xcf8
     in eax, dx
     and esi, eax
     mov dx, 0xcfc
     in eax, dx
     and esi, eax
     mov dx, 0xc000
     in eax, dx
     and esi, eax
     mov dx, 0x2000
     in eax, dx
     and esi, eax
     and esi, [ebx]
     mov ebx, 0xfe000000
     and esi, [ebx]
     // The root pointer knows no 32-bit table.
     cmp dword ptr [0xe0010], 0
     jne 2f
     cmp esi, -1
     jne 2f",
    say!("'n'"),
    "2:",
    power_off!()
);

#[test]
fn without_the_option_there_is_nothing_of_it() {
    needs!(kvm());
    run(&NOTHING, &[]).assert(0, "n", "");
}
