//! Triple faults and other ways for a guest to crash, and how a crash is told from Linux's reboot.

use crate::guest::no_kvm;
use crate::process::Kite;

guest!(TRIPLE_FAULT, "ud2");
guest!(TRIPLE_FAULT_COLD, "mov ebx, 0x472\n mov word ptr [rbx], 0\n ud2");
guest!(TRIPLE_FAULT_WARM, "mov ebx, 0x472\n mov word ptr [rbx], 0x1234\n ud2");
guest!(
    RESET_WARM,
    "mov ebx, 0x472\n mov word ptr [rbx], 0x1234\n mov dx, 0x602\n mov al, 1\n out dx, al\n hlt"
);
guest!(POWER_OFF_WARM, "mov ebx, 0x472\n mov word ptr [rbx], 0x1234", power_off!());

const PANIC: &str = "kite: the guest crashed: kernel panic\n";
const TRIPLE: &str = "kite: the guest crashed: triple fault on vCPU 0\n";

#[test]
fn a_triple_fault_out_of_the_blue_is_a_crash() {
    if no_kvm("a_triple_fault_out_of_the_blue_is_a_crash") {
        return;
    }
    Kite::run(&TRIPLE_FAULT, &[]).end().assert(255, "", TRIPLE);
    Kite::run(&TRIPLE_FAULT, &["--on-reboot", "restart"]).end().assert(255, "", TRIPLE);
}

#[test]
fn a_triple_fault_after_linux_announced_a_reset_is_a_reboot() {
    if no_kvm("a_triple_fault_after_linux_announced_a_reset_is_a_reboot") {
        return;
    }
    Kite::run(&TRIPLE_FAULT_COLD, &[]).end().assert(0, "", "");
}

#[test]
fn a_warm_reset_is_a_panic_with_the_command_line_that_makes_it_one() {
    if no_kvm("a_warm_reset_is_a_panic_with_the_command_line_that_makes_it_one") {
        return;
    }
    for guest in [&TRIPLE_FAULT_WARM, &RESET_WARM] {
        Kite::run(guest, &[]).end().assert(255, "", PANIC);
        Kite::run(guest, &["--append", "quiet", "--on-reboot", "restart"]).end().assert(255, "", PANIC);
        Kite::run(guest, &["--cmdline", "quiet"]).end().assert(0, "", "");
        Kite::run(guest, &["--append", "reboot=warm"]).end().assert(0, "", "");
    }
    Kite::run(&POWER_OFF_WARM, &[]).end().assert(0, "", "");
}

guest!(INTO_THE_VOID, say!("'v'"), "mov eax, 0x30000000\n jmp rax");

#[test]
fn running_where_there_is_no_memory_is_a_crash() {
    if no_kvm("running_where_there_is_no_memory_is_a_crash") {
        return;
    }
    let end = Kite::run(&INTO_THE_VOID, &[]).end();
    assert!(end.stderr.starts_with("kite: the guest crashed: "), "{}", end.stderr);
    assert_eq!(end.stderr.lines().count(), 1, "{}", end.stderr);
    end.assert(255, "v", &end.stderr);
}
