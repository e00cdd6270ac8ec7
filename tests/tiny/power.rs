//! Power-off and reset, and what `--on-reboot restart` makes of a reset.

use boot::testing::Entry;
use nix::sys::signal::Signal;

use std::process::Stdio;

use crate::process::Kite;
use crate::support::kvm;

guest!(POWER_OFF, say!("'o'"), power_off!());

#[test]
fn powering_off_ends_with_0() {
    needs!(kvm());
    Kite::run(&POWER_OFF, &[]).end().assert(0, "o", "");
    Kite::run(&POWER_OFF, &["--on-reboot", "restart"]).end().assert(0, "o", "");
    Kite::run(&POWER_OFF, &["--cpus", "4", "--no-acpi"]).end().assert(0, "o", "");
}

guest!(
    PVH,
    ".code32
     cmp dword ptr [ebx], 0x336ec578
     jne 2f
     mov eax, cr0
     test eax, 0x80000000
     jnz 2f",
    say!("'p'"),
    power_off!(),
    "2:",
    say!("'?'"),
    power_off!()
);

#[test]
fn a_pvh_guest_is_entered_unpaged_with_its_start_information() {
    needs!(kvm());
    Kite::start(&PVH, Entry::Pvh, &[], Stdio::null(), Stdio::piped()).end().assert(0, "p", "");
}

guest!(
    COMMAND_LINE,
    "mov edi, [rsi + 0x228]
     cmp word ptr [rsi + 0x1fe], 0xaa55
     jne 3f
     mov dx, 0x3f8
     2: mov al, [rdi]
     test al, al
     jz 3f
     out dx, al
     inc rdi
     jmp 2b
     3:",
    power_off!()
);

#[test]
fn a_64_bit_guest_finds_its_command_line_through_rsi() {
    needs!(kvm());
    let arguments = ["--cmdline", "one two", "--append", "three"];
    Kite::run(&COMMAND_LINE, &arguments).end().assert(0, "one two three", "");
}

guest!(RESET_REGISTER, say!("'r'"), "mov dx, 0x602\n mov al, 1\n out dx, al\n 2: hlt\n jmp 2b");
guest!(RESET_I8042, say!("'k'"), "mov al, 0xfe\n out 0x64, al\n 2: hlt\n jmp 2b");

#[test]
fn a_reset_ends_with_0() {
    needs!(kvm());
    Kite::run(&RESET_REGISTER, &[]).end().assert(0, "r", "");
    Kite::run(&RESET_I8042, &[]).end().assert(0, "k", "");
}

guest!(
    NOT_QUITE,
    "mov dx, 0x600
     mov al, 0x14 // S5 without SLP_EN
     out dx, al
     mov al, 0x30 // SLP_EN for S4
     out dx, al
     mov dx, 0x602
     xor al, al
     out dx, al
     mov al, 0xaa // the keyboard controller's self test
     out 0x64, al
     in al, 0x60
     mov dx, 0x3f8
     out dx, al",
    power_off!()
);

#[test]
fn other_values_in_the_same_registers_end_nothing() {
    needs!(kvm());
    Kite::run(&NOT_QUITE, &[]).end().assert(0, "U", "");
}

guest!(
    REBORN,
    // Whatever is left of an earlier life shows as a digit.
    "mov ebx, 0x200000
     mov cl, '0'
     cmp dword ptr [rbx], 0
     je 2f
     inc cl
     2: mov dword ptr [rbx], 1
     mov al, 0x50
     out 0x70, al
     in al, 0x71
     test al, al
     jz 3f
     inc cl
     3: mov al, 1
     out 0x71, al
     mov ebx, 0x472
     cmp word ptr [rbx], -1
     je 4f
     inc cl
     4: mov al, cl
     mov dx, 0x3f8
     out dx, al
     5: mov dx, 0x3fd
     in al, dx
     test al, 1
     jz 5b
     mov dx, 0x3f8
     in al, dx
     out dx, al
     mov word ptr [rbx], 0
     cmp al, 'r'
     je 6f
     cmp al, 'k'
     je 7f
     cmp al, 'o'
     je 8f
     ud2
     6: mov dx, 0x602
     mov al, 1
     out dx, al
     hlt
     7: mov al, 0xfe
     out 0x64, al
     hlt
     8:",
    power_off!()
);

#[test]
fn a_restart_boots_a_machine_built_anew() {
    needs!(kvm());
    // These differ in what KVM is asked for when it is built.
    for board in [&[][..], &["--no-acpi"], &["--cpus", "256"]] {
        reborn(board, b"rktrktrktr");
    }
    // There, a triple fault is a test's end.
    reborn(&["--test-devices"], b"rkr");
}

fn reborn(board: &[&str], resets: &[u8]) {
    let mut kite = Kite::typed_to(&REBORN, &[board, &["--on-reboot", "restart"]].concat());
    let mut expected = b"0".to_vec();
    let mut descriptors = Vec::new();
    kite.expect(&expected);
    for how in resets {
        kite.send(&[*how]);
        expected.extend([*how, b'0']);
        kite.expect(&expected);
        descriptors.push(std::fs::read_dir(format!("/proc/{}/fd", kite.id())).unwrap().count());
    }
    assert!(
        descriptors.iter().all(|count| *count == descriptors[0]),
        "{board:?}: descriptors are left behind: {descriptors:?}"
    );
    kite.send(b"o");
    expected.push(b'o');
    kite.end().assert(0, expected, "");
}

#[test]
fn a_guest_that_restarts_for_ever_is_ended_by_a_signal() {
    needs!(kvm());
    let kite = Kite::run(&RESET_REGISTER, &["--on-reboot", "restart"]);
    kite.expect_more_than(3);
    kite.signal(Signal::SIGTERM);
    kite.end().assert_killed_by(Signal::SIGTERM);
}
