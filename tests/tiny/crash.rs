//! Triple faults and other ways for a guest to crash, and how a crash is told from Linux's reboot.

use crate::process::Kite;
use crate::support::child::End;
use crate::support::{kvm, skipped};

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
const HALTED: &str = "kite: the guest crashed: every vCPU has halted with interrupts off\n";

/// What is left to be said on AMD processors, for which KVM resets the vCPU.
const LOST: &str = "vCPU 0: as after reset; AMD processors keep nothing of a triple fault\n";

/// Fails the test unless kite said that its guest crashed, in these words, and then what vCPU 0 was at.
#[track_caller]
fn assert_crashed(end: &End, stdout: &str, message: &str) {
    let report = end.stderr.strip_prefix(message).unwrap_or_else(|| panic!("{}", end.stderr));
    if !report.starts_with(LOST) {
        assert!(report.starts_with("vCPU 0: RIP 0x"), "{}", end.stderr);
        assert!(report.contains("\n  RIP: 0010:00000000"), "{report}");
        assert!(report.contains(" CR3: 0000000000009000\n"), "{report}");
    }
    end.assert(255, stdout, &end.stderr);
}

#[test]
fn a_triple_fault_out_of_the_blue_is_a_crash() {
    needs!(kvm());
    assert_crashed(&Kite::run(&TRIPLE_FAULT, &[]).end(), "", TRIPLE);
    assert_crashed(&Kite::run(&TRIPLE_FAULT, &["--on-reboot", "restart"]).end(), "", TRIPLE);
}

#[test]
fn a_triple_fault_after_linux_announced_a_reset_is_a_reboot() {
    needs!(kvm());
    Kite::run(&TRIPLE_FAULT_COLD, &[]).end().assert(0, "", "");
}

#[test]
fn a_warm_reset_is_a_panic_with_the_command_line_that_makes_it_one() {
    needs!(kvm());
    for guest in [&TRIPLE_FAULT_WARM, &RESET_WARM] {
        assert_crashed(&Kite::run(guest, &[]).end(), "", PANIC);
        let restarting = ["--append", "quiet", "--on-reboot", "restart"];
        assert_crashed(&Kite::run(guest, &restarting).end(), "", PANIC);
        Kite::run(guest, &["--cmdline", "quiet"]).end().assert(0, "", "");
        Kite::run(guest, &["--append", "reboot=warm"]).end().assert(0, "", "");
    }
    Kite::run(&POWER_OFF_WARM, &[]).end().assert(0, "", "");
}

guest!(INTO_THE_VOID, say!("'v'"), "mov eax, 0x30000000\n jmp rax");

#[test]
fn running_where_there_is_no_memory_is_a_crash() {
    needs!(kvm());
    let end = Kite::run(&INTO_THE_VOID, &[]).end();
    let (message, _) = end.stderr.split_once('\n').unwrap();
    assert!(message.starts_with("kite: the guest crashed: "), "{message}");
    assert_crashed(&end, "v", &format!("{message}\n"));
}

guest!(
    MARKED,
    "mov rax, 0x1122334455667788
     mov r15, 0x99aabbccddeeff00
     mov esp, 0x300000
     ud2"
);

#[test]
fn a_crash_shows_registers_and_code() {
    needs!(kvm());
    let end = Kite::run(&MARKED, &["--cpus", "2"]).end();
    assert!(end.stderr.ends_with("vCPU 1: not started\n"), "{}", end.stderr);
    if end.stderr.contains(LOST) {
        return skipped(test_name!(), "this processor keeps nothing of a triple fault");
    }
    assert_crashed(&end, "", TRIPLE);
    for part in ["RAX: 1122334455667788", "R15: 99aabbccddeeff00", "RSP: 0018:0000000000300000", "<0f> 0b"] {
        assert!(end.stderr.contains(part), "{part}: {}", end.stderr);
    }
}

guest!(HALTS, say!("'h'"), "cli\n 2: hlt\n jmp 2b");
guest!(WAITS, say!("'w'"), "2: sti\n hlt\n jmp 2b");

#[test]
fn a_guest_whose_vcpus_have_all_halted_for_ever_has_crashed() {
    needs!(kvm());
    for cpus in ["1", "3"] {
        let end = Kite::run(&HALTS, &["--cpus", cpus]).end();
        assert_crashed(&end, "h", HALTED);
        assert!(end.stderr.contains(", halted with interrupts off\n"), "{}", end.stderr);
    }
}

#[test]
fn a_guest_that_waits_for_an_interrupt_lives() {
    needs!(kvm());
    let mut kite = Kite::run(&WAITS, &[]);
    kite.expect(b"w");
    // Longer than the others take to be told dead.
    std::thread::sleep(std::time::Duration::from_secs(4));
    kite.signal(nix::sys::signal::Signal::SIGTERM);
    kite.end().assert_killed_by(nix::sys::signal::Signal::SIGTERM);
}

guest!(
    TELLS_PANIC,
    say!("'p'"),
    "mov dx, 0x505\n in al, dx\n cmp al, 7\n jne 3f\n mov al, 1\n out dx, al\n 2: jmp 2b\n 3:",
    power_off!()
);
guest!(
    TELLS_PANIC_AND_RESETS,
    "mov dx, 0x505\n mov al, 1\n out dx, al\n mov dx, 0x602\n mov al, 1\n out dx, al\n hlt"
);
guest!(
    TELLS_CRASH_KERNEL,
    "mov dx, 0x505\n mov al, 3\n out dx, al\n mov ecx, 100000\n 2: loop 2b",
    power_off!()
);
guest!(TELLS_SHUTDOWN, "mov dx, 0x505\n mov al, 4\n out dx, al\n 2: jmp 2b");

#[test]
fn a_panic_that_is_told_by_pvpanic_is_one_however_the_guest_goes_on() {
    needs!(kvm());
    assert_crashed(&Kite::run(&TELLS_PANIC, &[]).end(), "p", PANIC);
    for options in [&[][..], &["--cmdline", "quiet", "--on-reboot", "restart"]] {
        assert_crashed(&Kite::run(&TELLS_PANIC_AND_RESETS, options).end(), "", PANIC);
    }
    Kite::run(&TELLS_CRASH_KERNEL, &[]).end().assert(0, "", "");
    Kite::run(&TELLS_SHUTDOWN, &[]).end().assert(0, "", "");
}

/// Prints a panic's first line as the kernel does, then does what follows.
macro_rules! print_panic {
    () => {
        "lea rsi, [rip + 5f]
         mov ecx, 39
         mov dx, 0x3f8
         cld
         rep outsb
         jmp 6f
         5: .ascii \"[ 1.0] Kernel panic - not syncing: x y\\n\"
         6:"
    };
}

guest!(PRINTS_PANIC, print_panic!(), "cli\n 2: jmp 2b");
guest!(PRINTS_PANIC_AND_WAITS, print_panic!(), "2: sti\n hlt\n jmp 2b");

#[test]
fn a_panic_that_is_only_printed_is_one_if_the_guest_does_nothing_more() {
    needs!(kvm());
    let text = "[ 1.0] Kernel panic - not syncing: x y\n";
    assert_crashed(&Kite::run(&PRINTS_PANIC, &[]).end(), text, PANIC);
    // A program may have printed that.
    let mut kite = Kite::run(&PRINTS_PANIC_AND_WAITS, &[]);
    kite.expect(text.as_bytes());
    std::thread::sleep(std::time::Duration::from_secs(5));
    kite.signal(nix::sys::signal::Signal::SIGTERM);
    kite.end().assert_killed_by(nix::sys::signal::Signal::SIGTERM);
}
